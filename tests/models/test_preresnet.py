import pytest
import torch

from secateur.models.preresnet import PreActivationBottleneck, PreResNet, preresnet164

from .measure import counts


@pytest.mark.parametrize(
    ("class_count", "params", "macs"), [(10, 1_703_258, 247_646_720), (100, 1_726_388, 247_669_760)]
)
def test_counts_are_those_of_the_paper(class_count, params, macs):
    assert counts(preresnet164, class_count=class_count) == (params, macs)


def test_a_later_block_without_branch_is_the_identity():
    block = PreActivationBottleneck(16, 4, stride=1, is_first=False).eval()
    torch.nn.init.zeros_(block.conv3.weight)
    x = torch.randn(2, 16, 5, 5)
    assert torch.equal(block(x), x)


def test_the_shortcut_convolution_reads_the_activated_input():
    block = PreActivationBottleneck(16, 4, stride=2, is_first=True).eval()
    torch.nn.init.zeros_(block.conv3.weight)
    x = torch.randn(2, 16, 6, 6)
    torch.testing.assert_close(block(x), block.shortcut(block.bn1(x).relu()))


def test_every_parameter_gets_a_gradient():
    model = PreResNet(1, class_count=5, in_channels=2)
    model(torch.randn(4, 2, 8, 8)).square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in model.parameters())
