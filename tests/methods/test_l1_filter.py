"""L1-norm filter pruning: hand-computed scores, toys that tell it from its likeliest mistakes, the paper's counts."""

from __future__ import annotations

import functools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from secateur.budget import Budget, Limits
from secateur.errors import BudgetError, MethodError, NothingToPrune, UnknownName
from secateur.graph import trace
from secateur.methods._problem import Problem
from secateur.methods.l1_filter import L1Filter, l1_filter_scores
from secateur.models import resnet56, resnet110, vgg16_bn, vgg16_bn_a
from secateur.surgery.shrink import shrink


def problem(model, *shape, remove=0.5, of="channels", **limits):
    example = torch.zeros(shape)
    return Problem(model, trace(model, example), Budget(remove, of), Limits(**limits), (example,))


def chain(*weights):
    """1x1 convolutions in a row with these (out, in) weights."""
    layers = []
    for rows in weights:
        weight = torch.tensor(rows)
        conv = nn.Conv2d(weight.shape[1], weight.shape[0], 1)
        conv.weight.data, conv.bias.data = weight[:, :, None, None], torch.zeros(len(weight))
        layers.append(conv)
    return nn.Sequential(*layers)


def removed(model, *shape, method=None, **options):
    found = (method or L1Filter()).decide(problem(model, *shape, **options)).plan
    return {name: found.removed(name) for name in found if found.removed(name)}


READOUT = [[1.0, 1.0]]  # the last layer: its outputs are the model's, never pruned


def test_scores_are_sums_of_absolute_weights_over_everything_but_the_filter():
    weight = torch.tensor([[[[1.0, -2.0]], [[0.0, 4.0]]], [[[0.5, 0.5]], [[0.0, -1.0]]]])  # (2, 2, 1, 2)
    assert l1_filter_scores(weight).tolist() == [7.0, 2.0]
    decision = L1Filter().decide(problem(chain([[1.0, -2.0], [0.5, 0.25]], READOUT), 1, 2, 1, 1))
    assert decision.scores["0"].tolist() == [3.0, 0.75]


def test_the_norm_is_not_squared_and_signs_do_not_cancel():
    filters = [[3.0, 0.0], [2.0, -2.0]]  # L1: 3 < 4; L2: 3 > 2.83; signed sum: 3 > 0
    assert removed(chain(filters, READOUT), 1, 2, 1, 1) == {"0": (0,)}


def test_a_filter_is_a_row_not_a_column():
    filters = [[1.0, 4.0], [2.0, 4.0]]  # rows 5 < 6; columns 3 < 8 would take the same index, so swap them too
    assert removed(chain(filters, READOUT), 1, 2, 1, 1) == {"0": (0,)}
    filters = [[4.0, 4.0], [1.0, 2.0]]  # rows 8 > 3, columns 5 < 6
    assert removed(chain(filters, READOUT), 1, 2, 1, 1) == {"0": (1,)}


def test_small_filters_go_and_large_ones_stay():
    filters = [[9.0], [1.0], [8.0], [7.0]]
    assert removed(chain(filters, [[1.0] * 4]), 1, 1, 1, 1, remove=0.25) == {"0": (1,)}


def test_biases_and_norm_parameters_do_not_count():
    model = nn.Sequential(chain([[1.0], [2.0]])[0], nn.BatchNorm2d(2), chain(READOUT)[0])
    model[0].bias.data = torch.tensor([100.0, 0.0])
    model[1].weight.data = torch.tensor([100.0, 0.0])
    assert removed(model, 1, 1, 1, 1) == {"0": (0,)}


def test_consumers_do_not_count():
    assert removed(chain([[1.0], [2.0]], [[100.0, 0.0]]), 1, 1, 1, 1) == {"0": (0,)}


def test_every_layer_loses_its_share_unless_all_are_ranked_together():
    small, large = [[0.1], [0.2], [0.3], [0.4]], [[3.0] * 4, [4.0] * 4, [1.0] * 4, [2.0] * 4]
    model = chain(small, large, [[1.0] * 4])
    assert removed(model, 1, 1, 1, 1) == {"0": (0, 1), "1": (2, 3)}
    assert removed(model, 1, 1, 1, 1, method=L1Filter(allocation="global"), remove=0.375) == {"0": (0, 1, 2)}


def test_a_global_ranking_never_empties_a_layer():
    model = chain([[0.1], [0.2]], [[3.0] * 2, [4.0] * 2, [1.0] * 2, [2.0] * 2], [[1.0] * 4])
    assert removed(model, 1, 1, 1, 1, method=L1Filter(allocation="global")) == {"0": (0,), "1": (2, 3)}


def test_named_layers_lose_in_their_proportions_and_others_nothing():
    rows = [[1.0], [2.0], [3.0], [4.0]]
    wide = [[float(i)] * 4 for i in range(1, 5)]
    model = chain(rows, wide, wide, [[1.0] * 4])
    method = L1Filter(allocation={"0": 0.25, "2": 0.5})
    assert removed(model, 1, 1, 1, 1, method=method, remove=3 / 12) == {"0": (0,), "2": (0, 1)}
    with pytest.raises(BudgetError, match="at most"):
        removed(model, 1, 1, 1, 1, method=L1Filter(allocation={"0": 1.0}), remove=0.5)


GREEDY = chain(
    [[1.0], [5.0]],  # filter 0 goes
    [[9.0, 1.0], [0.0, 2.0]],  # whole: 10 > 2, so row 1 goes. Without column 0: 1 < 2, so row 0 goes
    READOUT,
)


def test_greedy_leaves_out_the_kernels_of_channels_that_are_gone_and_independent_does_not():
    independent = L1Filter(selection="independent").decide(problem(GREEDY, 1, 1, 1, 1))
    greedy = L1Filter(selection="greedy").decide(problem(GREEDY, 1, 1, 1, 1))
    assert {n: independent.plan.removed(n) for n in ("0", "1")} == {"0": (0,), "1": (1,)}
    assert {n: greedy.plan.removed(n) for n in ("0", "1")} == {"0": (0,), "1": (0,)}
    assert independent.scores["1"].tolist() == [10.0, 2.0]
    assert greedy.scores["1"].tolist() == [1.0, 2.0]


def test_greedy_is_independent_where_no_earlier_layer_is_pruned():
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 8, 3), nn.ReLU(), nn.Conv2d(8, 2, 1))
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
    for allocation in ({"0": 1.0}, {"2": 1.0}):
        plans = [
            L1Filter(selection=s, allocation=allocation).decide(problem(model, 1, 3, 8, 8, remove=0.2)).plan
            for s in ("greedy", "independent")
        ]
        assert plans[0] == plans[1]
        assert plans[0].removed_count == 3


def test_greedy_follows_channels_through_a_flattened_map():
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Flatten(), nn.Linear(8, 2), nn.Linear(2, 1))
    model[0].weight.data = torch.tensor([1.0, 5.0]).view(2, 1, 1, 1)  # channel 0 goes: columns 0 to 3
    model[2].weight.data = torch.tensor([[2.0] * 4 + [1.0] * 4, [0.0] * 4 + [1.5] * 4])
    found = L1Filter(selection="greedy").decide(problem(model, 1, 1, 2, 2))
    assert found.scores["2"].tolist() == [4.0, 6.0]
    assert found.plan.removed("2") == (0,)


class Residual(nn.Module):
    """A stem, one block with an inner layer, and an identity or a projecting shortcut."""

    def __init__(self, *, is_projected):
        super().__init__()
        self.stem = nn.Conv2d(1, 2, 1, bias=False)
        self.inner = nn.Conv2d(2, 2, 3, padding=1, bias=False)
        self.last = nn.Conv2d(2, 2, 3, padding=1, bias=False)
        self.shortcut = nn.Conv2d(2, 2, 1, bias=False) if is_projected else nn.Identity()
        self.head = nn.Linear(2, 1)
        self.stem.weight.data = torch.tensor([1.0, 2.0]).view(2, 1, 1, 1)
        for conv, order in ((self.inner, (1, 2)), (self.last, (1, 2))):
            conv.weight.data = torch.tensor(order).view(2, 1, 1, 1) * torch.ones(2, 2, 3, 3)
        if is_projected:
            self.shortcut.weight.data = torch.tensor([[0.3, 0.3], [0.1, 0.1]]).view(2, 2, 1, 1)  # the other way round

    def forward(self, x):
        x = self.stem(x)
        return self.head(F.relu(self.last(F.relu(self.inner(x))) + self.shortcut(x)).mean((2, 3)))


def test_an_identity_shortcut_stays_whole_and_the_inner_layer_goes():
    model = Residual(is_projected=False)
    for residual in ("projection", "skip"):
        found = removed(model, 1, 1, 4, 4, method=L1Filter(residual=residual), remove=0.25)
        assert found == {"inner": (0,)}
    assert removed(model, 1, 1, 4, 4, method=L1Filter(residual="prune")) == {"stem": (0,), "inner": (0,)}


def test_the_projection_decides_for_the_whole_stream():
    model = Residual(is_projected=True)
    found = removed(model, 1, 1, 4, 4, method=L1Filter(residual="projection"))
    assert found == {"stem": (0,), "inner": (0,), "last": (1,)}, "last is large where its shortcut is small"
    found = removed(model, 1, 1, 4, 4, method=L1Filter(residual="prune"))
    assert found["last"] == (0,), "all weights that make the stream count"
    assert "last" not in removed(model, 1, 1, 4, 4, method=L1Filter(residual="skip"), remove=0.3)


def test_the_last_layer_of_a_bottleneck_is_no_projection_but_the_shortcut_is():
    class Bottleneck(nn.Module):
        def __init__(self, *, is_pooled):
            super().__init__()
            self.stem, self.first, self.last = (nn.Conv2d(i, o, 1, bias=False) for i, o in ((1, 2), (2, 2), (2, 4)))
            self.pool = nn.AvgPool2d(2) if is_pooled else nn.Identity()
            self.shortcut = nn.Conv2d(2, 4, 1, bias=False)
            self.middle = nn.Conv2d(2, 2, 3, padding=1, stride=2 if is_pooled else 1)
            self.head = nn.Conv2d(4, 1, 1)
            self.last.weight.data = torch.tensor([[1.0, 1.0], [2.0, 2.0], [3.0, 3.0], [4.0, 4.0]]).view(4, 2, 1, 1)
            self.shortcut.weight.data = self.last.weight.data.flip(0).clone()

        def forward(self, x):
            x = F.relu(self.stem(x))
            branch = self.last(F.relu(self.middle(F.relu(self.first(x)))))
            return self.head(F.relu(branch + self.shortcut(self.pool(x))))

    for is_pooled in (False, True):
        model = Bottleneck(is_pooled=is_pooled)
        assert removed(model, 1, 1, 4, 4, method=L1Filter(allocation={"last": 1.0}), remove=0.2) == {"last": (2, 3)}


def test_weights_that_make_the_same_channels_are_added_up():
    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            self.gate, self.up, self.down = nn.Linear(1, 2), nn.Linear(1, 2), nn.Linear(2, 1)
            self.gate.weight.data, self.up.weight.data = torch.tensor([[1.0], [2.0]]), torch.tensor([[5.0], [3.0]])

        def forward(self, x):
            return self.down(F.silu(self.gate(x)) * self.up(x))

    decision = L1Filter().decide(problem(Gated(), 1, 1))
    assert decision.scores["gate"].tolist() == [6.0, 5.0]
    assert decision.plan.removed("gate") == (1,)


def test_choosing_once_is_not_changed_by_what_else_goes():
    """Prune once and retrain: scores come from the whole trained weights, whatever the budget."""
    model = chain([[3.0], [1.0], [2.0], [4.0]], [[1.0, 2.0, 3.0, 4.0]] * 3 + [[9.0, 0.0, 0.0, 0.0]], [[1.0] * 4])
    decisions = [L1Filter().decide(problem(model, 1, 1, 1, 1, remove=r)) for r in (0.125, 0.5, 0.75)]
    assert all(torch.equal(d.scores["1"], decisions[0].scores["1"]) for d in decisions)
    gone = [set(d.plan.removed("0")) for d in decisions]
    assert gone[0] <= gone[1] <= gone[2]


# -- the paper's networks -------------------------------------------------------------------------------------------


IMAGE = torch.zeros(1, 3, 32, 32)


@functools.cache
def traced(make):
    model = make()
    return model, trace(model, IMAGE)


def plan_of(model, graph, counts):
    """Remove so many channels of each named layer."""
    widths = {path: model.get_submodule(path).out_channels for path in counts}
    allocation = {path: count / widths[path] for path, count in counts.items()}
    budget = Budget(sum(counts.values()) / graph.channel_count)
    plan = L1Filter(allocation=allocation).decide(Problem(model, graph, budget, Limits(), (IMAGE,))).plan
    assert {n: len(plan.removed(n)) for n in plan if plan.removed(n)} == {n: c for n, c in counts.items() if c}
    return plan


def test_vgg16_a_is_reproduced_with_its_counts():
    model = vgg16_bn(hidden_width=512)
    convs = [name for name, module in model.named_modules() if isinstance(module, nn.Conv2d)]
    halved = {path: model.get_submodule(path).out_channels // 2 for path in (convs[0], *convs[7:13])}
    graph = trace(model, IMAGE)
    plan = plan_of(model, graph, halved)
    before, after = graph.costs(), graph.costs(plan)
    linear = 256 * 512 + 512 * 10
    assert (before.macs, before.params) == (313_463_808, 14_987_722)
    assert (after.macs, after.params) == (206_143_488 + linear, 5_397_034)
    small, reference = shrink(model, graph, plan), vgg16_bn_a(hidden_width=512)
    shapes = [{n: t.shape for n, t in m.state_dict().items()} for m in (small, reference)]
    assert shapes[0] == shapes[1]


STAGES = {56: 9, 110: 18}
PAPER = {  # depth -> kept widths of the pruned inner layers per stage, blocks left whole, MACs, parameters
    "ResNet-56-A": (56, (14, 28, 57), (16, 20, 38, 54), 112_435_840, 773_336),
    "ResNet-56-B": (56, (6, 22, 57), (16, 18, 20, 34, 38, 54), 90_907_264, 735_712),
    "ResNet-110-A": (110, (8, 32, 64), (36,), 212_779_648, 1_688_522),
    "ResNet-110-B": (110, (8, 19, 44), (36, 38, 74), 155_124_352, 1_168_424),
}


@pytest.mark.parametrize("name", PAPER)
def test_the_residual_networks_of_the_paper_are_reproduced_with_their_counts(name):
    depth, widths, whole, macs, params = PAPER[name]
    blocks = STAGES[depth]
    counts = {}
    for block in range(3 * blocks):
        stage, number = divmod(block, blocks)
        if 2 * block + 2 not in whole:  # the paper numbers convolutions from 1, the stem first
            counts[f"stages.{stage}.{number}.conv1"] = (16, 32, 64)[stage] - widths[stage]
    model, graph = traced(resnet56 if depth == 56 else resnet110)
    plan = plan_of(model, graph, counts)
    assert graph.costs(plan).macs == macs
    assert graph.costs(plan).params == params


def test_the_networks_before_have_the_published_counts():
    for make, macs, params in ((resnet56, 125_485_696, 853_018), (resnet110, 252_887_680, 1_727_962)):
        found = traced(make)[1].costs()
        assert (found.macs, found.params) == (macs, params)


# -- bad settings ---------------------------------------------------------------------------------------------------


def test_unknown_settings_are_refused():
    with pytest.raises(MethodError, match="selection='greedily': expected 'independent' or 'greedy'"):
        L1Filter(selection="greedily")
    with pytest.raises(MethodError, match="cannot rank them"):
        L1Filter(selection="greedy", allocation="global")
    with pytest.raises(MethodError, match="residual='keep': expected one of projection, skip, prune"):
        removed(GREEDY, 1, 1, 1, 1, method=L1Filter(residual="keep"))
    with pytest.raises(MethodError, match="allocation='even'"):
        removed(GREEDY, 1, 1, 1, 1, method=L1Filter(allocation="even"))


def test_an_allocation_names_layers_that_exist_and_fractions():
    with pytest.raises(UnknownName, match="'00'"):
        removed(GREEDY, 1, 1, 1, 1, method=L1Filter(allocation={"00": 0.5}))
    with pytest.raises(MethodError, match=r"allocation\['0'\]=50: expected a fraction"):
        removed(GREEDY, 1, 1, 1, 1, method=L1Filter(allocation={"0": 50}))
    with pytest.raises(MethodError, match="no group that is free"):
        removed(GREEDY, 1, 1, 1, 1, method=L1Filter(allocation={"0": 0.5}), protect=["0"])


def test_a_network_of_residual_streams_alone_says_what_to_do():
    class Stream(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.block, self.head = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x):
            x = self.stem(x)
            return self.head(x + self.block(x))

    with pytest.raises(NothingToPrune, match="residual='prune'"):
        removed(Stream(), 1, 3)
    assert sum(map(len, removed(Stream(), 1, 3, method=L1Filter(residual="prune")).values())) == 2
