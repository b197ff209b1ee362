"""Our walk of a model gives the names that torch gives, in its order."""

import pytest
import torch
from torch import nn

from secateur.graph.walk import buffers_of, modules_of, parameters_of, state_of


class Shared(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
        self.none = None
        self.register_module("empty", None)
        self.again = self.first
        self.tied = nn.Linear(2, 2, bias=False)
        self.tied.weight = self.first[0].weight
        self.scale = nn.Parameter(torch.ones(2))
        self.register_buffer("table", torch.zeros(2), persistent=False)
        self.register_buffer("same", self.table)


@pytest.mark.parametrize("shared", [False, True])
def test_names_and_order_are_those_of_torch(shared):
    model = Shared()
    torchs = {"remove_duplicate": not shared}
    assert list(modules_of(model, shared=shared).items()) == list(model.named_modules(**torchs))
    for ours, theirs in (
        (parameters_of(model, shared=shared), model.named_parameters(**torchs)),
        (buffers_of(model, shared=shared), model.named_buffers(**torchs)),
    ):
        assert [(name, id(tensor)) for name, tensor in ours.items()] == [(n, id(t)) for n, t in theirs]


def test_state_has_parameters_before_buffers():
    assert list(state_of(nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 2, bias=False)))) == [
        "0.weight", "0.bias", "1.weight", "0.running_mean", "0.running_var", "0.num_batches_tracked",
    ]  # fmt: skip
