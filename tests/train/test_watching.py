"""What a product is seen to read, times its weight, is what it gives: for every kind of product and every use."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from secateur import trace
from secateur.errors import TrainingError
from secateur.graph.products import Site, products, readers, weight_view
from secateur.train.watching import drawn_rows, input_batches, kernel_of, watch, write_kernel_


class Everything(nn.Module):
    """One of each kind of product."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, padding=1)
        self.grouped = nn.Conv2d(6, 8, 3, stride=2, padding=1, groups=2, dilation=2)
        self.transposed = nn.ConvTranspose2d(8, 4, 3, stride=2, padding=1, output_padding=1, groups=2)
        self.depthwise = nn.Conv2d(4, 4, 3, groups=4)
        self.flat = nn.Linear(4 * 16, 12)
        self.attention = nn.MultiheadAttention(12, 3, batch_first=True)
        self.recurrent = nn.LSTM(12, 7, batch_first=True)
        self.left = nn.Parameter(torch.randn(5, 4))
        self.normed = nn.utils.parametrizations.weight_norm(nn.Linear(12, 6))
        self.head = nn.Linear(6, 2)

    def forward(self, x):
        x = F.relu(self.transposed(F.relu(self.grouped(F.relu(self.conv(x))))))
        x = F.relu(self.flat(F.relu(self.depthwise(x)).flatten(1)))[:, None].repeat(1, 4, 1)
        x = x + self.attention(x, x, x)[0]
        y = self.left @ x[0]
        return self.head(F.relu(self.normed(x.mean(1)))), self.recurrent(x)[0], y


@pytest.fixture(scope="module")
def traced():
    torch.manual_seed(0)
    model = Everything().double()
    return model, trace(model, torch.randn(2, 3, 8, 8, dtype=torch.float64))


def seen_on(model, graph, samples=5):
    images, found = torch.randn(samples, 3, 8, 8, dtype=torch.float64), {}
    watch(model, ((images,), {}), {p.site: (lambda seen: found.update({seen.site: seen})) for p in products(graph)})
    return found


def test_rows_times_kernel_is_the_output_without_bias(traced):
    model, graph = traced
    error: dict[str, float] = {}

    def see(seen):
        gap = seen.outputs() - torch.einsum("grc,goc->gro", seen.inputs(), seen.kernel())
        assert seen.inputs().shape[1] == seen.row_count
        error[seen.site.weight] = float(gap.abs().max())

    watch(model, ((torch.randn(5, 3, 8, 8, dtype=torch.float64),), {}), dict.fromkeys(sites(graph), see))
    assert set(error) == {site.weight for site in sites(graph)}
    assert max(error.values()) < 1e-12, error


def sites(graph):
    return [p.site for p in products(graph)]


def test_drawn_rows_are_rows_of_the_whole(traced):
    seen = seen_on(*traced)[Site("grouped.weight")]
    rows = drawn_rows(seen.row_count, 7, 3)
    assert torch.equal(seen.inputs(rows), seen.inputs()[:, rows])
    assert torch.equal(seen.outputs(rows), seen.outputs()[:, rows])
    assert drawn_rows(5, 5) is None
    assert len(set(rows.tolist())) == 7


def test_a_kernel_written_back_changes_nothing(traced):
    model, graph = traced
    seen = seen_on(model, graph)
    for product in products(graph):
        view = weight_view(model, graph, product)
        if view is None or product.site not in seen:
            continue
        before = view.clone()
        transposed = product.is_convolution and bool(product.op.args[6])
        layout = {"is_convolution": product.is_convolution, "is_weight_first": product.is_weight_first}
        kernel = kernel_of(view, product.groups, transposed=transposed, **layout).clone()
        assert torch.equal(kernel, seen[product.site].kernel()), product.site
        view.data.zero_()
        write_kernel_(view, kernel, transposed=transposed, **layout)
        assert torch.equal(view, before), product.site


def test_a_computed_weight_cannot_be_written(traced):
    model, graph = traced
    found = {p.site.weight: weight_view(model, graph, p) for p in products(graph)}
    assert [name for name, view in found.items() if view is None] == ["normed.parametrizations.weight.original1"]


def test_readers_sum_over_a_groups_channels_and_depthwise_does_not(traced):
    _, graph = traced
    named = {name: {p.site.weight for p in readers(graph, group)} for name, group in graph.groups.items()}
    assert named["transposed"] == {"flat.weight"}
    assert named["conv"] == {"grouped.weight"}
    assert named["attention"] == {"attention.out_proj.weight"}


def test_a_channel_of_a_flattened_map_takes_neighbouring_columns(traced):
    _, graph = traced
    group = graph.groups["transposed"]
    reader = readers(graph, group)[0]
    columns = reader.channels_of(graph, group)
    assert columns.shape == (1, 64)
    assert [int((columns == k).sum()) for k in range(group.width)] == [64 // group.width] * group.width


def test_nothing_of_the_model_changes_and_the_pass_ends_early(traced):
    model, _ = traced
    model.train()
    reached = []
    handle = model.head.register_forward_hook(lambda *_: reached.append(1))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    watch(model, ((torch.randn(1, 3, 8, 8, dtype=torch.float64),), {}), {Site("conv.weight"): lambda seen: None})
    handle.remove()
    assert model.training
    assert not reached
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_a_product_that_is_not_reached_is_an_error():
    with pytest.raises(TrainingError, match=r"did not use 'nowhere\.weight'"):
        watch(nn.Linear(2, 2), ((torch.zeros(1, 2),), {}), {Site("nowhere.weight"): lambda seen: None})


def test_no_batch_is_an_error(traced):
    from secateur.train import ClassificationTask

    with (
        pytest.raises(TrainingError, match="gave no batch"),
        input_batches([], ClassificationTask(), torch.device("cpu")) as batches,
    ):
        list(batches)
