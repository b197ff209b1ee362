"""Attributes follow the widths that they hold, no others do, and what no attribute holds raises."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from secateur import Plan, shrink, trace, verify
from secateur.errors import SurgeryError
from secateur.surgery.feasible import feasible


def cut(model, x, **removed):
    """Shrink a model and hold it to the masked one; names with dots are given with two underscores."""
    graph = trace(model, x)
    names = {name.replace("__", "."): range(count) for name, count in removed.items()}
    plan = Plan.from_removed(names, graph.widths)
    small = shrink(model, graph, plan)
    assert verify(model, small, plan, x).is_exact
    return small


class Viewed(nn.Module):
    """Sees its channels as pairs, with the number of pairs in an attribute."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(3, 8), nn.Linear(8, 2)
        self.pairs, self.unrelated, self.sizes = 4, 4, (4, 2)
        self.note = "4"

    def forward(self, x):
        return self.two(self.one(x).view(-1, 2, self.pairs).tanh().flatten(1))


def test_an_attribute_that_a_view_uses_follows():
    small = cut(Viewed(), torch.randn(5, 3), one=1)
    assert (small.two.in_features, small.pairs, small.note) == (6, 3, "4")


class Features(nn.Module):
    """Reads an earlier feature by an index that happens to equal a width."""

    def __init__(self):
        super().__init__()
        self.width, self.which = 3, 3
        self.layers = nn.ModuleList([nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3)])
        self.head = nn.Linear(3, 2)

    def forward(self, x):
        features = [x]
        for layer in self.layers:
            features.append(layer(features[-1]).relu())
        return self.head(features[self.which].view(-1, self.width))


def test_an_index_that_equals_a_width_stays():
    """As 2 it would read another feature of the same shape."""
    small = cut(Features(), torch.randn(5, 3), layers__0=1, layers__1=1, layers__2=1)
    assert (small.width, small.which) == (2, 3)


class Ordered(nn.Module):
    """Puts its inputs in an order of its own; two of the places are numbers that its widths hold as well."""

    def __init__(self, place):
        super().__init__()
        self.order = [0, 3, 2, 4, 1, 5]
        self.one, self.two = nn.Linear(6, 4), nn.Linear(4, 3)
        self.place, self.number = place, 4

    def forward(self, x):
        return self.two(torch.cat([self.one(self.place(self, x))])) + x.new_full((), self.number)


ORDERS = {
    "list": lambda self, x: x[:, self.order],
    "list_in_item": lambda self, x: x[..., [self.order[k] for k in range(6)]],
    "tensor": lambda self, x: x.index_select(1, torch.tensor(self.order)),
    "new_tensor": lambda self, x: x.index_select(1, x.new_tensor(self.order).long()),
}


@pytest.mark.parametrize("place", ORDERS.values(), ids=ORDERS.keys())
def test_a_table_of_places_that_holds_a_width_stays(place):
    small = cut(Ordered(place), torch.randn(5, 6), one=1)
    assert (small.two.in_features, small.order, small.number) == (3, [0, 3, 2, 4, 1, 5], 4)


def test_a_width_inside_a_list_follows_and_a_shared_list_stays():
    sizes = [3, 5]

    class Parts(nn.Module):
        def __init__(self):
            super().__init__()
            self.sizes = sizes
            self.one, self.left, self.right = nn.Linear(3, 8), nn.Linear(3, 2), nn.Linear(5, 2)

        def forward(self, x):
            left, right = self.one(x).split(self.sizes, dim=1)
            return self.left(left) + self.right(right)

    model, x = Parts(), torch.randn(4, 3)
    graph = trace(model, x)
    assert sorted(graph.widths.values()) == [3, 5]
    plan = Plan.from_removed({n: [0] for n in graph.widths}, graph.widths)
    small = shrink(model, graph, plan)
    assert (small.sizes, model.sizes, sizes) == ([2, 4], [3, 5], [3, 5])
    assert verify(model, small, plan, x).is_exact


def test_a_width_in_a_config_follows_in_a_copy():
    config = SimpleNamespace(heads=4, dropout=0.0)

    class Configured(nn.Module):
        def __init__(self):
            super().__init__()
            self.config, self.one, self.two = config, nn.Linear(3, 8), nn.Linear(8, 2)

        def forward(self, x):
            return self.two(self.one(x).view(x.shape[0], self.config.heads, 2).amax(2).repeat_interleave(2, 1))

    model = Configured()
    small = cut(model, torch.randn(5, 3), one=1)
    assert (small.config.heads, config.heads) == (3, 4)


class Fixed(nn.Module):
    """Holds a width in its code."""

    def __init__(self):
        super().__init__()
        self.one, self.two, self.head = nn.Linear(3, 8), nn.Linear(8, 4), nn.Linear(4, 2)

    def forward(self, x):
        return self.head(self.two(self.one(x).view(-1, 8)))


def test_a_width_in_the_code_raises_with_the_sizes():
    message = (
        r"after the cut, the model does not run as it must at view: .*A width seems to be written in its code where no "
        r"attribute holds it \(it has to change 8 to 5\)\. Make it an attribute, or protect the layers around it"
    )
    with pytest.raises(SurgeryError, match=message):
        cut(Fixed(), torch.randn(5, 3), one=3)


def test_a_width_in_the_code_of_a_module_names_the_module():
    model = nn.Sequential(nn.Linear(3, 4), Fixed())
    model[1].one = nn.Linear(4, 8)
    with pytest.raises(SurgeryError, match=r"after the cut, module '1' .* or leave it alone with protect=\['1'\]"):
        cut(model, torch.randn(5, 3), **{"1__one": 3})


def test_what_the_code_cannot_narrow_is_left_out_and_the_rest_is_not():
    model, x = Fixed(), torch.randn(5, 3)
    graph = feasible(model, trace(model, x))
    assert (set(graph.groups), set(graph.rigid)) == ({"two"}, {"one"})


class Scaled(nn.Module):
    """Divides by a width, so that a narrower layer is another function."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(3, 8), nn.Linear(8, 2)

    def forward(self, x):
        return self.two(self.one(x) / self.one.out_features)


def test_a_number_that_follows_a_width_raises():
    with pytest.raises(
        SurgeryError, match=r"at div: it was called with 6 where 8 was expected\. Its code seems to comp"
    ):
        cut(Scaled(), torch.randn(5, 3), one=2)


class ScaledInRoot(nn.Module):
    """Divides by the root of a width, as a tensor of its own that no channel touches (RAFT's correlation)."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(3, 8), nn.Linear(8, 9), nn.Linear(9, 7), nn.Linear(7, 2)])

    def forward(self, x):
        for layer in self.layers[:-1]:
            x = layer(x).tanh()
        scale = torch.sqrt(torch.tensor(float(self.layers[1].out_features)))
        return self.layers[-1](x) / scale


def test_only_the_width_behind_a_scale_is_left_whole():
    model, x = ScaledInRoot(), torch.randn(5, 3)
    graph = feasible(model, trace(model, x))
    assert (set(graph.groups), set(graph.rigid)) == ({"layers.0", "layers.2"}, {"layers.1"})
    assert "a tensor was made of 5.0 where 9.0 was expected" in graph.rigid["layers.1"]


class ScaledTogether(ScaledInRoot):
    """Fails only where two layers have lost something."""

    def forward(self, x):
        for layer in self.layers[:-1]:
            x = layer(x).tanh()
        lost = 15 - self.layers[0].out_features - self.layers[2].out_features
        return self.layers[-1](x) * torch.tensor(float(max(lost, 3)))


def test_where_no_half_fails_alone_everything_is_left_whole():
    model, x = ScaledTogether(), torch.randn(5, 3)
    graph = feasible(model, trace(model, x))
    assert (set(graph.groups), set(graph.rigid)) == (set(), {"layers.0", "layers.1", "layers.2"})


def test_a_part_cut_out_by_a_number_in_the_code_raises():
    class Sliced(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.left, self.right = nn.Linear(3, 9), nn.Linear(4, 2), nn.Linear(5, 2)

        def forward(self, x):
            x = self.one(x)
            return self.left(x[:, :4]) + self.right(x[:, 4:])

    model, x = Sliced(), torch.randn(5, 3)
    graph = trace(model, x)
    name = next(n for n, g in graph.groups.items() if "left:in" in g.labels)
    with pytest.raises(SurgeryError, match="at slice: "):
        shrink(model, graph, Plan.from_removed({name: [0]}, graph.widths))


def test_more_projections_than_cells_are_refused_with_the_reason():
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.head = nn.LSTM(3, 6, proj_size=4, batch_first=True), nn.Linear(4, 2)

        def forward(self, x):
            return self.head(self.rnn(x)[0])

    model, x = Recurrent(), torch.randn(2, 5, 3)
    graph = trace(model, x)
    name = next(n for n, width in graph.widths.items() if width == 6)
    with pytest.raises(SurgeryError, match=r"'rnn': the plan leaves 2 cells and projects them to 4"):
        shrink(model, graph, Plan.from_removed({name: range(4)}, graph.widths))
