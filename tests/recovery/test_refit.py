"""Re-fitting: what is left stands in for what is gone, exactly where that is possible, on any architecture."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from secateur import Plan, mask, shrink, trace, verify
from secateur.errors import MethodError
from secateur.recovery.moments import ProductMoments, Sampling
from secateur.recovery.refit import Refit, fitted_kernel, refit
from secateur.train import ClassificationTask

from ..contract.cases import CASES

TASK = ClassificationTask()
DOUBLE = torch.float64
EXACT = Refit(ridge=0.0, sampling=Sampling(rows_per_sample=None, max_samples=None))


def data(*shape, batches=3):
    generator = torch.Generator().manual_seed(3)
    return [(torch.randn(shape, generator=generator, dtype=DOUBLE), None) for _ in range(batches)]


def with_twins(model, graph, name, one, other):
    """Make one channel of a group the other's double: all that makes it is copied."""
    with torch.no_grad():
        for member in graph.groups[name].members:
            if member.role == "out":
                tensor = model.state_dict()[member.tensor]
                tensor[other] = tensor[one]
    return model


class Grouped(nn.Module):
    def __init__(self):
        super().__init__()
        self.enter, self.norm = nn.Conv2d(2, 8, 3, bias=False), nn.BatchNorm2d(8)
        self.grouped = nn.Conv2d(8, 6, 3, groups=2)

    def forward(self, x):
        return self.grouped(torch.relu(self.norm(self.enter(x))))


class SharedReader(nn.Module):
    """One linear layer that reads the same channels twice."""

    def __init__(self):
        super().__init__()
        self.enter, self.read = nn.Linear(3, 6), nn.Linear(6, 4)

    def forward(self, x):
        hidden = torch.relu(self.enter(x))
        return self.read(hidden) + 2 * self.read(torch.relu(self.enter(-x)))


MODELS = {
    "conv": (lambda: nn.Sequential(nn.Conv2d(2, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3, padding=1)), (2, 6, 6), "0"),
    "flattened": (
        lambda: nn.Sequential(nn.Conv2d(2, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 16, 3)),
        (2, 6, 6),
        "0",
    ),
    "transposed": (
        lambda: nn.Sequential(nn.Conv2d(2, 6, 3), nn.ReLU(), nn.ConvTranspose2d(6, 4, 3, stride=2)),
        (2, 6, 6),
        "0",
    ),
    "shared": (SharedReader, (3,), "enter"),
}


@pytest.mark.parametrize("kind", MODELS)
def test_a_twin_takes_over_exactly(kind):
    make, shape, name = MODELS[kind]
    torch.manual_seed(0)
    model = make().double().eval()
    batches = data(48, *shape)
    graph = trace(model, batches[0][0])
    with_twins(model, graph, name, 1, 4)
    plan = Plan.from_removed({name: [4]}, graph.widths)
    small = shrink(refit(model, graph, plan, batches, TASK, how=Refit(ridge=1e-12)), graph, plan)
    fresh = data(5, *shape, batches=4)[-1][0]
    torch.testing.assert_close(small(fresh), model(fresh), rtol=1e-6, atol=1e-7)
    unrepaired = shrink(model, graph, plan)
    assert (unrepaired(fresh) - model(fresh)).abs().max() > 1e-2


def test_twins_in_every_block_of_a_grouped_convolution_take_over():
    torch.manual_seed(0)
    model, batches = Grouped().double().eval(), data(16, 2, 6, 6)
    graph = trace(model, batches[0][0])
    name = next(iter(graph.groups))  # channels j and j + 4 go together
    with torch.no_grad():
        for tensor in (model.enter.weight, model.norm.weight, model.norm.bias):
            tensor[[3, 7]] = tensor[[1, 5]]
    plan = Plan.from_removed({name: [3]}, graph.widths)
    small = shrink(refit(model, graph, plan, batches, TASK, how=Refit(ridge=1e-12)), graph, plan)
    assert small.grouped.in_channels == 6
    torch.testing.assert_close(small(batches[0][0]), model(batches[0][0]), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_the_output_of_any_architecture_comes_closer(case):
    """Half of every group is gone; the repaired network is nearer to the original on data that it was fitted on."""
    model, batches = case.model(DOUBLE), case.data(DOUBLE)
    graph = case.graph_in(DOUBLE)
    plan = Plan.from_removed({n: range(0, g.width, 2) for n, g in graph.groups.items()}, graph.widths)
    repaired = refit(model, graph, plan, batches, TASK, how=Refit(sampling=EXACT.sampling))
    small = shrink(repaired, graph, plan)
    images = torch.cat([batch for batch, _ in batches])
    assert verify(repaired, small, plan, images[:2]).is_exact
    gap = {key: (net(images) - model(images)).square().mean() for key, net in
           {"cut": shrink(model, graph, plan), "repaired": small}.items()}  # fmt: skip
    assert gap["repaired"] < 0.8 * gap["cut"]


@pytest.mark.parametrize("has_norm", [True, False])
def test_the_mean_of_what_went_stays_in_the_bias_or_the_running_mean(has_norm):
    """The removed channel is a constant, 3: nothing but an intercept can replace it."""
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(4).double().eval() if has_norm else nn.Identity()
    model = nn.Sequential(nn.Conv2d(2, 5, 1), nn.ReLU(), nn.Conv2d(5, 4, 1, bias=not has_norm), norm).double().eval()
    with torch.no_grad():
        model[0].weight[2] = 0
        model[0].bias[2] = 3
    batches = data(8, 2, 4, 4)
    graph = trace(model, batches[0][0])
    plan = Plan.from_removed({"0": [2]}, graph.widths)
    small = shrink(refit(model, graph, plan, batches, TASK, how=Refit(ridge=1e-9)), graph, plan)
    torch.testing.assert_close(small(batches[0][0]), model(batches[0][0]), rtol=1e-6, atol=1e-6)
    if has_norm:
        assert small[2].bias is None


def test_later_layers_make_up_for_earlier_ones():
    """Fitted to the pruned network's own activations the end is nearer than fitted layer by layer to the original's."""
    case = CASES["plain"]
    model, batches, graph = case.model(DOUBLE), case.data(DOUBLE), case.graph_in(DOUBLE)
    plan = Plan.from_removed({n: range(0, g.width, 2) for n, g in graph.groups.items()}, graph.widths)
    images = torch.cat([batch for batch, _ in batches])
    gaps = []
    for is_asymmetric in (True, False):
        how = Refit(is_asymmetric=is_asymmetric, sampling=EXACT.sampling)
        small = shrink(refit(model, graph, plan, batches, TASK, how=how), graph, plan)
        gaps.append((small(images) - model(images)).square().mean())
    assert gaps[0] < gaps[1]


class Residual(nn.Module):
    """A sum of a stream that is cut and a branch of its own width."""

    def __init__(self):
        super().__init__()
        self.enter, self.narrow, self.widen = nn.Linear(4, 8), nn.Linear(8, 5), nn.Linear(8, 6)
        self.mix, self.leave = nn.Linear(6, 5), nn.Linear(5, 3)

    def forward(self, x):
        stream = torch.relu(self.enter(x))
        return self.leave(torch.relu(self.narrow(stream) + self.mix(torch.relu(self.widen(stream)))))


def test_a_branch_makes_up_for_what_the_shortcut_beside_it_lost():
    """`mix` cannot give back what `narrow` lost of the stream unless it is asked for it; the sum is then nearer."""
    torch.manual_seed(2)
    model, batches = Residual().double(), data(200, 4)
    graph = trace(model, batches[0][0])
    plan = Plan.from_removed({"enter": [0, 1, 2], "widen": [0]}, graph.widths)
    gaps = []
    for restores in (True, False):
        how = Refit(ridge=1e-9, sampling=EXACT.sampling, restores_sums=restores)
        small = shrink(refit(model, graph, plan, batches, TASK, how=how), graph, plan)
        gaps.append(sum(float((small(x) - model(x)).detach().square().mean()) for x, _ in batches))
    assert gaps[0] < gaps[1]
    assert Refit().restores_sums


def test_the_ridge_pulls_towards_the_weights_as_they_were():
    torch.manual_seed(0)
    x = torch.randn(1, 40, 3, dtype=DOUBLE)
    old, true = torch.randn(1, 2, 3, dtype=DOUBLE), torch.randn(1, 2, 3, dtype=DOUBLE)
    moments = ProductMoments()
    moments.add(x, x @ true.transpose(1, 2))
    free, _ = fitted_kernel(moments, old, ridge=0.0, has_intercept=False)
    torch.testing.assert_close(free, true)
    tight, _ = fitted_kernel(moments, old, ridge=1e9, has_intercept=False)
    torch.testing.assert_close(tight, old)
    gram = moments.second[0] + 0.5 * moments.second[0].diagonal().mean() * torch.eye(3, dtype=DOUBLE)
    wanted = torch.linalg.solve(gram, moments.cross[0] + (gram - moments.second[0]) @ old[0].T).T
    torch.testing.assert_close(fitted_kernel(moments, old, ridge=0.5, has_intercept=False)[0][0], wanted)


def test_directions_without_data_keep_their_weights():
    """A dead input says nothing of its weight."""
    x = torch.randn(1, 20, 3, dtype=DOUBLE, generator=torch.Generator().manual_seed(0))
    x[..., 1] = 0
    moments = ProductMoments()
    moments.add(x, x @ torch.ones(1, 3, 2, dtype=DOUBLE))
    fitted, _ = fitted_kernel(moments, torch.full((1, 2, 3), 7.0), ridge=1e-6, has_intercept=False)
    assert fitted[0, :, 1].tolist() == [7.0, 7.0]
    torch.testing.assert_close(fitted[0, :, 0], torch.ones(2, dtype=DOUBLE), rtol=1e-4, atol=1e-4)


def test_nothing_is_changed_and_a_whole_plan_changes_nothing():
    case = CASES["residual"]
    model, batches = case.model(), case.data()
    before = copy.deepcopy(model.state_dict())
    same = refit(model, case.graph, Plan(), batches, TASK)
    assert all(torch.equal(before[k], v) for k, v in same.state_dict().items())
    name = next(iter(case.graph.groups))
    refit(model, case.graph, Plan.from_removed({name: [0]}, case.graph.widths), batches, TASK)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_weights_of_removed_channels_do_not_matter_to_the_masked_model():
    case = CASES["plain"]
    model, batches, graph = case.model(DOUBLE), case.data(DOUBLE), case.graph_in(DOUBLE)
    plan = Plan.from_removed({n: [0] for n in graph.groups}, graph.widths)
    repaired = refit(model, graph, plan, batches, TASK)
    images = batches[0][0]
    torch.testing.assert_close(mask(repaired, graph, plan)(images), shrink(repaired, graph, plan)(images))


def test_a_layer_too_large_to_solve_is_left_as_it_is(caplog):
    case = CASES["plain"]
    plan = Plan.from_removed({"conv1": [0]}, case.graph.widths)
    model = case.model()
    left = refit(model, case.graph, plan, case.data(), TASK, how=Refit(max_bytes=100))
    assert torch.equal(left.conv2.weight, model.conv2.weight)
    assert "conv2 has 81 columns left" in caplog.text


def test_nan_activations_are_refused():
    case = CASES["plain"]
    batches = case.data()
    batches[1][0][0] = torch.nan
    with pytest.raises(MethodError, match="'conv2' hold NaN"):
        refit(case.model(), case.graph, Plan.from_removed({"conv1": [0]}, case.graph.widths), batches, TASK)


def test_a_negative_ridge_is_refused():
    with pytest.raises(MethodError, match="ridge=-1"):
        Refit(ridge=-1)


@pytest.mark.parametrize("has_norm", [False, True])
def test_a_second_repair_of_the_same_cut_changes_nothing(has_norm):
    """The intercept of a network that was repaired before, by a method of its own say, is not added once more."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 6, 3, bias=not has_norm)]
    net = nn.Sequential(
        *layers, *([nn.BatchNorm2d(6)] if has_norm else []), nn.Flatten(), nn.Linear(6 * 4 * 4, 4)
    ).eval()
    batches = [(torch.randn(32, 3, 8, 8) + 1, None) for _ in range(2)]
    graph = trace(net, batches[0][0][:1])
    plan = Plan.from_removed({"0": range(4)}, graph.widths)
    once = refit(net, graph, plan, batches, TASK, how=Refit(ridge=0), progress=False)
    twice = refit(once, graph, plan, batches, TASK, how=Refit(ridge=0), target=net, progress=False)
    moved = net[3].running_mean if has_norm else net[2].bias
    kept = once[3].running_mean if has_norm else once[2].bias
    assert (kept - moved).abs().max() > 1e-2, "there is an intercept to add"
    torch.testing.assert_close(
        shrink(twice, graph, plan)(batches[0][0]), shrink(once, graph, plan)(batches[0][0]), rtol=1e-3, atol=1e-3
    )
