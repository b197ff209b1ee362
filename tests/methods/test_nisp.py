"""NISP: the ranking by hand, propagation against one rule per layer, the paper's bound, and how far it carries."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from secateur.budget import Budget, Limits
from secateur.errors import MethodError, NothingToPrune, UnknownName
from secateur.graph import trace
from secateur.methods import Nisp, Problem, _shadow
from secateur.methods._inf_fs import feature_graph, infinite_feature_scores, path_scores
from secateur.methods._shadow import ShadowNetwork, final_products
from secateur.methods.nisp import propagated
from secateur.train import ClassificationTask

# -- the ranking of the final responses --------------------------------------------------------------------------------


def test_two_joined_features_score_the_geometric_series():
    assert path_scores(torch.tensor([[0.0, 0.3], [0.3, 0.0]]), 0.9).tolist() == pytest.approx([9.0, 9.0])


def test_the_spectral_radius_is_the_same_for_many_features_as_for_few():
    edges = feature_graph(torch.randn(40, 300, generator=torch.Generator().manual_seed(0)), 0.5)
    radius = torch.linalg.eigvalsh(edges).abs().max()
    step = torch.eye(300).double() - 0.9 / radius * edges
    torch.testing.assert_close(path_scores(edges, 0.9), torch.linalg.inv(step).sum(dim=1) - 1)


def test_edges_are_spread_and_difference_in_order():
    rows = torch.tensor([[0.0, 0.0, 4.0], [1.0, 3.0, 0.0], [2.0, 6.0, 12.0]])
    # standard deviations sqrt(2/3) * (1, 3, 6.11); ranks (0 1 2), (0 1 2), (1 0 2): Spearman 1, 1/2, 1/2
    std = rows.double().std(dim=0, correction=0)
    widest = torch.tensor([[0, 1, 2], [1, 1, 2], [2, 2, 2]])
    sigma = (std[widest] - std[0]) / (std[2] - std[0])
    apart = torch.tensor([[0, 0, 0.5], [0, 0, 0.5], [0.5, 0.5, 0]])
    torch.testing.assert_close(feature_graph(rows, 1.0), sigma)
    torch.testing.assert_close(feature_graph(rows, 0.0), apart.double())
    torch.testing.assert_close(feature_graph(rows, 0.25), 0.25 * sigma + 0.75 * apart)


def test_ranks_count_not_values():
    rows = torch.tensor([[1.0, 1.0], [2.0, 10.0], [3.0, 1000.0]])
    assert float(feature_graph(rows, 0.0)[0, 1]) == pytest.approx(0.0, abs=1e-12)


def test_a_feature_that_never_varies_scores_nothing_and_disturbs_no_other():
    rows = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))
    wide = torch.cat([rows, torch.full((20, 1), 1e6)], dim=1)
    scores = infinite_feature_scores(wide)
    assert scores[4] == 0
    torch.testing.assert_close(scores[:4], infinite_feature_scores(rows))


# -- propagation ---------------------------------------------------------------------------------------------------


def linear(*rows):
    layer = nn.Linear(len(rows[0]), len(rows))
    layer.weight.data, layer.bias.data = torch.tensor(rows), torch.full((len(rows),), 7.0)
    return layer


def sent(model, example, tops, *, names=None, zeroed=None, cut_at=None):
    """Scores of every response, as group -> (width,), with tops at the final layer's input."""
    graph = trace(model, example)
    finals = final_products(graph)
    network = ShadowNetwork.of(model, graph, finals, names or list(graph.groups))
    found = {}

    def see(response, scaled):
        value = scaled.scores * math.exp(scaled.log_scale)
        found[response.group] = found.get(response.group, 0) + value
        return (zeroed or {}).get(response.group, torch.zeros(len(value), dtype=torch.bool))

    shape = finals[0].source.shape
    network.send({finals[0].op.index: tops.double().view(1, -1, *[1] * (len(shape) - 2)).expand(shape)}, see)
    return found


def test_scores_go_back_through_absolute_weights_and_biases_do_not_count():
    weight = [[1.0, -2.0], [0.0, 3.0]]
    assert propagated(torch.tensor(weight), torch.tensor([1.0, 2.0])).tolist() == [1.0, 8.0]
    model = nn.Sequential(linear([1.0], [1.0]), nn.ReLU(), linear(*weight), nn.ReLU(), linear([5.0, 5.0]))
    assert sent(model, torch.zeros(1, 1), torch.tensor([1.0, 2.0])) == {
        "0": pytest.approx(torch.tensor([1.0, 8.0])),
        "2": pytest.approx(torch.tensor([1.0, 2.0])),
    }


def test_scaling_the_top_scales_every_score():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 3, 3), nn.Flatten(), nn.Linear(12, 2))
    tops = torch.rand(12)
    once, thrice = (sent(model, torch.zeros(1, 1, 6, 6), t) for t in (tops, 3 * tops))
    for name in once:
        torch.testing.assert_close(3 * once[name], thrice[name])


class Mixed(nn.Module):
    """Convolution with stride, batch norm, overlapping max pool with padding, addition, concatenation, flatten."""

    def __init__(self):
        super().__init__()
        self.stem, self.bn = nn.Conv2d(2, 4, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(4)
        self.branch, self.side = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 3, 1)
        self.flat, self.head = nn.Linear(7 * 4, 5), nn.Linear(5, 2)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.bn(self.stem(x))), 3, 2, 1)
        y = x + torch.sigmoid(self.branch(x))
        return self.head(F.relu(self.flat(torch.cat([y, self.side(x)], dim=1).flatten(1))))


def test_every_kind_of_junction_follows_the_rule_of_its_layer():
    torch.manual_seed(0)
    model = Mixed().double().eval()
    model.bn.weight.data, model.bn.running_var = torch.tensor([1.0, -2.0, 3.0, 0.5]).double(), torch.rand(4).double()
    tops = torch.rand(5).double()
    flat = (tops @ model.flat.weight.abs()).view(1, 7, 2, 2)
    of_y, of_side = flat[:, :4], flat[:, 4:]
    pooled = of_y + F.conv_transpose2d(of_y, model.branch.weight.abs(), padding=1)
    pooled = pooled + F.conv_transpose2d(of_side, model.side.weight.abs())
    before = torch.zeros(1, 4, 4, 4, dtype=torch.float64)  # 3x3 windows, stride 2, padding 1 over 4x4
    for i, j in ((i, j) for i in range(2) for j in range(2)):
        rows, columns = range(max(0, 2 * i - 1), 2 * i + 2), range(max(0, 2 * j - 1), 2 * j + 2)
        for r, c in ((r, c) for r in rows for c in columns):
            before[:, :, r, c] += pooled[:, :, i, j] / (len(rows) * len(columns))
    found = sent(model, torch.zeros(1, 2, 8, 8).double(), tops)
    torch.testing.assert_close(found["flat"], tops)
    torch.testing.assert_close(found["side"], of_side.sum((0, 2, 3)))
    # the stream's channels are made twice: by the stem (after its batch norm) and by the branch
    torch.testing.assert_close(found["stem"], (before + 0).sum((0, 2, 3)) + of_y.sum((0, 2, 3)))


def test_batch_norm_counts_as_its_slope():
    model = (
        nn.Sequential(
            nn.Conv2d(1, 2, 1), nn.ReLU(), nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1), nn.Conv2d(3, 1, 1)
        )
        .double()
        .eval()
    )
    bn, tops = model[3], torch.tensor([1.0, 2.0, 3.0]).double()
    bn.weight.data, bn.running_var = torch.tensor([-2.0, 1.0, 4.0]).double(), torch.tensor([4.0, 1.0, 0.25]).double()
    after_norm = tops @ model[4].weight[:, :, 0, 0].abs()
    slope = bn.weight.abs() / (bn.running_var + bn.eps).sqrt()
    found = sent(model, torch.zeros(1, 1, 1, 1).double(), tops)
    torch.testing.assert_close(found["2"], after_norm)  # the response is what the norm gives
    torch.testing.assert_close(found["0"], (after_norm * slope) @ model[2].weight[:, :, 0, 0].abs())


def test_the_papers_bound_holds_on_random_relu_networks():
    torch.manual_seed(1)
    for _ in range(5):
        model = nn.Sequential(*[m for a, b in pairwise((4, 9, 8, 7)) for m in (nn.Linear(a, b), nn.ReLU())])
        model.append(nn.Linear(7, 2)).double()
        tops, x = torch.rand(7).double(), torch.randn(30, 4).double()
        gone = {name: torch.rand(width) < 0.4 for name, width in (("0", 9), ("2", 8))}
        scores = sent(model, x[:1], tops, zeroed=gone)
        with torch.no_grad():
            first = model[:2](x)
            second, final = model[2:4](first), model[2:6](first)
            masked = model[4:6](model[2:4](first * ~gone["0"]) * ~gone["2"])
            change = ((final - masked).abs() @ tops).sum()
            allowed = sum((values.abs() * gone[n] @ scores[n]).sum() for n, values in (("0", first), ("2", second)))
        assert 0 < change <= allowed + 1e-9


def test_what_a_layer_loses_passes_no_score_on():
    # group "2" loses neuron 1, the only one that reads neuron 1 of group "0" with weight
    model = nn.Sequential(
        linear([1.0], [1.0]), nn.ReLU(), linear([3.0, 1.0], [0.0, 9.0], [2.0, 0.0]), nn.ReLU(), linear([1.0] * 3)
    )
    tops = torch.tensor([2.0, 1.0, 2.0])
    assert sent(model, torch.zeros(1, 1), tops)["0"].tolist() == [10.0, 11.0]
    dead = {"2": torch.tensor([False, True, False])}
    assert sent(model, torch.zeros(1, 1), tops, zeroed=dead)["0"].tolist() == [10.0, 2.0]


def test_where_scores_are_divided_on_the_way_changes_nothing(monkeypatch):
    torch.manual_seed(2)
    model, x, tops = Mixed().double().eval(), torch.zeros(1, 2, 8, 8).double(), torch.rand(5)
    dead = {"stem": torch.tensor([True, False, False, True]), "side": torch.tensor([False, True, False])}
    found = []
    for apart in (1, 2, 1000):
        monkeypatch.setattr(_shadow, "APART", apart)
        found.append(sent(model, x, tops, zeroed=dead))
    for other in found[1:]:
        for name, scores in found[0].items():
            torch.testing.assert_close(scores, other[name])


def test_hundreds_of_layers_do_not_overflow():
    layers = [m for _ in range(300) for m in (nn.Linear(4, 4), nn.ReLU())]
    model = nn.Sequential(*layers, nn.Linear(4, 2))
    weight = torch.tensor([[9.0, 1.0, 5.0, 2.0]] * 4)  # 17 ** 299 is far beyond float64
    with torch.no_grad():
        for layer in model:
            if isinstance(layer, nn.Linear) and layer.out_features == 4:
                layer.weight.copy_(weight), layer.bias.zero_()
    graph = trace(model, torch.zeros(1, 4))
    network = ShadowNetwork.of(model, graph, final_products(graph), ["0"])
    found = []
    network.send(
        {final_products(graph)[0].op.index: torch.ones(1, 4, dtype=torch.float64)},
        lambda response, scaled: found.append(scaled) or torch.zeros(4, dtype=torch.bool),
    )
    (first,) = found
    torch.testing.assert_close(first.scores / first.scores[1], torch.tensor([9.0, 1.0, 5.0, 2.0]).double())
    total = math.log(float(first.scores.sum())) + first.log_scale
    assert total == pytest.approx(math.log(4) + 299 * math.log(17))


# -- the method ------------------------------------------------------------------------------------------------------


def problem(model, example, *, remove=0.5, data=None, **limits):
    images = [torch.randn(16, *example.shape[1:], generator=torch.Generator().manual_seed(k)) for k in range(2)]
    data = [(i.to(example.dtype), torch.zeros(16).long()) for i in images] if data is None else data
    graph = trace(model, example)
    return Problem(model, graph, Budget(remove), Limits(**limits), (example,), data=data, task=ClassificationTask())


INTERLEAVED = nn.Sequential(
    linear([1.0, 0.2], [0.3, 1.0]), nn.Tanh(), linear([3.0, 2.5], [0.0, 1.0]), nn.Tanh(), linear([1.0, 1.0])
)


def test_the_choice_of_one_layer_follows_from_what_later_ones_lost():
    decision = Nisp().decide(problem(INTERLEAVED, torch.zeros(1, 2)))
    (gone,) = decision.plan.removed("2")
    alone = torch.tensor([[3.0, 2.5], [0.0, 1.0]])[1 - gone]
    torch.testing.assert_close(decision.scores["0"] / decision.scores["0"].sum(), (alone / alone.sum()).double())


def test_a_global_choice_zeroes_nothing_on_the_way():
    decision = Nisp(allocation="global").decide(problem(INTERLEAVED, torch.zeros(1, 2), remove=0.25))
    tops = decision.scores["2"]
    whole = tops @ torch.tensor([[3.0, 2.5], [0.0, 1.0]]).double()
    torch.testing.assert_close(decision.scores["0"], whole / whole.mean())


def test_the_final_layer_can_be_named():
    model = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2))
    assert set(Nisp().decide(problem(model, torch.zeros(1, 3))).scores) == {"0", "2"}
    assert set(Nisp(classifier="2").decide(problem(model, torch.zeros(1, 3), remove=0.2)).scores) == {"0"}
    with pytest.raises(UnknownName, match="nowhere"):
        Nisp(classifier="nowhere").decide(problem(model, torch.zeros(1, 3)))
    with pytest.raises(MethodError, match="multiplies no activation"):
        Nisp(classifier="1").decide(problem(model, torch.zeros(1, 3)))


class TwoHeads(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.one, self.two = nn.Linear(3, 6), nn.Linear(6, 5), nn.Linear(6, 4)
        self.first, self.second = nn.Linear(5, 2), nn.Linear(4, 2)

    def forward(self, x):
        x = F.relu(self.stem(x))
        return self.first(F.relu(self.one(x))), self.second(F.relu(self.two(x)))


def test_every_output_has_a_final_layer():
    decision = Nisp().decide(problem(TwoHeads(), torch.zeros(1, 3)))
    assert set(decision.scores) == {"stem", "one", "two"}
    assert all(scores.sum() > 0 for scores in decision.scores.values())


class Gated(nn.Module):
    """Channel attention, attention and a norm by hand: products of activations, softmax and statistics."""

    def __init__(self):
        super().__init__()
        self.enter, self.gate, self.up = nn.Linear(3, 8), nn.Linear(8, 6), nn.Linear(8, 6)
        self.query, self.key, self.value, self.head = (nn.Linear(6, 4) for _ in range(4))

    def forward(self, x):
        x = self.enter(x)
        x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)
        x = F.silu(self.gate(x)) * self.up(x)
        shares = (self.query(x) @ self.key(x).transpose(-1, -2)).softmax(-1)
        return self.head(F.pad(shares @ self.value(x), (0, 2)))


def test_attention_averages_and_what_it_compares_stays_whole(caplog):
    decision = Nisp().decide(problem(Gated(), torch.zeros(1, 5, 3), remove=0.2))
    assert {"enter", "gate"} <= set(decision.scores)
    assert not {"query", "key"} & set(decision.scores)
    assert "query" in caplog.text


class Exponential(nn.Module):
    def __init__(self):
        super().__init__()
        self.enter, self.head = nn.Linear(3, 8), nn.Linear(8, 2)

    def forward(self, x):
        return self.head(torch.sort(self.enter(x), dim=0).values)


def test_an_operation_without_a_shadow_is_named_where_it_stands():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), Exponential())
    model[2].enter = nn.Linear(4, 8)
    with pytest.raises(MethodError, match=r"aten\.sort.* in 2: "):
        Nisp().decide(problem(model, torch.zeros(1, 3), remove=0.1))


def test_infinite_responses_name_the_layer():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    data = [(torch.full((4, 3), float("inf")), torch.zeros(4).long())]
    with pytest.raises(MethodError, match="what 2 reads holds NaN"):
        Nisp().decide(problem(model, torch.zeros(1, 3), data=data))


def test_batches_of_another_shape_are_reported():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    with pytest.raises(MethodError, match="has to fit the model"):
        Nisp().decide(problem(model, torch.zeros(1, 3), data=[(torch.zeros(4, 5), torch.zeros(4).long())]))


def test_no_more_rows_are_read_than_asked_for():
    taken = []

    class Counted(list):
        def __iter__(self):
            return (taken.append(1) or batch for batch in list.__iter__(self))

    data = Counted((torch.randn(16, 3), torch.zeros(16).long()) for _ in range(9))
    Nisp(samples=20).decide(problem(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)), torch.zeros(1, 3), data=data))
    assert len(taken) == 2


@pytest.mark.parametrize("setting", [{"decay": 1.0}, {"alpha": -0.1}, {"samples": 1}, {"samples": 2.0}])
def test_settings_out_of_range_are_refused(setting):
    with pytest.raises(MethodError, match=next(iter(setting))):
        Nisp(**setting)


def test_nothing_that_a_score_reaches_is_an_error():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    with pytest.raises((MethodError, NothingToPrune), match="classifier="):
        Nisp(classifier="0").decide(problem(model, torch.zeros(1, 3)))
