"""SynFlow: paths through |weights|, conserved from layer to layer, without data, round by round."""

import math
import warnings
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from secateur import Budget, sparsify
from secateur.errors import BudgetError, MethodError
from secateur.methods import Pattern, Synflow, WeightProblem
from secateur.methods._flow import SynapticFlow
from secateur.methods._weight_choice import LayerKeptAlive
from secateur.methods._weights import prunable_weights
from secateur.methods.synflow import removed_by_round


def problem(model, *args, remove=0.5, **given):
    return WeightProblem(model, Budget(remove, "weights"), args=args, **given)


def flow(model, *args, kept=None):
    names = [weight.name for weight in prunable_weights(model)]
    return SynapticFlow(model, args, {}).scores(names, kept or {})


def randomised(model):
    """Weights, norms and their statistics of any sign and size; evaluation mode."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
        for name, buffer in model.named_buffers():
            if buffer.is_floating_point():
                value = torch.rand(buffer.shape, generator=generator)
                buffer.copy_(value + 0.5 if name.endswith("var") else value - 3)
    return model.eval()


def chain():
    return randomised(nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3), nn.ReLU(), nn.Linear(3, 2)))


def test_scores_are_the_sums_of_paths_over_each_weight():
    model = chain()
    a, b, c = (model[k].weight.detach().double().abs() for k in (0, 2, 4))
    scores, total = flow(model, torch.randn(1, 4))
    ones = torch.ones(4).double()
    torch.testing.assert_close(scores["0.weight"], a * (torch.ones(2).double() @ c @ b)[:, None])
    torch.testing.assert_close(scores["2.weight"], b * (torch.ones(2).double() @ c)[:, None] * (a @ ones))
    torch.testing.assert_close(scores["4.weight"], c * (b @ a @ ones))
    assert total == pytest.approx(float((c @ b @ a @ ones).sum()))
    assert all(s.dtype == torch.float64 for s in scores.values())


def test_what_arrives_at_a_hidden_unit_leaves_it():
    scores, total = flow(chain(), torch.randn(1, 4))
    torch.testing.assert_close(scores["0.weight"].sum(1), scores["2.weight"].sum(0))
    torch.testing.assert_close(scores["2.weight"].sum(1), scores["4.weight"].sum(0))
    assert [float(s.sum()) for s in scores.values()] == pytest.approx([total] * 3)


class Convolutions(nn.Module):
    """Norms, biases and pooling on the way, every activation another."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.conv2, self.norm2 = nn.Conv2d(6, 8, 3, groups=2), nn.GroupNorm(2, 8)
        self.conv3, self.norm3 = nn.ConvTranspose2d(8, 4, 2, stride=2), nn.InstanceNorm2d(4, affine=True)
        self.act, self.head = nn.PReLU(), nn.Linear(4 * 9, 5)

    def forward(self, x):
        x = F.relu6(self.bn1(self.conv1(x)))
        x = F.max_pool2d(torch.sigmoid(self.norm2(self.conv2(x))), 2)
        x = F.hardswish(self.act(self.norm3(self.conv3(x))))
        return F.log_softmax(self.head(torch.tanh(F.adaptive_avg_pool2d(x, 3).flatten(1))), 1)


class SelfAttention(nn.Module):
    """Fused query, key and value; the blocks stand one behind the other, so each is all that paths can take."""

    def __init__(self, heads=2, width=8):
        super().__init__()
        self.heads, self.norm = heads, nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, 4)

    def forward(self, x):
        b, n, d = x.shape
        q, k, v = self.qkv(self.norm(x)).reshape(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind()
        x = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(x.transpose(1, 2).reshape(b, n, d))


class Llama(nn.Module):
    """Root mean square norms written out, rotary positions, gates, tied embeddings."""

    def __init__(self, vocabulary=11, width=8):
        super().__init__()
        self.table, self.scale = nn.Embedding(vocabulary, width), nn.Parameter(torch.ones(width))
        self.q, self.k, self.v, self.o = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.gate, self.up = nn.Linear(width, 12, bias=False), nn.Linear(width, 12, bias=False)
        self.down, self.head = nn.Linear(12, width, bias=False), nn.Linear(width, vocabulary, bias=False)

    def norm(self, x):
        return self.scale * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))

    def turned(self, x):
        angle = torch.arange(x.shape[1])[:, None] * torch.ones(x.shape[-1])
        one, other = x.chunk(2, -1)
        return x * angle.cos() + torch.cat([-other, one], -1) * angle.sin()

    def forward(self, tokens):
        x = self.table(tokens)
        h = self.norm(x)
        mask = torch.full((tokens.shape[1], tokens.shape[1]), float("-inf")).triu(1)
        weights = torch.softmax(self.turned(self.q(h)) @ self.turned(self.k(h)).transpose(1, 2) + mask, -1)
        x = x + self.o(weights @ self.v(h))
        h = self.norm(x)
        return self.head(self.norm(x + self.down(F.silu(self.gate(h)) * self.up(h))))


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (Convolutions, (2, 3, 8, 8)),
        (SelfAttention, (2, 5, 8)),
        (lambda: nn.Sequential(nn.Linear(6, 8), nn.GLU(), nn.Linear(4, 6, bias=False)), (2, 6)),
    ],
)
def test_every_layer_carries_the_whole_flow(make, shape):
    """With biases, norms with statistics, any activation, and products of activations."""
    scores, total = flow(randomised(make()), torch.randn(shape))
    assert {name: float(s.sum()) for name, s in scores.items()} == pytest.approx(dict.fromkeys(scores, total))


def test_a_product_passes_half_over_each_factor():
    model = randomised(Llama())
    scores, total = flow(model, torch.randint(11, (2, 5)))
    sums = {name.partition(".")[0]: float(s.sum()) for name, s in scores.items()}
    assert sums["head"] == pytest.approx(total)
    assert sums["gate"] == pytest.approx(sums["up"])
    assert sums["gate"] + sums["up"] == pytest.approx(sums["down"])
    assert sums["q"] == pytest.approx(sums["k"])
    assert sums["q"] + sums["k"] == pytest.approx(sums["v"])
    assert sums["v"] + sums["q"] + sums["k"] == pytest.approx(sums["o"])
    assert min(sums.values()) > 0


def test_a_shut_gate_shuts_its_paths():
    model = randomised(Llama())
    with torch.no_grad():
        model.gate.weight[3] = 0
    scores, _ = flow(model, torch.randint(11, (2, 5)))
    assert not scores["up.weight"][3].any()
    assert not scores["down.weight"][:, 3].any()


def test_batch_norms_are_their_scale():
    """|gamma| / sqrt(variance + eps); means, shifts and biases are nothing."""
    model = randomised(nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 2, 1)))
    scores, total = flow(model, torch.randn(1, 2, 1, 1))
    scale = (model[1].weight / (model[1].running_var + model[1].eps).sqrt()).detach().double().abs()
    first, last = (model[k].weight.detach().double().abs().flatten(1) for k in (0, 3))
    assert total == pytest.approx(float((last @ (scale * first.sum(1))).sum()))
    torch.testing.assert_close(scores["3.weight"].flatten(1), last * (scale * first.sum(1)))


def test_recurrent_and_packed_attention_layers_are_followed():
    class Reader(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.lstm = nn.Embedding(7, 8), nn.LSTM(8, 8, batch_first=True)
            self.block = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
            self.head = nn.Linear(8, 4)

        def forward(self, tokens):
            return self.head(self.block(self.lstm(self.table(tokens))[0]).mean(1))

    scores, total = flow(randomised(Reader()), torch.randint(7, (2, 4)))
    assert float(scores["head.weight"].sum()) == pytest.approx(total)
    assert all(bool((s > 0).any()) for s in scores.values())


def test_neither_data_nor_the_values_of_the_example_count():
    model = chain()
    plans = [
        Synflow().choose(problem(model, x)).plan for x in (torch.zeros(1, 4), torch.randn(1, 4), -torch.ones(1, 4))
    ]
    assert plans[0] == plans[1] == plans[2]
    words = randomised(Llama())
    plans = [Synflow(3).choose(problem(words, x)).plan for x in (torch.zeros(1, 5).long(), torch.arange(5)[None])]
    assert plans[0] == plans[1]


def test_tokens_are_ones_for_every_row_of_an_embedding():
    model = randomised(nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 2, bias=False)))
    _, total = flow(model, torch.zeros(1, 1).long())
    rows = model[0].weight.detach().double().abs().sum(0)
    assert total == pytest.approx(float((model[1].weight.detach().double().abs() @ rows).sum()))


def test_deep_networks_need_float64():
    model = nn.Sequential(*(nn.Linear(64, 64, bias=False) for _ in range(30)))
    for parameter in model.parameters():
        nn.init.ones_(parameter)
    scores, total = flow(model, torch.zeros(1, 64))
    assert total == 64.0**31
    assert total > torch.finfo(torch.float32).max
    assert float(scores["0.weight"].sum()) == pytest.approx(total)


def test_densities_fall_exponentially_in_a_hundred_rounds():
    gone = removed_by_round(9900, 10_000, 100)
    assert len(gone) == 100
    assert gone[-1] == 9900
    assert gone[49] == 9000
    left = [10_000 - g for g in gone]
    assert all(abs(b / a - 0.01 ** (1 / 100)) < 0.01 for a, b in pairwise(left))
    assert Synflow().rounds == 100


def funnel():
    """A layer of many weights before two of few, all of about one size: each of the many is weak."""
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(400, 4), nn.ReLU(), nn.Linear(4, 20), nn.ReLU(), nn.Linear(20, 4))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(1 + 0.1 * torch.rand(parameter.shape, generator=generator))
    return model


def test_rounds_keep_layers_that_one_round_empties():
    model, x = funnel(), torch.zeros(1, 400)
    with pytest.warns(LayerKeptAlive, match=r"0\.weight would have lost every weight"):
        Synflow(rounds=1).choose(problem(model, x, remove=0.93))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plan = Synflow().choose(problem(model, x, remove=0.93)).plan
    assert plan.removed_count == math.ceil(0.93 * plan.weight_count)
    assert int(plan.kept["0.weight"].sum()) > 10
    assert flow(model, x, kept=plan.kept)[1] > 0


def test_rounds_see_what_went_before():
    """Of two units one path is left, whole; scored once, the four weakest are the whole first layer."""
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 1, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[2.0, 2.1], [30.0, 31.0]]))
        model[1].weight.copy_(torch.tensor([[1.0, 0.066]]))
    scores, _ = flow(model, torch.zeros(1, 2))
    assert scores["0.weight"].max() < scores["1.weight"].min()
    plan = Synflow().choose(problem(model, torch.zeros(1, 2), remove=4 / 6)).plan
    assert [mask.tolist() for mask in plan.kept.values()] == [[[False, True], [False, False]], [[True, False]]]


def test_a_pattern_is_scored_once():
    result = sparsify(funnel(), torch.zeros(1, 400), pattern=Pattern(2, 4), method="synflow")
    assert result.removed == 0.5


def test_computed_weights_are_followed():
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 3)), nn.Linear(3, 2))
    scores, total = flow(randomised(model), torch.zeros(1, 4))
    assert float(scores["1.weight"].sum()) == pytest.approx(total)


def test_layouts_and_masks_made_on_the_way_are_no_matter():
    """A pooled channels-last map is given other strides, and a mask of another shape is made of an activation."""

    class Pooled(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.pool, self.head = nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Linear(4, 2)

        def forward(self, x):
            x = self.pool(self.conv(x).contiguous(memory_format=torch.channels_last)).flatten(1)
            return self.head(x + x.new_zeros(4)) + x.new_ones(1)

    scores, total = flow(randomised(Pooled()), torch.zeros(2, 3, 6, 6))
    assert [float(s.sum()) for s in scores.values()] == pytest.approx([total, total])


def test_weights_that_are_zero_go_first():
    model = chain()
    with torch.no_grad():
        model[0].weight[:, 1] = 0
        model[2].weight[:, 2] = 0
    plan = Synflow().choose(problem(model, torch.zeros(1, 4), remove=8 / 41)).plan
    assert torch.equal(plan.kept["0.weight"], model[0].weight != 0)
    assert torch.equal(plan.kept["2.weight"], model[2].weight != 0)


class Odd(nn.Module):
    def __init__(self, forward):
        super().__init__()
        self.layer, self.odd = nn.Linear(4, 4), forward

    def forward(self, x):
        return self.layer(self.odd(self.layer(x)))


def test_what_cannot_be_followed_is_refused_by_name():
    x = torch.randn(2, 4)
    with pytest.raises(MethodError, match="_fft_r2c in module ''"):
        Synflow().choose(problem(Odd(lambda y: torch.fft.rfft(y).real[:, [0, 0, 1, 1]]), x))
    with pytest.raises(MethodError, match="args="):
        Synflow().choose(problem(chain()))
    with pytest.raises(MethodError, match="cannot be run on args="):
        Synflow().choose(problem(chain(), torch.zeros(1, 3)))
    with pytest.raises(MethodError, match="Whole numbers"):
        Synflow().choose(problem(Whole(), torch.zeros(1, 4).long()))
    with pytest.raises(MethodError, match="written into"):
        Synflow().choose(problem(Odd(written), x))


class Whole(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(5, 2)

    def forward(self, x):
        return self.layer(F.one_hot(x, 5).float())


def written(x):
    room = torch.zeros(2, 4)
    room[:, 1:] = x[:, 1:]
    return room


def test_networks_without_a_path_are_refused_and_budgets_out_of_reach_said():
    model = chain()
    nn.init.zeros_(model[2].weight)
    with pytest.raises(MethodError, match="strength 0"):
        Synflow().choose(problem(model, torch.zeros(1, 4)))
    with pytest.raises(BudgetError, match="at most"):
        Synflow().choose(problem(chain(), torch.zeros(1, 4), remove=0.999))


@pytest.mark.parametrize(
    ("settings", "said"), [({"rounds": 0}, "rounds"), ({"rounds": 2.0}, "rounds"), ({"scope": "x"}, "scope")]
)
def test_settings_without_sense_are_refused(settings, said):
    with pytest.raises(MethodError, match=said):
        Synflow(**settings)
