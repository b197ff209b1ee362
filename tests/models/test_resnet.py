from fractions import Fraction

import pytest
import torch
from torch import nn

from secateur.errors import ModelError
from secateur.models.resnet import (
    BasicBlock,
    ResNet,
    ZeroPadShortcut,
    digits_resnet,
    resnet20,
    resnet32,
    resnet56,
    resnet110,
)

from .measure import counts


@pytest.mark.parametrize(
    ("build", "shortcut", "params", "macs"),
    [
        (resnet20, "A", 269_722, 40_551_040),
        (resnet32, "A", 464_154, 68_862_592),
        (resnet56, "A", 853_018, 125_485_696),
        (resnet110, "A", 1_727_962, 252_887_680),
        (resnet20, "B", 272_474, 40_551_040 + 262_144),
        (resnet32, "B", 466_906, 68_862_592 + 262_144),
        (resnet56, "B", 855_770, 125_747_840),
        (resnet110, "B", 1_730_714, 252_887_680 + 262_144),
    ],
)
def test_counts_are_those_of_the_papers(build, shortcut, params, macs):
    assert counts(build, shortcut=shortcut) == (params, macs)


def test_weights_of_resnet56_b_are_those_published():
    model = resnet56(shortcut="B")
    weights = sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear))
    assert weights == 851_504


def inner_widths(block_count: int, keep: tuple[str, str, str], skip: tuple[int, ...] = ()) -> list[int]:
    """Widths that L1 filter pruning leaves; `skip` counts convolutions from 1, a block's first ones are even."""
    widths = []
    for stage, width in enumerate((16, 32, 64)):
        for block in range(block_count):
            conv = 2 * (stage * block_count + block) + 2
            widths.append(width if conv in skip else int(width * Fraction(keep[stage])))
    return widths


@pytest.mark.parametrize(
    ("build", "widths", "params", "macs"),
    [
        (resnet56, inner_widths(9, ("0.9", "0.9", "0.9"), (16, 20, 38, 54)), 773_336, 112_435_840),
        (resnet56, inner_widths(9, ("0.4", "0.7", "0.9"), (16, 18, 20, 34, 38, 54)), 735_712, 90_907_264),
        (resnet110, inner_widths(18, ("0.5", "1", "1"), (36,)), 1_688_522, 212_779_648),
        (resnet110, inner_widths(18, ("0.5", "0.6", "0.7"), (36, 38, 74)), 1_168_424, 155_124_352),
        (resnet56, inner_widths(9, ("0.7",) * 3), 587_428, 86_409_856),
        (resnet56, inner_widths(9, ("0.5",) * 3), 428_074, 62_964_352),
        (resnet56, inner_widths(9, ("0.3",) * 3), 250_954, 34_929_280),
    ],
    ids=["56-A", "56-B", "110-A", "110-B", "56-keep-0.7", "56-keep-0.5", "56-keep-0.3"],
)
def test_counts_of_pruned_networks_are_those_of_the_papers(build, widths, params, macs):
    assert counts(build, inner_widths=widths) == (params, macs)


def test_digits_resnet_is_small():
    assert counts(digits_resnet, (1, 8, 8)) == (75_002, 747_136)


def test_option_a_takes_every_second_pixel_and_pads_both_sides():
    x = torch.arange(1.0, 33).reshape(1, 2, 4, 4)
    out = ZeroPadShortcut(2, 4, stride=2)(x)
    assert out.shape == (1, 4, 2, 2)
    assert out[0, 1].tolist() == [[1, 3], [9, 11]]
    assert out[0, 2].tolist() == [[17, 19], [25, 27]]
    assert not out[0, 0].any()
    assert not out[0, 3].any()


def test_option_a_lets_the_gradient_through():
    x = torch.ones(1, 2, 4, 4, requires_grad=True)
    ZeroPadShortcut(2, 4, stride=2)(x).sum().backward()
    assert x.grad.sum() == 2 * 4


def test_option_a_is_exact_when_cut_by_hand_to_one_channel_each():
    """Keep one channel of the narrow stage and of the wide stage only one that was padding behind it."""
    torch.manual_seed(0)
    block = BasicBlock(4, 8, 8, stride=2, shortcut="A").eval()  # channels 2 to 5 of the output carry the input
    kept_in, kept_inner, kept_out = [1], [5], [3, 7]
    x = torch.randn(2, 4, 6, 6)
    masked_in, keep_inner = torch.zeros_like(x), torch.zeros(8, 1, 1)
    masked_in[:, kept_in] = x[:, kept_in]
    keep_inner[kept_inner] = 1
    hook = block.bn1.register_forward_hook(lambda _module, _args, out: out * keep_inner)
    expected = block(masked_in)[:, kept_out]
    hook.remove()

    small = BasicBlock(1, 1, 2, stride=2, shortcut="A").eval()
    small.conv1.weight.data = block.conv1.weight[kept_inner][:, kept_in]
    small.conv2.weight.data = block.conv2.weight[kept_out][:, kept_inner]
    small.shortcut.pad_before, small.shortcut.pad_after = 0, 1
    torch.testing.assert_close(small(x[:, kept_in]), expected)


@pytest.mark.parametrize("shortcut", ["A", "B"])
def test_every_parameter_gets_a_gradient(shortcut):
    model = ResNet(1, class_count=5, in_channels=2, shortcut=shortcut)
    model(torch.randn(4, 2, 8, 8)).square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in model.parameters())


def test_an_unknown_shortcut_is_named():
    with pytest.raises(ModelError, match="shortcut='C': expected 'A'"):
        resnet20(shortcut="C")


def test_a_wrong_number_of_inner_widths_is_an_error():
    with pytest.raises(ModelError, match="gives 2 widths; this network has 9 blocks"):
        resnet20(inner_widths=[8, 8])
