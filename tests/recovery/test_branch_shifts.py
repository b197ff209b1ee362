"""What a removed branch adds on average is kept where a parameter nearby adds to the same sum."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from secateur import Plan, shrink, trace
from secateur.recovery.fold import fold_constants

from .. import residual_models as models


def constant(norm):
    """Turn a normalisation into a constant per channel."""
    with torch.no_grad():
        norm.weight.zero_()


@torch.no_grad()
def folded_and_plain(model, example, *names):
    graph = trace(model, example)
    plan = Plan(removed_branches=names)
    return (
        shrink(fold_constants(model, graph, plan), graph, plan)(example),
        shrink(model, graph, plan)(example),
        model(example),
    )


def test_a_constant_branch_beside_a_projection_leaves_without_a_trace():
    model, example = models.made(models.post_activation)
    constant(model.blocks[1].bn2)
    folded, plain, wanted = folded_and_plain(model, example, "blocks.1")
    torch.testing.assert_close(folded, wanted)
    assert (plain - wanted).abs().max() > 1e-3


class Chain(nn.Module):
    """Two branches that end in batch norm, added up with nothing between; the second reads what the first added to."""

    def __init__(self, *, is_read_elsewhere: bool = False):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 1)
        self.one, self.two = (nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)) for _ in range(2))
        self.is_read_elsewhere = is_read_elsewhere

    def forward(self, x):
        x = self.stem(x)
        x = x + self.one(x)
        y = x + self.two(x)
        return (y, x * 2) if self.is_read_elsewhere else y


def test_the_branch_before_takes_up_what_a_constant_one_adds():
    torch.manual_seed(0)
    model, example = Chain().eval(), torch.randn(2, 3, 4, 4)
    constant(model.two[1])
    nn.init.normal_(model.two[1].bias)
    folded, plain, wanted = folded_and_plain(model, example, "two")
    torch.testing.assert_close(folded, wanted)
    assert (plain - wanted).abs().max() > 1e-3


@pytest.mark.parametrize("kind", ["behind an activation", "read elsewhere"])
def test_where_nothing_can_take_it_up_it_is_told(kind, caplog):
    if kind == "read elsewhere":
        model, example, name = Chain(is_read_elsewhere=True).eval(), torch.randn(2, 3, 4, 4), "two"
        nn.init.ones_(model.two[1].bias)
    else:
        (model, example), name = models.made(models.post_activation), "blocks.0"
        model.blocks.insert(0, models.PostActivation().eval())
        name = "blocks.1"
        nn.init.ones_(model.blocks[1].bn2.bias)
    graph = trace(model, example)
    fold_constants(model, graph, Plan(removed_branches=(name,)))
    assert f"{name}: what this branch adds on average is lost" in caplog.text
