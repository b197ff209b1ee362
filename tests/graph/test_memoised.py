"""A pass that was only looked at leaves no tensor in what functions beside the model remember."""

import functools

import pytest
import torch
from torch import nn

from secateur import trace


@functools.lru_cache(maxsize=4)
def steps(size):
    return {"steps": [torch.arange(size)]}


@functools.cache
def doubled(size):
    return 2 * size


def wrapped(function):
    memory = functools.lru_cache(maxsize=1)(function)

    @functools.wraps(function)
    def outer(*args):
        return memory(*args)

    outer.memory = memory
    return outer


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(4, 6), nn.Linear(6, 2)

    @staticmethod
    @wrapped
    def signs(size):
        return torch.ones(size)

    def forward(self, x):
        return self.down(self.up(x) * self.signs(x.shape[0])[:, None]) + steps(2)["steps"][0] * doubled(3)


@pytest.mark.parametrize("carrier", ["meta", "fake", "real"])
def test_a_traced_model_still_runs_and_gives_the_same(carrier):
    net, x = Net().eval(), torch.randn(3, 4)
    wanted = net(x)
    steps.cache_clear()
    Net.signs.memory.cache_clear()
    trace(net, x, carrier=carrier)
    assert (steps.cache_info().currsize, Net.signs.memory.cache_info().currsize) == (0, 0)
    assert torch.equal(net(x), wanted)


def test_what_holds_no_tensor_is_remembered():
    doubled(3)
    before = doubled.cache_info().currsize
    trace(Net(), torch.randn(3, 4))
    assert doubled.cache_info().currsize == before
