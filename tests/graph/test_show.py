"""The table of groups and the explanations of ties say what is so, and help where a name is wrong."""

import logging
from textwrap import dedent

import pytest
import torch
from torch import nn

from secateur import trace
from secateur.errors import UnknownName
from secateur.surgery.feasible import feasible

from .cases import alibi_constant, constant_meets_channels, residual_with_inner_width, several_inputs, unknown_op


def text(block):
    return dedent(block).strip()


class Net(nn.Module):
    """A residual block between a stem and a head, and a layer that is never used."""

    def __init__(self):
        super().__init__()
        self.stem, self.head, self.unused = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1), nn.Linear(4, 4)
        self.block = nn.Sequential(nn.Conv2d(8, 6, 1, bias=False), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 8, 1))
        self.table = nn.Parameter(torch.zeros(8, 1, 1))

    def forward(self, x):
        x = self.stem(x) * self.table
        return self.head(x + self.block(x))


@pytest.fixture(scope="module")
def graph():
    return trace(Net(), torch.zeros(2, 3, 4, 4))


def test_the_table_lists_groups_costs_and_what_is_frozen(graph):
    assert str(graph) == text(
        """
        group    channels  runs along
        stem            8  stem:out, table:0, block.0:in, block.3:out, head:in
        block.0         6  block.0:out, block.1:out, block.3:in
        2 groups, 14 channels, 4,352 MACs, 194 parameters
        cannot be cut (an output of the model): head:out
        not run on this example, and left as they are: unused
        """
    )


def test_the_table_gives_the_reason_for_every_frozen_layer(caplog):
    with caplog.at_level(logging.ERROR):
        graph = trace(unknown_op.Model(), torch.zeros(2, 3))
    assert str(graph) == text(
        """
        group  channels  runs along
        two           5  two:out, head:in
        1 groups, 5 channels, 116 MACs, 71 parameters
        cannot be cut (secateur_tests::scramble in the model: no rule for it): one:out
        cannot be cut (an output of the model): head:out
        frozen around operations without a rule: secateur_tests.scramble.default in the model
        """
    )


def test_long_lists_are_cut_short():
    net = nn.Sequential(nn.Linear(3, 4), *(nn.Sequential(nn.LayerNorm(4)) for _ in range(9)), nn.Linear(4, 2))
    line = str(trace(net, torch.zeros(2, 3))).splitlines()[1]
    assert line == "0             4  0:out, 1.0:out, 2.0:out, 3.0:out, 4.0:out, 5.0:out, … 5 more"


def test_a_model_without_groups_has_a_table():
    assert str(trace(nn.Linear(3, 2), torch.zeros(1, 3))) == text(
        """
        group  channels  runs along
        0 groups, 0 channels, 6 MACs, 8 parameters
        cannot be cut (an output of the model): weight:out, bias:out
        """
    )


def test_shared_channels_are_explained_by_the_shortest_chain(graph):
    assert graph.explain("stem", "head:in") == text(
        """
        stem:out and head:in share channels (group 'stem', 8 channels):
          stem:out
          - convolution in head -> head:in
        """
    )


def test_a_chain_names_every_place_on_its_way(graph):
    assert graph.explain("block.1", "block.3:in") == text(
        """
        block.1:out and block.3:in share channels (group 'block.0', 6 channels):
          block.1:out
          - batch_norm in block.1 -> block.0:out
          - convolution in block.3 -> block.3:in
        """
    )


def test_layers_of_two_groups_are_told_apart(graph):
    assert graph.explain("stem", "block.0") == (
        "stem and block.0 do not share channels: stem:out is in group 'stem' (8 channels), "
        "block.0:out is in group 'block.0' (6 channels)."
    )


def test_part_of_a_group_is_said_to_be_part():
    class Padded(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.branch, self.head = nn.Linear(3, 4), nn.Linear(4, 6), nn.Linear(6, 2)

        def forward(self, x):
            x = self.stem(x)
            return self.head(self.branch(x) + torch.cat([x, x[:, :2]], dim=1))

    graph = trace(Padded(), torch.zeros(2, 3))
    assert graph.explain("stem", "branch").startswith("stem:out and branch:out share channels (group 'stem', ")


def test_a_frozen_layer_says_why(graph):
    assert graph.explain("stem", "head") == "head cannot be cut: an output of the model."
    assert graph.explain("stem:in", "head:in") == (
        "stem:in cannot be cut: convolution in stem: the input cannot be narrowed."
    )


def test_a_layer_frozen_by_another_says_through_which_operations():
    graph = trace(alibi_constant.Model().double(), torch.zeros(2, 6, 5, dtype=torch.float64))
    assert graph.explain("k", "stem") == text(
        """
        k cannot be cut: add in the model: it meets a tensor of fixed size.
          k:out
          - matmul in the model -> q:out
        """
    )


def test_two_frozen_layers_each_say_why():
    graph = trace(constant_meets_channels.Model(), torch.zeros(2, 3))
    assert graph.explain("one", "head") == text(
        """
        one cannot be cut: mul in the model: it meets a tensor of fixed size.
        head cannot be cut: an output of the model.
        """
    )


def test_channels_tied_into_one_say_so():
    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two, self.head = nn.Linear(3, 4), nn.Linear(3, 1), nn.Linear(4, 2)

        def forward(self, x):
            x = self.one(x)
            return self.head(x + x.roll(1, dims=1))

    assert trace(Sum(), torch.zeros(2, 3)).explain("one", "head").startswith("one cannot be cut: roll in the model: ")


def test_what_the_code_cannot_narrow_is_said_to_be_so():
    class Fixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two, self.head = nn.Linear(3, 8), nn.Linear(8, 4), nn.Linear(4, 2)

        def forward(self, x):
            return self.head(self.two(self.one(x).view(-1, 8)))

    model = Fixed()
    graph = feasible(model, trace(model, torch.zeros(2, 3)))
    assert "cannot be cut (the model's code cannot narrow them): one" in str(graph)
    assert graph.explain("one", "two:in").startswith("one cannot be cut: after the cut, the model does not run")


def test_an_axis_of_a_parameter_can_be_named(graph):
    assert graph.explain("table:0", "stem").startswith("table:0 and stem:out share channels")
    assert graph.explain("stem.bias", "stem.weight").startswith("stem:out and stem:out share channels")


def test_a_group_can_be_named():
    graph = trace(residual_with_inner_width.Model().double(), torch.zeros(2, 3, 6, 6, dtype=torch.float64))
    assert graph.explain("up", "down:in").splitlines()[0] == (
        "up:out and down:in share channels (group 'up', 6 channels):"
    )


def test_a_tied_name_means_the_tensor_it_is_tied_to():
    net = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2))
    net[2].weight = net[1].weight
    graph = trace(net, torch.zeros(2, 3))
    assert graph.explain("2.weight:in", "0").startswith("1:in and 0:out share channels")


def test_a_wrong_name_suggests_near_ones(graph):
    with pytest.raises(UnknownName, match=r"no layer with channels is called 'sten'; did you mean 'stem'\?"):
        graph.explain("sten", "head")


def test_a_container_names_what_is_inside(graph):
    with pytest.raises(UnknownName, match=r"Inside 'block': block\.0, block\.1, block\.3\."):
        graph.explain("stem", "block")


def test_a_module_without_weights_says_so(graph):
    with pytest.raises(UnknownName, match=r"'block\.2' has no weights of its own: name the layer before or after it"):
        graph.explain("stem", "block.2")


def test_a_layer_that_does_not_run_says_so(graph):
    with pytest.raises(UnknownName, match="The example input does not reach 'unused'"):
        graph.explain("stem", "unused")


def test_a_wrong_axis_lists_those_there_are(graph):
    with pytest.raises(UnknownName, match="no axis of 'stem' is called 'up'; known: in, out"):
        graph.explain("stem:up", "head")


def test_touching_a_module_that_is_not_there_suggests_near_ones(graph):
    assert graph.touching(["block"]) == {"stem", "block.0"}
    with pytest.raises(UnknownName, match=r"no module is called 'blok'; did you mean 'block'"):
        graph.touching(["blok"])


def test_explaining_two_branches_goes_through_their_meeting():
    graph = trace(several_inputs.Model(), (torch.zeros(2, 3, 4, 4), torch.zeros(2, 4)))
    assert graph.explain("image", "text") == text(
        """
        image:out and text:out share channels (group 'image', 6 channels):
          image:out
          - add in the model -> text:out
        """
    )
