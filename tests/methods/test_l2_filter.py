import pytest
import torch
from torch import nn
from torch.nn import functional as F

from secateur import Budget, Limits
from secateur.errors import BudgetError, MethodError, NothingToPrune
from secateur.graph import trace
from secateur.methods import L1Filter, L2Filter, Problem
from secateur.methods.l2_filter import l2_filter_scores

from .test_l1_filter import READOUT, chain, problem


def removed(model, *shape, method=None, **options):
    found = (method or L2Filter()).decide(problem(model, *shape, **options)).plan
    return {name: found.removed(name) for name in found if found.removed(name)}


def test_scores_are_euclidean_norms_over_everything_but_the_filter():
    weight = torch.tensor([[[[1.0, -2.0]], [[2.0, 4.0]]], [[[0.5, 0.5]], [[0.5, -0.5]]]])  # (2, 2, 1, 2)
    assert l2_filter_scores(weight).tolist() == [5.0, 1.0]
    decision = L2Filter().decide(problem(chain([[3.0, -4.0], [0.0, 2.0]], READOUT), 1, 2, 1, 1))
    assert decision.scores["0"].tolist() == [5.0, 2.0]


def test_one_large_weight_counts_for_more_than_several_middling_ones():
    filters = [[3.0, 0.0], [2.0, -2.0]]  # L2: 3 > 2.83, L1: 3 < 4, signed sum: 3 > 0, largest: 3 > 2
    assert removed(chain(filters, READOUT), 1, 2, 1, 1) == {"0": (1,)}
    assert removed(chain(filters, READOUT), 1, 2, 1, 1, method=L1Filter()) == {"0": (0,)}
    filters = [[3.0, 0.0, 0.0], [2.0, -2.0, 2.0]]  # L2: 3 < 3.46, largest: 3 > 2
    assert removed(chain(filters, READOUT), 1, 3, 1, 1) == {"0": (0,)}


def test_a_filter_is_a_row_not_a_column():
    filters = [[4.0, 4.0], [1.0, 2.0]]  # rows 5.7 > 2.2, columns 4.1 < 4.5
    assert removed(chain(filters, READOUT), 1, 2, 1, 1) == {"0": (1,)}


def test_biases_norm_parameters_and_consumers_do_not_count():
    model = nn.Sequential(chain([[1.0], [2.0]])[0], nn.BatchNorm2d(2), chain([[100.0, 0.0]])[0])
    model[0].bias.data = torch.tensor([100.0, 0.0])
    model[1].weight.data = torch.tensor([100.0, 0.0])
    assert removed(model, 1, 1, 1, 1) == {"0": (0,)}


def test_weights_that_make_the_same_channels_are_one_vector():
    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            self.gate, self.up, self.down = nn.Linear(1, 2), nn.Linear(1, 2), nn.Linear(2, 1)
            self.gate.weight.data, self.up.weight.data = torch.tensor([[3.0], [5.0]]), torch.tensor([[4.0], [1.0]])

        def forward(self, x):
            return self.down(F.silu(self.gate(x)) * self.up(x))

    decision = L2Filter().decide(problem(Gated(), 1, 1))
    assert decision.scores["gate"].tolist() == pytest.approx([5.0, 26.0**0.5])  # the sum of the norms is 7 > 6
    assert decision.plan.removed("gate") == (0,)


def test_the_projection_decides_for_the_stream_as_in_l1_filter():
    class Stage(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.inner = nn.Conv2d(1, 2, 1, bias=False), nn.Conv2d(2, 2, 3, padding=1, bias=False)
            self.last, self.shortcut = nn.Conv2d(2, 2, 3, padding=1, bias=False), nn.Conv2d(2, 2, 1, bias=False)
            self.head = nn.Conv2d(2, 1, 1)
            for conv in (self.stem, self.inner, self.last):
                conv.weight.data = torch.tensor([1.0, 2.0]).view(2, 1, 1, 1).expand(conv.weight.shape).clone()
            self.shortcut.weight.data = torch.tensor([[0.3, 0.3], [0.1, 0.1]]).view(2, 2, 1, 1)

        def forward(self, x):
            x = self.stem(x)
            return self.head(F.relu(self.last(F.relu(self.inner(x))) + self.shortcut(x)))

    for residual, gone in (("projection", (1,)), ("prune", (0,))):
        assert removed(Stage(), 1, 1, 4, 4, method=L2Filter(residual=residual))["last"] == gone
        assert removed(Stage(), 1, 1, 4, 4, method=L1Filter(residual=residual))["last"] == gone


def test_scores_of_half_precision_weights_are_summed_in_double():
    model = nn.Sequential(nn.Linear(4096, 2), nn.Linear(2, 1))
    model[0].weight.data = torch.tensor([[1.0], [0.5]]).expand(2, 4096).clone()
    scores = L2Filter().decide(problem(model.bfloat16(), 1, 4096)).scores["0"]
    assert scores.tolist() == [64.0, 32.0]  # bfloat16 sums of ones stop at 256


def test_bad_settings_are_refused():
    model = chain([[1.0], [2.0]], READOUT)
    with pytest.raises(MethodError, match="residual='keep': expected one of projection, skip, prune"):
        removed(model, 1, 1, 1, 1, method=L2Filter(residual="keep"))
    with pytest.raises(MethodError, match="allocation='even'"):
        removed(model, 1, 1, 1, 1, method=L2Filter(allocation="even"))
    with pytest.raises(BudgetError, match="at most"):
        removed(model, 1, 1, 1, 1, remove=0.9)
    with pytest.raises(NothingToPrune, match="protect"):
        removed(model, 1, 1, 1, 1, protect=("",))


def test_weights_that_are_no_numbers_are_refused():
    model = chain([[1.0], [float("nan")]], READOUT)
    example = torch.zeros(1, 1, 1, 1)
    asked = Problem(model, trace(model, example), Budget(0.5), Limits(), (example,))
    with pytest.raises(MethodError, match=r"'0.weight' holds NaN or infinite"):
        L2Filter().decide(asked)
