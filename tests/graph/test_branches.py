"""Residual branches: what is found, by which names, and why some cannot be removed."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn

from secateur import Plan
from secateur.graph import trace

from .. import residual_models as models


def branches(build):
    model, example = models.made(build)
    return trace(model, example).branches


def test_a_basic_block_is_a_branch_and_its_projection_is_not():
    found = branches(models.post_activation)
    assert list(found) == ["blocks.0", "blocks.1"]
    assert found["blocks.1"].modules == tuple(f"blocks.1.{name}" for name in ("conv1", "bn1", "conv2", "bn2"))
    assert found["blocks.1"].switch == ("blocks.1.bn2.weight", "blocks.1.bn2.bias")


def test_a_preactivation_that_the_projection_reads_is_not_part_of_the_branch():
    found = branches(models.pre_activation)
    assert "blocks.0.bn1" in found["blocks.0"].modules
    assert "blocks.1.bn1" not in found["blocks.1"].modules


def test_attention_and_feed_forward_are_a_branch_each():
    found = branches(models.norm_first)
    assert list(found)[:2] == ["encoder.layers.0.self_attn", "encoder.layers.0"]
    assert found["encoder.layers.0"].modules == tuple(f"encoder.layers.0.{n}" for n in ("norm2", "linear1", "linear2"))


def test_a_scale_of_the_block_is_what_turns_its_branch_off():
    found = branches(models.convnext)
    assert [branch.switch for branch in found.values()] == [("blocks.0.scale",), ("blocks.1.scale",)]
    assert all(branch.is_proportional and not branch.obstacle for branch in found.values())


class Sum(nn.Module):
    def __init__(self, branch, around=None, after=None):
        super().__init__()
        self.branch, self.around, self.after = branch, around or nn.Identity(), after or nn.Identity()

    def forward(self, x):
        return self.around(x) + self.after(self.branch(x))


def test_two_convolutions_side_by_side_are_no_branch():
    assert trace(Sum(nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)), torch.zeros(1, 3, 4, 4)).branches == {}


def test_what_is_computed_from_other_inputs_is_no_branch():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1)

        def forward(self, x, y):
            return x + self.conv(y)

    assert trace(Two(), (torch.zeros(1, 3, 4, 4), torch.zeros(1, 3, 4, 4))).branches == {}


def test_a_sigmoid_at_the_end_is_named_as_the_obstacle():
    (branch,) = trace(Sum(nn.Conv2d(3, 3, 1), after=nn.Sigmoid()), torch.zeros(1, 3, 4, 4)).branches.values()
    assert "sigmoid in after follows its last parameter" in branch.obstacle


def test_behind_a_relu_a_branch_is_zero_where_its_switch_is_but_not_proportional_to_it():
    (branch,) = trace(Sum(nn.Conv2d(3, 3, 1), after=nn.SiLU()), torch.zeros(1, 3, 4, 4)).branches.values()
    assert not branch.obstacle
    assert not branch.is_proportional


class OwnAttention(nn.Module):
    """Attention written into the block that adds it."""

    def __init__(self):
        super().__init__()
        self.q, self.out = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        q = self.q(x)
        return x + self.out(torch.softmax(q @ q.transpose(1, 2), -1) @ q)


class SharedConv(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)

    def forward(self, x):
        x = x + self.conv(x)
        return x + self.conv(x)


class UsedTwice(nn.Module):
    """What the branch computes is also an output of its own."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)

    def forward(self, x):
        found = self.conv(x)
        return x + found, found


@pytest.mark.parametrize(
    ("model", "shape", "why"),
    [
        (OwnAttention(), (1, 5, 4), "the model, which also does other work, runs a product of it"),
        (SharedConv(), (1, 3, 4, 4), "which also does other work|is also used by"),
    ],
)
def test_a_branch_that_cannot_go_says_why(model, shape, why):
    found = trace(model, torch.zeros(shape)).branches
    assert found
    assert all(re.search(why, branch.obstacle) for branch in found.values())


def test_what_something_else_reads_too_is_no_branch():
    assert trace(UsedTwice(), torch.zeros(1, 3, 4, 4)).branches == {}


def test_writing_in_place_through_a_view_counts_as_reading():
    class Written(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1)

        def forward(self, x):
            x = x * 1
            found = self.conv(x)
            x.view(-1).add_(found.view(-1))  # x itself is changed: nothing is left of a shortcut around it
            return x + found

    assert trace(Written(), torch.zeros(1, 3, 4, 4)).branches == {}


class Bottleneck(nn.Module):
    """A pre-activation bottleneck of ResNet-50 v2, with the stride on its 3x3 convolution."""

    def __init__(self, inputs: int, width: int, stride: int):
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(inputs), nn.Conv2d(inputs, width, 1, bias=False)
        self.bn2, self.conv2 = nn.BatchNorm2d(width), nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn3, self.conv3 = nn.BatchNorm2d(width), nn.Conv2d(width, 4 * width, 1, bias=False)
        is_first = stride > 1 or inputs != 4 * width
        self.project = nn.Conv2d(inputs, 4 * width, 1, stride, bias=False) if is_first else None

    def forward(self, x):
        active = self.bn1(x).relu()
        out = self.conv3(self.bn3(self.conv2(self.bn2(self.conv1(active)).relu())).relu())
        return out + (x if self.project is None else self.project(active))


def resnet50_v2():
    blocks, inputs = [], 64
    for width, count, stride in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
        for number in range(count):
            blocks.append(Bottleneck(inputs, width, stride if number == 0 else 1))
            inputs = 4 * width
    stem = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    end = [nn.BatchNorm2d(2048), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2048, 1000)]
    return nn.Sequential(nn.Sequential(*stem), nn.Sequential(*blocks), nn.Sequential(*end))


def test_resnet_41_of_the_paper_has_the_size_that_is_printed():
    """Huang and Wang 2018: ResNet-50 without the blocks of its first stage has 25.3 M parameters and 3.47 G MACs."""
    with torch.device("meta"):
        model, example = resnet50_v2(), torch.zeros(1, 3, 224, 224)
    graph = trace(model, example)
    assert len(graph.branches) == 16
    costs = graph.costs(Plan(removed_branches=("1.0", "1.1", "1.2")))
    assert costs.params / 1e6 == pytest.approx(25.35, abs=0.005)
    assert costs.macs / 1e9 == pytest.approx(3.473, abs=0.0005)
