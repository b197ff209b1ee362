import pytest
import torch
from torch import nn

from secateur.models.vgg import POOL, VGG, vgg16_bn, vgg16_bn_a, vgg19_bn

from .measure import counts


@pytest.mark.parametrize(
    ("build", "kwargs", "params", "macs"),
    [
        (vgg16_bn, {}, 14_724_042, 313_196_544 + 5_120),
        (vgg16_bn, {"conv_bias": True}, 14_728_266, 313_201_664),
        (vgg16_bn, {"hidden_width": 512}, 14_987_722, 313_463_808),
        (vgg16_bn, {"hidden_width": 512, "conv_bias": True}, 14_991_946, 313_463_808),
        (vgg19_bn, {}, 20_035_018, 398_136_320),
        (vgg19_bn, {"class_count": 100}, 20_081_188, 398_136_320 + 512 * 90),
        (vgg16_bn_a, {}, 5_261_866, 206_143_488 + 2_560),
        (vgg16_bn_a, {"hidden_width": 512}, 5_397_034, 206_143_488 + 136_192),
    ],
)
def test_counts_are_those_of_the_papers(build, kwargs, params, macs):
    assert counts(build, **kwargs) == (params, macs)


def test_batch_norm_scales_start_at_one_half():
    model = VGG((4, POOL, 8), hidden_width=6)
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d | nn.BatchNorm1d)]
    assert [set(m.weight.tolist()) for m in norms] == [{0.5}] * 3


def test_variance_of_a_convolution_is_two_over_the_fan_out():
    torch.manual_seed(0)
    weight = VGG((64, 256)).features[3].weight  # fan in 576, fan out 2304
    assert weight.std().item() == pytest.approx((2 / 2304) ** 0.5, rel=0.01)


def test_any_number_of_channels_and_classes_is_built():
    assert VGG((4, POOL, 8), class_count=3, in_channels=1)(torch.zeros(2, 1, 8, 8)).shape == (2, 3)
