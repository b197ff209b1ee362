"""Counts of weights, bytes and multiply-accumulates equal the closed form and touch nothing."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from secateur.measure.macs import measured_macs
from secateur.measure.params import parameter_count, size_bytes


def test_a_tied_weight_counts_once():
    tied = nn.Sequential(nn.Embedding(7, 3), nn.Linear(3, 7, bias=False))
    tied[1].weight = tied[0].weight
    assert parameter_count(tied) == 21
    assert size_bytes(tied) == 84


def test_bytes_follow_the_dtype_and_include_buffers():
    norm = nn.BatchNorm1d(4)  # 4 x (weight, bias, mean, variance) and one int64
    assert parameter_count(norm) == 8
    assert size_bytes(norm) == 16 * 4 + 8
    assert size_bytes(norm.half()) == 16 * 2 + 8


class Calls(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *args):
        return self.function(*args)


CASES = {
    "linear": (nn.Linear(4, 3), [(5, 4)], 5 * 4 * 3),
    "grouped conv": (nn.Conv2d(4, 6, 3, groups=2), [(2, 4, 5, 5)], 2 * 9 * 6 * 2 * 9),
    "depthwise conv": (nn.Conv2d(4, 4, 3, groups=4), [(1, 4, 5, 5)], 9 * 4 * 9),
    "transposed conv": (nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2), [(1, 4, 5, 5)], 25 * 4 * 3 * 9),
    "fused attention": (Calls(F.scaled_dot_product_attention), [(2, 3, 5, 4)] * 3, 2 * 2 * 3 * 5 * 5 * 4),
    "nn.MultiheadAttention": (
        nn.MultiheadAttention(8, 2, batch_first=True),
        [(2, 5, 8)] * 3,
        2 * 5 * 8 * 8 * 4 + 2 * 2 * 5 * 5 * 8,
    ),
    "transformer layer": (
        nn.TransformerEncoderLayer(8, 2, 16, batch_first=True),
        [(2, 5, 8)],
        2 * 5 * 8 * (4 * 8 + 2 * 16) + 2 * 2 * 5 * 5 * 8,
    ),
    "LSTM": (nn.LSTM(4, 3), [(5, 2, 4)], 5 * 2 * 4 * 3 * (4 + 3)),
    "GRU, two ways": (nn.GRU(4, 3, bidirectional=True), [(5, 2, 4)], 2 * 5 * 2 * 3 * 3 * (4 + 3)),
    "matrix times vector": (Calls(torch.mv), [(5, 4), (4,)], 20),
    "vector times vector": (Calls(torch.dot), [(4,), (4,)], 4),
    "added product": (Calls(torch.addmv), [(5,), (5, 4), (4,)], 20),
    "bilinear": (nn.Bilinear(3, 4, 5), [(2, 3), (2, 4)], 2 * 5 * 3 * 4),
    "pointwise": (nn.BatchNorm2d(4), [(2, 4, 5, 5)], 0),
}


@pytest.mark.parametrize("name", CASES)
def test_macs_equal_the_closed_form(name, caplog):
    model, shapes, expected = CASES[name]
    with caplog.at_level("DEBUG", logger="secateur"):
        assert measured_macs(model, [torch.zeros(shape) for shape in shapes]) == expected
    assert not caplog.records, "it fell back to real tensors"


class Peeking(nn.Module):
    """Looks at a value, keeps a tensor and draws a random number: three ways to be disturbed."""

    def __init__(self, looks):
        super().__init__()
        self.linear, self.norm, self.looks, self.cache = nn.Linear(4, 3), nn.BatchNorm1d(3), looks, None

    def forward(self, x, *, shift):
        torch.rand(1)
        self.cache = self.norm(self.linear(x))
        if self.looks and x.sum().item() > 1e9:
            raise AssertionError
        return self.cache + shift


@pytest.mark.parametrize("looks", [False, True])
def test_counting_changes_nothing_also_where_the_model_looks_at_values(looks):
    model = Peeking(looks)
    before, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    assert measured_macs(model, torch.ones(5, 4), kwargs={"shift": torch.ones(3)}) == 60
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert model.training
    assert model.cache is None
    assert torch.backends.mha.get_fastpath_enabled()
    assert torch.backends.mkldnn.enabled


def test_an_error_of_the_model_arrives_and_settings_are_restored():
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        measured_macs(nn.Linear(4, 3), torch.zeros(5, 7))
    assert torch.backends.mha.get_fastpath_enabled()
    assert torch.backends.mkldnn.enabled


def test_a_model_on_the_meta_device_is_counted():
    with torch.device("meta"):
        model = nn.Linear(4, 3)
    assert measured_macs(model, torch.zeros(5, 4, device="meta")) == 60
