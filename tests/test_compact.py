"""From zeros to structure: what is idle is found, cut, and proved."""

import copy
import random

import pytest
import torch
from hypothesis import given, settings
from torch import Tensor, nn

import secateur as sc
from secateur.errors import NothingPruned
from secateur.recovery.dead import dependence
from secateur.surgery.mask import mask

from .networks import QUICK, NetworkSpec, build, networks, token_networks
from .shrunk_models import ConvNet, OwnAttention, fresh


class Plain(nn.Sequential):
    """Two padded convolutions with batch normalisation, and a linear layer."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
            nn.Conv2d(8, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4),
        )  # fmt: skip


IMAGES = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(3))


def idle(network: nn.Module, images: Tensor = IMAGES) -> sc.CompactResult:
    """Compact it; the result must be proved, smaller by what the plan says, and the given model unchanged."""
    before = copy.deepcopy(network.state_dict())
    result = sc.compact(network, images)
    assert result.verification.is_exact
    assert not result.left_whole
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())
    assert sum(p.numel() for p in result.model.parameters()) == result.after.params
    torch.testing.assert_close(result.model(images), network(images))
    return result


@torch.no_grad()
def silence(layer: nn.Module, channel: int) -> None:
    layer.weight[channel] = 0
    layer.bias[channel] = 0


@torch.no_grad()
def test_a_channel_goes_when_relu_makes_zero_of_what_is_left_of_it():
    network = fresh(Plain)
    silence(network[0], 2)
    network[1].running_mean[2], network[1].bias[2] = 0, -0.3
    assert idle(network).plan.removed("0") == (2,)


@torch.no_grad()
def test_a_channel_that_is_another_constant_stays_in_front_of_zero_padding():
    network = fresh(Plain)
    silence(network[0], 2)
    network[1].running_mean[2], network[1].bias[2] = 0, 0.3
    with pytest.warns(NothingPruned) as told:
        assert not idle(network).plan.removed_count
    assert told[0].filename == __file__, "where the call stands"


@torch.no_grad()
def test_a_constant_goes_into_the_bias_of_a_linear_layer():
    network = fresh(Plain)
    silence(network[3], 1)
    network[4].running_mean[1], network[4].bias[1] = 0, 0.7
    result = idle(network)
    assert result.plan.removed("3") == (1,)
    torch.testing.assert_close(result.model[8].bias, network[8].bias + 0.7 * network[8].weight[:, 1])


@torch.no_grad()
def test_a_zeroed_filter_alone_is_not_enough_where_its_norm_shifts_it():
    network = fresh(Plain)
    network[0].weight[2] = 0
    network[0].bias[2] = 5.0
    network[1].weight[2], network[1].bias[2] = 1.0, 1.0
    with pytest.warns(NothingPruned):
        assert not idle(network).plan.removed_count


@torch.no_grad()
def test_a_scale_of_zero_with_a_shift_of_zero_is_enough():
    network = fresh(Plain)
    network[1].weight[5] = network[1].bias[5] = 0
    assert idle(network).plan.removed("0") == (5,)


@torch.no_grad()
def test_a_channel_that_nobody_reads_goes_and_takes_along_what_only_it_read():
    network = fresh(Plain)
    network[8].weight[:, 4] = 0
    network[3].weight[[0, 1, 2, 3, 5], 6] = 0  # channel 6 of the first layer is read by channel 4 alone
    result = idle(network)
    assert result.plan.removed("3") == (4,)
    assert result.plan.removed("0") == (6,)


@torch.no_grad()
def test_one_weight_that_is_not_zero_keeps_a_channel():
    network = fresh(Plain)
    network[8].weight[:, 4] = 0
    network[8].weight[2, 4] = 1e-6
    with pytest.warns(NothingPruned):
        assert not idle(network).plan.removed_count


@torch.no_grad()
def test_a_residual_channel_goes_only_when_both_of_its_makers_are_silent():
    network = fresh(ConvNet)
    network.stem[1].weight[3] = network.stem[1].bias[3] = 0
    silence(network.depthwise, 3)
    network.block[3].weight[3] = 0
    network.block[3].bias[3] = 0.1
    network.block[3].weight[3, 0] = 0.1
    images = torch.randn(2, 3, 8, 8)
    result = sc.compact(network, images)
    assert result.plan.removed("stem.0") == (3,), (
        "the stem is silent, and what the block adds ends at the depthwise convolution"
    )
    network.depthwise.weight[3] = 1.0
    with pytest.warns(NothingPruned):
        assert not sc.compact(network, images).plan.removed_count
    network.block[3].weight[3] = 0
    assert idle(network, images).plan.removed("stem.0") == (3,)


class Loop(nn.Module):
    """A residual block whose inner channel 0 reads stream channel 0 and writes it again."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.inner, self.outer, self.head = (nn.Linear(a, b) for a, b in ((4, 5), (5, 3), (3, 5), (5, 2)))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(x + self.outer(self.inner(x).relu()))


@torch.no_grad()
def test_channels_that_read_only_each_other_go_together():
    network = fresh(Loop)
    network.head.weight[:, 0] = 0
    network.inner.weight[1:, 0] = 0
    network.outer.weight[1:, 0] = 0
    result = idle(network, torch.randn(2, 4))
    assert result.plan.removed("stem") == (0,)
    assert result.plan.removed("inner") == (0,)


@torch.no_grad()
def test_statistics_keep_their_channels():
    network = nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 2))
    silence(network[0], 1)
    network[2].weight[:, 1] = 0
    with pytest.warns(NothingPruned):
        assert not sc.compact(network, torch.randn(3, 4)).plan.removed_count


@torch.no_grad()
@pytest.mark.parametrize("side", ["value", "projection"])
def test_a_head_goes_when_it_is_silent_or_unread(side):
    network = fresh(OwnAttention)
    tokens = torch.randn(2, 5, 7)
    heads = network.qkv.weight.view(3, 4, 5, 7)
    if side == "value":
        heads[2, 1] = 0
        network.qkv.bias.view(3, 4, 5)[2, 1] = 0
    else:
        network.out.weight.view(3, 4, 5)[:, 1] = 0
    result = idle(network, tokens)
    assert result.plan.removed("qkv") == (1,)
    assert result.model.heads == 3


@torch.no_grad()
def test_a_head_of_torchs_own_attention_goes():
    network = nn.TransformerEncoderLayer(16, 4, 24, dropout=0.0, batch_first=True).eval()
    network.self_attn.out_proj.weight[:, 8:12] = 0
    network.linear2.weight[:, [3, 20]] = 0
    result = idle(network, torch.randn(2, 5, 16))
    assert {name: result.plan.removed(name) for name in result.plan} == {"self_attn": (2,), "linear1": (3, 20)}


@torch.no_grad()
def test_a_layer_that_is_dead_altogether_keeps_one_channel_and_is_named():
    network = fresh(Loop)
    network.outer.weight.zero_()
    result = idle(network, torch.randn(2, 4))
    assert result.emptied == ("inner",)
    assert len(result.plan.kept["inner"]) == 1
    assert "nothing is alive in inner" in str(result)


@torch.no_grad()
def test_what_the_code_cannot_narrow_is_left_whole_and_said():
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.free, self.one = nn.Linear(4, 4), nn.Linear(4, 6)
            self.two, self.three = nn.Linear(6, 6), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.one(self.free(x).relu()).relu()
            return self.three(self.two(x).reshape(-1, 2 * 3) * self.one.out_features)

    network = fresh(Fixed)
    network.one.weight[:, 3] = 0
    network.two.weight[:, 1] = 0
    network.three.weight[:, 4] = 0
    result = sc.compact(network, torch.randn(3, 4))
    assert result.verification.is_exact
    torch.testing.assert_close(result.model(torch.ones(1, 4)), network(torch.ones(1, 4)))
    assert {name: result.plan.removed(name) for name in result.plan} == {"free": (3,)}
    assert set(result.left_whole) == {"one", "two"}
    assert "one was left whole: " in str(result)


def test_after_99_percent_zeros_most_channels_go_and_the_model_is_the_same():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(40, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 5))
    sparse = sc.sparsify(network, budget=sc.Budget(0.99, "weights"), method=sc.methods.Magnitude(scope="layer")).model
    result = idle(sparse, torch.randn(4, 40))
    assert result.after.params < 0.1 * result.before.params
    assert sc.WeightPlan.of(result.model).removed_count > 0, "what is left is still known to be sparse"


def test_the_result_can_be_saved_and_says_where_it_comes_from(tmp_path):
    network = fresh(Plain)
    with torch.no_grad():
        network[8].weight[:, 4] = 0
    result = idle(network)
    sc.save(result.model, tmp_path)
    back = sc.load(tmp_path, model=Plain)
    assert torch.equal(back(IMAGES), result.model(IMAGES))


def check_random(spec: NetworkSpec) -> None:
    """Whatever was masked is found, nothing else, and what was found is cut exactly."""
    network = build(spec)
    graph = sc.trace(network.model, network.args)
    draw = random.Random(spec.seed)
    removed = {n: draw.sample(range(w), draw.randint(0, w - 1)) for n, w in graph.widths.items()}
    masked = mask(network.model, graph, sc.Plan.from_removed(removed, graph.widths))
    what = dependence(masked, graph)
    by_statistics = what.needed
    for name, group in graph.groups.items():
        expected = [i for i in removed[name] if not by_statistics[group.channels[i]]]
        assert sorted(what.dead().get(name, ())) == sorted(expected), name
    if "bilinear_gate" in {block.kind for block in spec.blocks} or not any(what.dead().values()):
        return  # its code computes with a width
    result = sc.compact(masked, network.args, graph=graph)
    assert not result.left_whole
    assert result.plan == what.plan()


@settings(QUICK, max_examples=15)
@given(networks(max_blocks=4))
def test_idle_channels_of_random_networks_are_found_exactly(spec):
    check_random(spec)


@settings(QUICK, max_examples=10)
@given(token_networks(max_blocks=3))
def test_idle_channels_of_random_token_networks_are_found_exactly(spec):
    check_random(spec)
