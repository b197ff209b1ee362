"""Wanda: magnitude times the norm of the input, compared within a row, on inputs that what comes before gives now."""

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from secateur import Budget, sparsify
from secateur.errors import MethodError, TrainingError
from secateur.methods import Magnitude, Pattern, Wanda, WeightProblem
from secateur.methods._calibrate import blocks_of
from secateur.methods._weights import prunable_weights
from secateur.train import ClassificationTask, FunctionTask

HALF = Budget(0.5, "weights")
TASK = FunctionTask(inputs=lambda batch: batch, loss=lambda o, b: o.sum(), metric=lambda o, b: o.sum())


def choose(model, data, method=None, remove=0.5, **more):
    problem = WeightProblem(model, Budget(remove, "weights"), data=data, task=TASK, **more)
    return (method or Wanda()).choose(problem)


def linear(*rows):
    layer = nn.Linear(len(rows[0]), len(rows), bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(rows))
    return layer


def test_norm_is_neither_squared_nor_a_mean():
    """Over rows (3, 1) and (4, 0) the norms are 5 and 1: 1*5 beats 4*1; means 3.5 and 0.5 would, squares too; 6*1 does
    beat 1*5, and would not beat 1*25."""
    data = [torch.tensor([[3.0, 1.0]]), torch.tensor([[4.0, 0.0]])]
    assert choose(linear([1.0, 4.0]), data).plan.kept["weight"].tolist() == [[True, False]]
    decision = choose(linear([1.0, -6.0]), data)
    assert decision.plan.kept["weight"].tolist() == [[False, True]]
    assert decision.scores["weight"].tolist() == [[5.0, 6.0]]


def test_each_row_loses_the_same_count():
    """A ranking over the layer would empty the first row."""
    layer = linear([1.0, 2.0, 3.0, 4.0], [10.0, 20.0, 30.0, 40.0])
    assert choose(layer, [torch.ones(1, 4)]).plan.kept["weight"].tolist() == [[False, False, True, True]] * 2
    whole = choose(layer, [torch.ones(1, 4)], Wanda(scope="layer")).plan.kept["weight"]
    assert whole.sum(1).tolist() == [0, 4]


def test_equal_column_norms_give_magnitude_by_row():
    generator = torch.Generator().manual_seed(0)
    layer = linear(*torch.randn(6, 8, generator=generator).tolist())
    signs = torch.randn(5, 8, generator=generator).sign() * 3
    found = choose(layer, [signs[:2], signs[2:]]).plan
    assert found == Magnitude(scope="row").choose(WeightProblem(layer, HALF)).plan


def test_a_bigger_input_decides_against_magnitude():
    layer = linear([1.0, 1.1, 1.2, 1.3])
    found = choose(layer, [torch.tensor([[10.0, 10.0, 1.0, 1.0]])]).plan
    assert found.kept["weight"].tolist() == [[True, True, False, False]]


def test_remaining_weights_are_not_updated():
    layer = linear([1.0, 2.0, 3.0, 4.0])
    result = sparsify(layer, budget=HALF, method="wanda", data=[torch.ones(1, 4)], task=TASK)
    assert result.model.weight.tolist() == [[0.0, 0.0, 3.0, 4.0]]
    assert layer.weight.tolist() == [[1.0, 2.0, 3.0, 4.0]]


def test_blocks_of_n_of_m():
    layer = linear([1.0, 2.0, 3.0, 4.0, 1.0, 1.0, 9.0, 1.0])
    data = [torch.tensor([[9.0, 9.0, 1.0, 1.0, 1.0, 1.0, 1.0, 2.0]])]
    kept = choose(layer, data, pattern=Pattern(2, 4)).plan.kept["weight"]
    assert kept.tolist() == [[True, True, False, False, False, False, True, True]]


def test_dead_inputs_go_first_and_the_smallest_of_them_before_others():
    layer = linear([5.0, -4.0, 1e-3, 2e-3])
    data = [torch.tensor([[0.0, 0.0, 1.0, 1.0]])]
    order = [choose(layer, data, remove=count / 4).plan.kept["weight"][0].tolist() for count in (1, 2, 3)]
    assert order == [[True, False, True, True], [False, False, True, True], [False, False, False, True]]


class Unfolded(nn.Module):
    def __init__(self, conv):
        super().__init__()
        self.groups = conv.groups
        self.options = {"padding": conv.padding, "stride": conv.stride}
        self.size = conv.kernel_size
        self.weight = conv.weight

    def norms(self, images):
        patches = F.unfold(images.double(), self.size, **self.options)  # (samples, in * taps, places)
        return patches.square().sum((0, 2)).sqrt().view(self.groups, -1)


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_a_convolution_is_scored_as_its_unfolded_product(groups):
    generator = torch.Generator().manual_seed(groups)
    conv = nn.Conv2d(4, 8, 3, padding=1, stride=2, groups=groups)
    with torch.no_grad():
        conv.weight.copy_(torch.randn(conv.weight.shape, generator=generator))
    images = torch.randn(5, 4, 7, 6, generator=generator)
    expected = conv.weight.detach().view(groups, 8 // groups, -1).double().abs()
    expected = (expected * Unfolded(conv).norms(images)[:, None]).view(conv.weight.shape)
    scores = choose(conv, [images[:3], images[3:]]).scores["weight"]
    torch.testing.assert_close(scores.double(), expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [(nn.ConvTranspose2d(4, 6, 3, groups=2), (2, 4, 5, 5)), (nn.Conv1d(3, 4, 2, dilation=2), (2, 3, 9))],
)
def test_scores_of_any_convolution_are_what_leaving_a_weight_out_costs(layer, shape):
    """The score is the norm of what one weight adds to the output."""
    layer = copy.deepcopy(layer).double()
    images = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    scores = choose(layer, [images]).scores["weight"]
    before = layer(images)
    for index in ((0, 0, 0), (3, 1, 1), (2, 2, 0)):
        place = (*(i % n for i, n in zip(index, layer.weight.shape, strict=False)), *[0] * (layer.weight.ndim - 3))
        without = copy.deepcopy(layer)
        with torch.no_grad():
            without.weight[place] = 0.0
        torch.testing.assert_close(scores[place], (before - without(images)).norm().detach())


def test_packed_and_repeated_weights_are_scored_too():
    torch.manual_seed(0)
    attention, recurrent = nn.MultiheadAttention(8, 2, batch_first=True), nn.LSTM(5, 3, batch_first=True)
    data = [torch.randn(3, 4, 8)]
    task = FunctionTask(inputs=lambda b: (b, b, b), loss=lambda o, b: o.sum(), metric=lambda o, b: o.sum())
    scores = Wanda().choose(WeightProblem(attention, HALF, data=data, task=task)).scores["in_proj_weight"]
    norm = data[0].flatten(0, 1).norm(dim=0)
    torch.testing.assert_close(scores, (attention.in_proj_weight * norm).abs().detach())
    sequences = torch.randn(2, 6, 5)
    scores = choose(recurrent, [sequences]).scores["weight_ih_l0"]
    torch.testing.assert_close(scores, (recurrent.weight_ih_l0 * sequences.flatten(0, 1).norm(dim=0)).abs().detach())


def test_a_layer_is_calibrated_on_what_pruned_layers_give():
    """On (1, 2) the first layer gives (1.8, 0.3), and (1, 1.2) once 0.4 and -0.9 are gone."""
    model = nn.Sequential(linear([1.0, 0.4], [-0.9, 0.6]), nn.ReLU(), linear([1.0, 1.1]))
    data = [torch.tensor([[1.0, 2.0]])]
    at_once = choose(model, data, Wanda(together="model"))
    one_by_one = choose(model, data, Wanda(together="layer"))
    assert at_once.plan.kept["0.weight"].tolist() == [[True, False], [False, True]]
    assert one_by_one.plan.kept["0.weight"].tolist() == [[True, False], [False, True]]
    assert at_once.plan.kept["2.weight"].tolist() == [[True, False]]
    assert one_by_one.plan.kept["2.weight"].tolist() == [[False, True]]
    assert choose(model, data).plan == one_by_one.plan


def test_layers_of_a_block_are_calibrated_together_and_blocks_one_after_the_other():
    """Two blocks, each the toy above: within a block the first choice above, and the second block reads (0, 1.2)."""

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.up, self.down = linear([1.0, 0.4], [-0.9, 0.6]), linear([1.0, 1.1], [1.1, 1.0])

        def forward(self, x):
            return self.down(F.relu(self.up(x)))

    model, data = nn.Sequential(Block(), Block()), [torch.tensor([[1.0, 2.0]])]
    first = model[0](data[0]).detach()
    found = choose(model, data).plan
    assert found.kept["0.down.weight"].tolist() == [[True, False], [True, False]]
    pruned = choose(model[0], data, Wanda(together="model"))
    assert pruned.plan.kept["down.weight"].tolist() == found.kept["0.down.weight"].tolist()
    after = F.linear(F.relu(torch.tensor([[1.0, 1.2]])), torch.tensor([[1.0, 0.0], [1.1, 0.0]]))
    assert not torch.allclose(after, first)
    expected = choose(model[1], [after], Wanda(together="model")).plan
    assert {f"1.{name}": mask.tolist() for name, mask in expected.kept.items()} == {
        name: mask.tolist() for name, mask in found.kept.items() if name.startswith("1.")
    }


def test_blocks_are_lists_of_one_class_with_linear_layers():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.up, self.down = nn.Linear(2, 4), nn.Linear(4, 2)

    class Conv(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 1)

    model = nn.ModuleDict(
        {
            "blocks": nn.ModuleList([Block(), Block()]),
            "convs": nn.Sequential(Conv(), Conv()),
            "mlp": nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)),
            "head": nn.Linear(2, 2),
        }
    )
    assert blocks_of(model, prunable_weights(model)) == {
        "blocks.0.up.weight": "blocks.0",
        "blocks.0.down.weight": "blocks.0",
        "blocks.1.up.weight": "blocks.1",
        "blocks.1.down.weight": "blocks.1",
    }


def test_a_sample_limit_and_drawn_positions_are_followed():
    layer = linear([1.0, 2.0])
    data = [torch.tensor([[3.0, 0.5]]), torch.tensor([[0.0, 100.0]])]
    assert choose(layer, data, Wanda(max_samples=1)).scores["weight"].tolist() == [[3.0, 1.0]]
    many = [torch.ones(1, 50, 2)]
    assert choose(layer, many, Wanda(rows_per_sample=4)).scores["weight"].tolist() == [[2.0, 4.0]]


def test_activations_that_are_no_numbers_name_the_layer():
    model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 2))
    with torch.no_grad():
        model[1].weight.fill_(float("nan"))
    with pytest.raises(MethodError, match=r"'2'.*NaN"):
        choose(model, [torch.ones(1, 4)])
    with pytest.raises(MethodError, match=r"'0'.*NaN"):
        choose(model, [torch.full((1, 4), float("nan"))])


class Standardised(nn.Linear):
    def forward(self, x):
        return F.linear(x, self.weight - self.weight.mean(1, keepdim=True), self.bias)


class Idle(nn.Module):
    def __init__(self):
        super().__init__()
        self.used, self.idle = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        return self.used(x)


def test_weights_that_no_product_reads_as_they_are_are_refused():
    with pytest.raises(MethodError, match=r"computed from '0\.weight'"):
        choose(nn.Sequential(Standardised(4, 4)), [torch.ones(1, 4)])
    with pytest.raises(MethodError, match=r"idle\.weight.*protect"):
        choose(Idle(), [torch.ones(1, 4)])
    assert choose(Idle(), [torch.ones(1, 4)], protect=("idle",)).plan.removed_count == 8


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"scope": "global"}, "one after the other"),
        ({"scope": "column"}, "scope"),
        ({"together": "stage"}, "together"),
        ({"max_samples": 0}, "max_samples"),
    ],
)
def test_settings_without_sense_are_refused(settings, said):
    with pytest.raises(MethodError, match=said):
        Wanda(**settings)


def test_no_data_is_said():
    with pytest.raises(MethodError, match="wanda looks at activations: give data="):
        sparsify(nn.Linear(4, 4), budget=HALF, method="wanda")
    with pytest.raises(TrainingError, match="no batch"):
        sparsify(nn.Linear(4, 4), budget=HALF, method="wanda", data=[], task=ClassificationTask())


def test_layers_that_a_pattern_skips_stay_whole():
    model = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 4))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plan = choose(model, [torch.ones(1, 6)], pattern=Pattern(2, 4, uneven="skip")).plan
    assert bool(plan.kept["0.weight"].all())
    assert plan.kept["1.weight"].view(4, 2, 4).sum(-1).eq(2).all()
