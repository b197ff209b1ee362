"""Which normalisation stands behind which layer, on architectures that a look at neighbouring modules gets wrong."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from secateur.graph import trace
from secateur.graph.norms import Flow


def flow_of(model, *shape):
    graph = trace(model, torch.zeros(shape))
    return graph, Flow(graph)


def behind(model, *shape):
    """Gain -> weights that it is the first to scale, for the groups that it belongs to."""
    graph, flow = flow_of(model, *shape)
    return {
        norm.gain: flow.weights_behind(group, norm) for group in graph.groups.values() for norm in flow.norms_on(group)
    }


@pytest.mark.parametrize(
    "norm",
    [nn.BatchNorm2d(4), nn.InstanceNorm2d(4, affine=True), nn.GroupNorm(2, 4), nn.GroupNorm(1, 4)],
    ids=["batch", "instance", "group", "group of one"],
)
def test_every_kind_of_norm_over_images_is_known_by_its_gain_and_shift(norm):
    model = nn.Sequential(nn.Conv2d(3, 4, 1), norm, nn.ReLU(), nn.Conv2d(4, 2, 1))
    graph, flow = flow_of(model, 2, 3, 4, 4)
    assert [(n.gain, n.shift) for n in flow.norms_on(graph.groups["0"])] == [("1.weight", "1.bias")]
    assert behind(model, 2, 3, 4, 4) == {"1.weight": {"0.weight"}}


def test_a_layer_norm_is_known_and_one_that_is_written_out_is_not():
    for norm, wanted in ((nn.LayerNorm(4), [("1.weight", "1.bias")]), (nn.RMSNorm(4), [])):
        graph, flow = flow_of(nn.Sequential(nn.Linear(3, 4), norm, nn.Linear(4, 2)), 2, 3)
        assert [(n.gain, n.shift) for n in flow.norms_on(graph.groups["0"])] == wanted


def test_a_norm_without_gain_is_none():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, affine=False), nn.Conv2d(4, 2, 1))
    assert flow_of(model, 2, 3, 4, 4)[1].norms == []


def test_a_norm_behind_a_depthwise_convolution_is_not_behind_the_layer_before_it():
    model = nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU6(inplace=True), nn.Conv2d(4, 4, 3, groups=4), nn.BatchNorm2d(4),
        nn.ReLU6(inplace=True), nn.Conv2d(4, 2, 1),
    )  # fmt: skip
    assert behind(model, 1, 3, 8, 8) == {"1.weight": {"0.weight"}, "4.weight": {"3.weight"}}


class Residual(nn.Module):
    def __init__(self, *, is_pre):
        super().__init__()
        self.is_pre = is_pre
        self.stem, self.one, self.two = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 5, 1), nn.Conv2d(5, 4, 1)
        self.norm1, self.norm2, self.norm3 = nn.BatchNorm2d(4), nn.BatchNorm2d(5), nn.BatchNorm2d(4)
        self.head = nn.Conv2d(4, 2, 1)

    def forward(self, x):
        x = self.stem(x)
        if self.is_pre:
            x = x + self.two(F.relu(self.norm2(self.one(F.relu(self.norm1(x))))))
            return self.head(F.relu(self.norm3(x)))
        x = F.relu(self.norm1(x))
        return self.head(F.relu_(self.norm3(self.two(F.relu(self.norm2(self.one(x))))) + x))


def test_a_norm_on_a_residual_stream_is_behind_everything_that_was_added_up():
    assert behind(Residual(is_pre=True), 1, 3, 4, 4) == {
        "norm1.weight": {"stem.weight"},
        "norm2.weight": {"one.weight"},
        "norm3.weight": {"stem.weight", "two.weight"},
    }
    assert behind(Residual(is_pre=False), 1, 3, 4, 4) == {
        "norm1.weight": {"stem.weight"},
        "norm2.weight": {"one.weight"},
        "norm3.weight": {"two.weight"},
    }


def test_what_a_reader_reads_comes_from_the_last_norms_of_every_branch():
    for is_pre, wanted in ((False, {"one": {"norm1"}, "head": {"norm1", "norm3"}}), (True, {"head": {"norm3"}})):
        graph, flow = flow_of(Residual(is_pre=is_pre), 1, 3, 4, 4)
        gains = {norm.op: norm.gain.removesuffix(".weight") for norm in flow.norms}
        for product in flow.products:
            if product.module in wanted:
                found = flow.behind(graph.groups["stem"], product.source, product.op.index)
                assert {gains[k] for k in found} == wanted[product.module]


def test_a_norm_on_joined_branches_is_behind_the_branch_of_the_group():
    class Joined(nn.Module):
        def __init__(self):
            super().__init__()
            self.left, self.right = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 5, 1)
            self.norm, self.head = nn.BatchNorm2d(9), nn.Conv2d(9, 2, 1)

        def forward(self, x):
            return self.head(self.norm(torch.cat([self.left(x), self.right(x)], dim=1)))

    graph, flow = flow_of(Joined(), 1, 3, 4, 4)
    found = {name: flow.weights_behind(group, flow.norms_on(group)[0]) for name, group in graph.groups.items()}
    assert found == {"left": {"left.weight"}, "right": {"right.weight"}}


def test_a_table_of_embeddings_makes_channels_as_a_layer_does():
    model = nn.Sequential(nn.Embedding(7, 4), nn.LayerNorm(4), nn.Linear(4, 2))
    graph = trace(model, torch.zeros(1, 3, dtype=torch.long))
    flow = Flow(graph)
    assert flow.weights_behind(graph.groups["0"], flow.norms[0]) == {"0.weight"}
