import pytest
import torch

from secateur.models.densenet import DenseLayer, DenseNet, densenet40

from .measure import counts


@pytest.mark.parametrize(("stem_width", "params", "macs"), [(24, 1_059_298, 282_917_328), (16, 1_019_722, 264_812_928)])
def test_counts_are_those_of_the_papers(stem_width, params, macs):
    assert counts(densenet40, stem_width=stem_width) == (params, macs)


def test_a_layer_puts_its_channels_behind_those_it_read():
    x = torch.randn(2, 5, 4, 4)
    out = DenseLayer(5, growth=3)(x)
    assert out.shape == (2, 8, 4, 4)
    assert torch.equal(out[:, :5], x)


def test_every_parameter_gets_a_gradient():
    model = DenseNet(2, class_count=5, in_channels=2, growth=3, stem_width=4)
    model(torch.randn(4, 2, 8, 8)).square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in model.parameters())
