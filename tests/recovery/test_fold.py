"""Folding: constants that leave with their channels stay in the function, exactly where that is possible."""

from __future__ import annotations

import copy
import logging

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from secateur.errors import PlanError
from secateur.graph import trace
from secateur.plan import Plan
from secateur.recovery.fold import fold_constants
from secateur.surgery.mask import mask
from secateur.surgery.shrink import shrink
from secateur.surgery.verify import verify

DEAD = (1, 4)


def ready(model, *, scale=None, dead=DEAD):
    """Random statistics and affine parameters; the dead channels of each norm of 6 or more scaled by 0."""
    generator = torch.Generator().manual_seed(0)
    model = model.double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.4)
        for norm in (m for m in model.modules() if isinstance(m, _BatchNorm) and m.num_features >= 6):
            norm.running_mean.copy_(torch.randn(norm.num_features, generator=generator))
            norm.running_var.copy_(torch.rand(norm.num_features, generator=generator) + 0.5)
            norm.bias.copy_(torch.randn(norm.num_features, generator=generator).abs() + 0.2)
            if scale is None:
                norm.weight[list(dead)] = 0.0
            else:
                norm.weight.mul_(scale)
    return model


def images(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def cut(model, example, *, dead=DEAD, names=None, fold=True):
    """Cut the dead channels out of every group, after folding."""
    graph = trace(model, example)
    groups = names or [n for n, g in graph.groups.items() if g.width >= 6]
    plan = Plan.from_removed({n: [c for c in dead if c < graph.widths[n]] for n in groups}, graph.widths)
    source = fold_constants(model, graph, plan) if fold else model
    return shrink(source, graph, plan), source, graph, plan


class Branches(nn.Module):
    """Two normalised branches that are added or set side by side."""

    def __init__(self, join):
        super().__init__()
        self.join = join
        self.one, self.two = (nn.Sequential(nn.Conv2d(2, 6, 1), nn.BatchNorm2d(6)) for _ in range(2))
        self.last = nn.Conv2d(6 if join == "add" else 12, 3, 3)

    def forward(self, x):
        one, two = self.one(x), self.two(x)
        joined = one + two if self.join == "add" else torch.cat([one, two], 1)
        return self.last(F.relu(joined))


class PaddedShortcut(nn.Module):
    """Zero channels beside the others, added to a branch, as in a residual network's option A."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(2, 6, 1), nn.BatchNorm2d(6), nn.ReLU())
        self.branch = nn.Sequential(nn.Conv2d(6, 10, 1, stride=2), nn.BatchNorm2d(10))
        self.last = nn.Conv2d(10, 3, 1)

    def forward(self, x):
        x = self.stem(x)
        return self.last(F.relu(self.branch(x) + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2))))


class Tokens(nn.Module):
    """Channels last: batch norm over features, then a linear layer on a strided view, which torch runs as bmm + add."""

    def __init__(self):
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(3, 6), nn.BatchNorm1d(6), nn.Linear(6, 2)

    def forward(self, x):
        normed = F.gelu(self.norm(self.first(x).transpose(1, 2)))
        return self.last(normed.permute(2, 0, 1))


def is_same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


def conv_then(*rest, width=6):
    return nn.Sequential(nn.Conv2d(2, width, 3), nn.BatchNorm2d(width), *rest)


EXACT = {
    "relu": lambda: conv_then(nn.ReLU(), nn.Conv2d(6, 3, 3)),
    "relu in place": lambda: conv_then(nn.ReLU(inplace=True), nn.Conv2d(6, 3, 3)),
    "no activation": lambda: conv_then(nn.Conv2d(6, 3, 2, stride=2, dilation=2)),
    "gelu": lambda: conv_then(nn.GELU(), nn.Conv2d(6, 3, 3)),
    "prelu": lambda: conv_then(nn.PReLU(6), nn.Conv2d(6, 3, 3)),
    "hardswish and dropout": lambda: conv_then(nn.Hardswish(), nn.Dropout2d(), nn.Conv2d(6, 3, 1)),
    "max pool with padding": lambda: conv_then(nn.ReLU(), nn.MaxPool2d(3, 2, padding=1), nn.Conv2d(6, 3, 1)),
    "average pool": lambda: conv_then(nn.ReLU(), nn.AvgPool2d(2), nn.Conv2d(6, 3, 1)),
    "average pool that leaves padding out": lambda: conv_then(
        nn.AvgPool2d(3, padding=1, count_include_pad=False), nn.Conv2d(6, 3, 1)
    ),
    "adaptive pool and linear": lambda: conv_then(
        nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3), nn.Tanh()
    ),
    "flattened map and linear": lambda: conv_then(nn.Sigmoid(), nn.Flatten(), nn.Linear(6 * 64, 3)),
    "norm without bias before it": lambda: conv_then(nn.ReLU(), nn.Conv2d(6, 4, 3, bias=False), nn.BatchNorm2d(4)),
    "two cuts in a row": lambda: conv_then(
        nn.ReLU(), nn.Conv2d(6, 7, 3, bias=False), nn.BatchNorm2d(7), nn.SiLU(), nn.Conv2d(7, 3, 3)
    ),
    "depthwise between": lambda: conv_then(
        nn.ReLU(), nn.Conv2d(6, 6, 3, groups=6, bias=False), nn.BatchNorm2d(6), nn.ReLU6(), nn.Conv2d(6, 3, 1)
    ),
    "depthwise without norm": lambda: conv_then(nn.ReLU(), nn.Conv2d(6, 6, 3, groups=6), nn.Conv2d(6, 3, 1)),
    "transposed": lambda: conv_then(nn.ReLU(), nn.ConvTranspose2d(6, 3, 2, stride=2, padding=0)),
    "added": lambda: Branches("add"),
    "side by side": lambda: Branches("cat"),
    "zero channels beside": PaddedShortcut,
}


@pytest.mark.parametrize("name", EXACT)
def test_constants_are_folded_exactly(name):
    model, example = ready(EXACT[name]()), images(2, 2, 10, 10)
    if name == "transposed":  # every output position has to see the same sum of taps
        model[-1].weight.data[:] = model[-1].weight.data.mean(dim=(2, 3), keepdim=True)
    if name == "zero channels beside":  # the stem's channels 1 and 4 are added to the branch's 3 and 6
        model.branch[1].weight.data[[3, 6]] = 0.0
    small, folded, graph, plan = cut(model, example, names=["stem.0"] if name == "zero channels beside" else None)
    assert plan.removed_count >= 2
    torch.testing.assert_close(small(example), model(example), rtol=0, atol=1e-12)
    plain = shrink(model, graph, plan)
    assert (plain(example) - model(example)).abs().max() > 1e-3, "the toy would pass without folding"
    torch.testing.assert_close(mask(folded, graph, plan)(example), model(example), rtol=0, atol=1e-12)


def test_grouped_consumers_fold_within_their_group():
    model = ready(conv_then(nn.ReLU(), nn.Conv2d(6, 4, 3, groups=2)), dead=(1, 4))
    example = images(2, 2, 8, 8)
    small, *_ = cut(model, example, dead=(1,), names=["0"])  # channels 1 and 4 are one: groups stay equal
    assert small[3].weight.shape == (4, 2, 3, 3)
    torch.testing.assert_close(small(example), model(example), rtol=0, atol=1e-12)


def test_a_linear_layer_on_a_strided_view_is_a_consumer_too():
    model, example = ready(Tokens()), images(4, 5, 3)
    small, *_ = cut(model, example)
    torch.testing.assert_close(small(example), model(example), rtol=0, atol=1e-12)


def test_with_zero_padding_the_interior_is_exact_and_the_border_is_not():
    model, example = ready(conv_then(nn.ReLU(), nn.Conv2d(6, 3, 3, padding=1))), images(2, 2, 10, 10)
    small, *_ = cut(model, example)
    gap = (small(example) - model(example)).detach().abs()
    assert gap[:, :, 1:-1, 1:-1].max() < 1e-12
    assert gap[:, :, 0].max() > 1e-3


def test_the_expectation_of_relu_is_the_closed_form():
    scale, shift = torch.tensor([2.0, -0.5, 0.01, 0.0, 0.0]), torch.tensor([0.3, -0.2, 1.0, 0.7, -0.7])
    model = nn.Sequential(nn.Conv2d(1, 5, 1), nn.BatchNorm2d(5), nn.ReLU(), nn.Conv2d(5, 4, 1)).double().eval()
    model[1].weight.data, model[1].bias.data = scale.double(), shift.double()
    _, folded, *_ = cut(model, images(1, 1, 2, 2), dead=(0, 1, 2, 3), names=["0"])
    normal = torch.distributions.Normal(0.0, 1.0)
    g, b = scale.double().abs()[:3], shift.double()[:3]
    expected = torch.cat([g * normal.log_prob(b / g).exp() + b * normal.cdf(b / g), torch.tensor([0.7])])
    contribution = model[3].weight.detach()[:, :4, 0, 0] @ expected.double()
    torch.testing.assert_close(folded[3].bias, model[3].bias + contribution, rtol=0, atol=2e-5)


@pytest.mark.parametrize("activation", [nn.ReLU(), nn.GELU(), nn.Hardswish(), nn.ReLU6()])
def test_the_expectation_agrees_with_sampling(activation):
    model = ready(nn.Sequential(nn.BatchNorm1d(8), activation, nn.Linear(8, 3)), scale=3.0)
    norm = model[0]
    deviates = torch.randn(400_000, 8, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    sample = activation(norm.bias + deviates * norm.weight).mean(dim=0).detach()

    class Gated(nn.Module):  # a linear layer in front, so that the norm's channels form a group
        def __init__(self):
            super().__init__()
            self.first, self.rest = nn.Linear(2, 8).double(), model

        def forward(self, x):
            return self.rest(self.first(x))

    _, folded, *_ = cut(Gated().eval(), images(4, 2), dead=range(7))
    expected = model[2].bias + model[2].weight[:, :7] @ sample[:7]
    torch.testing.assert_close(folded.rest[2].bias, expected, rtol=0, atol=0.02)


def test_a_cut_loses_less_when_the_scales_are_small():
    model, example = ready(conv_then(nn.ReLU(), nn.Conv2d(6, 3, 3)), scale=0.2), images(4, 2, 10, 10)
    gaps = {f: (cut(model, example, fold=f)[0](example) - model(example)).square().mean() for f in (True, False)}
    assert gaps[True] < 0.3 * gaps[False]


def test_a_sum_with_an_unknown_summand_is_left_alone():
    class Residual(Branches):
        def __init__(self):
            super().__init__("add")
            self.two = nn.Conv2d(2, 6, 1)

    model, example = ready(Residual()), images(2, 2, 8, 8)
    _, folded, *_ = cut(model, example)
    assert is_same(model, folded)


def test_memory_written_through_a_view_is_unknown():
    class Overwritten(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.norm, self.last = nn.Conv2d(2, 6, 1), nn.BatchNorm2d(6), nn.Conv2d(6, 3, 1)

        def forward(self, x):
            normed = self.norm(self.first(x))
            normed.view(-1).mul_(2.0)
            return self.last(normed)

    model, example = ready(Overwritten()), images(1, 2, 4, 4)
    graph = trace(model, example)
    plan = Plan.from_removed({n: [1] for n in graph.groups}, graph.widths)
    folded = fold_constants(model, graph, plan)
    assert torch.equal(folded.last.bias, model.last.bias)


@pytest.mark.parametrize("is_shared", [False, True])
def test_consumers_that_cannot_take_it_are_named_and_left(is_shared, caplog):
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = conv_then(nn.ReLU()), conv_then(nn.ReLU())
            self.last = nn.Conv2d(6, 3, 1, bias=is_shared)

        def forward(self, x):
            return self.last(self.one(x)) - self.last(self.two(x)) if is_shared else self.last(self.one(x))

    model, example = ready(Twice()), images(1, 2, 6, 6)
    with caplog.at_level(logging.WARNING):
        _, folded, *_ = cut(model, example)
    assert "could not be folded" in caplog.text
    assert "last" in caplog.text
    assert ("several times" in caplog.text) is is_shared
    assert is_same(model, folded)


def test_the_model_is_not_changed_and_the_copy_keeps_its_kind():
    model = ready(conv_then(nn.ReLU(), nn.Conv2d(6, 3, 3))).bfloat16().train()
    model[0].weight.requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    example = images(1, 2, 8, 8).bfloat16()
    graph = trace(model, example)
    folded = fold_constants(model, graph, Plan.from_removed({"0": DEAD}, graph.widths))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert folded[3].bias.dtype is torch.bfloat16
    assert not torch.equal(folded[3].bias, model[3].bias)
    assert folded.training
    assert not folded[0].weight.requires_grad


def test_nothing_removed_changes_nothing():
    model, example = ready(conv_then(nn.ReLU(), nn.Conv2d(6, 3, 3))), images(1, 2, 8, 8)
    graph = trace(model, example)
    folded = fold_constants(model, graph, Plan())
    assert is_same(model, folded)


def test_a_folded_model_is_cut_exactly():
    model, example = ready(conv_then(nn.ReLU(), nn.Conv2d(6, 3, 3, padding=1)), scale=1.0), images(2, 2, 8, 8)
    small, folded, _, plan = cut(model, example)
    assert verify(folded, small, plan, example).is_exact


def test_weights_without_data_cannot_be_folded():
    with torch.device("meta"):
        model = conv_then(nn.ReLU(), nn.Conv2d(6, 3, 3))
    graph = trace(model, torch.zeros(1, 2, 8, 8, device="meta"))
    with pytest.raises(PlanError, match="meta device"):
        fold_constants(model, graph, Plan.from_removed({"0": [1]}, graph.widths))
