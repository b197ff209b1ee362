"""Exact counts: under ties, in every scope, with layers kept alive, and in N:M blocks."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from secateur import Budget
from secateur.errors import BudgetError, MethodError, UnknownName
from secateur.methods import Pattern, WeightProblem
from secateur.methods._weight_choice import LayerKeptAlive, apportion, choose, layer_counts
from secateur.methods._weights import prunable_weights


def linears(*sizes):
    layers = [nn.Linear(a, b, bias=False) for a, b in pairwise(sizes)]
    return nn.Sequential(*layers)


def chosen(model, scores, remove, scope, **given):
    problem = WeightProblem(model, Budget(remove, "weights"), **given)
    weights = problem.weights()
    named = dict(zip([w.name for w in weights], scores, strict=True))
    return choose(problem, weights, named, scope)


def test_global_ranks_all_layers_together_and_layer_does_not():
    model = linears(2, 2, 2)
    scores = [torch.tensor([[1.0, 2.0], [3.0, 9.0]]), torch.tensor([[10.0, 20.0], [30.0, 40.0]])]
    plan = chosen(model, scores, 3 / 8, "global")
    assert plan.kept["0.weight"].tolist() == [[False, False], [False, True]]
    assert plan.kept["1.weight"].all()
    plan = chosen(model, scores, 4 / 8, "layer")
    assert plan.kept["1.weight"].tolist() == [[False, False], [True, True]]


def test_rows_compete_among_themselves_only():
    model = linears(3, 2)
    scores = [torch.tensor([[1.0, 2.0, 3.0], [10.0, 30.0, 20.0]])]
    assert chosen(model, scores, 2 / 6, "row").kept["0.weight"].tolist() == [[False, True, True], [False, True, True]]
    by_layer = chosen(model, scores, 2 / 6, "layer")
    assert by_layer.kept["0.weight"].tolist() == [[False, False, True], [True, True, True]]


def test_an_odd_count_takes_one_more_of_the_rows_that_miss_it_least():
    model = linears(3, 3)
    scores = [torch.tensor([[1.0, 9.0, 9.5], [1.0, 3.0, 9.0], [1.0, 7.0, 9.0]])]
    kept = chosen(model, scores, 5 / 9, "row").kept["0.weight"]
    assert (~kept).sum(1).tolist() == [1, 2, 2]


def test_ties_fall_by_position():
    model = linears(4, 2)
    kept = chosen(model, [torch.ones(2, 4)], 3 / 8, "global").kept["0.weight"]
    assert kept.flatten().tolist() == [False] * 3 + [True] * 5


@given(st.integers(1, 5), st.integers(1, 6), st.floats(0, 0.6), st.sampled_from(["global", "layer", "row"]))
def test_every_scope_meets_the_count_whatever_ties(width, inputs, remove, scope):
    model = linears(inputs + 2, width + 2, 3)
    generator = torch.Generator().manual_seed(width * 10 + inputs)
    scores = [torch.randint(0, 3, m.weight.shape, generator=generator).float() for m in model]
    whole = sum(s.numel() for s in scores)
    plan = chosen(model, scores, remove, scope)
    assert plan.removed_count == -(-(remove * whole - 1e-9 * whole) // 1)


def test_a_layer_that_would_lose_all_keeps_one_a_row_and_the_count_holds():
    model = linears(4, 2, 4)
    scores = [torch.arange(8.0).reshape(2, 4), 100 + torch.arange(8.0).reshape(4, 2)]
    with pytest.warns(LayerKeptAlive, match=r"0\.weight"):
        plan = chosen(model, scores, 9 / 16, "global")
    assert plan.kept["0.weight"].tolist() == [[False, False, False, True]] * 2
    assert plan.removed_count == 9
    assert plan.kept["1.weight"].flatten()[:3].tolist() == [False] * 3


def test_more_than_can_go_is_refused():
    model = linears(2, 2)
    with pytest.raises(BudgetError, match="at most 2"):
        chosen(model, [torch.ones(2, 2)], 0.99, "global")
    with pytest.raises(BudgetError, match="at most 2"):
        chosen(model, [torch.ones(2, 2)], 0.99, "layer")


def test_shares_of_a_mapping_are_relative_and_capped():
    assert apportion({"a": 3.0, "b": 1.0}, {"a": 100, "b": 100}, 8) == {"a": 6, "b": 2}
    assert apportion({"a": 3.0, "b": 1.0}, {"a": 4, "b": 100}, 8) == {"a": 4, "b": 4}
    assert apportion({"a": 1.0, "b": 0.0}, {"a": 4, "b": 100}, 3) == {"a": 3, "b": 0}
    with pytest.raises(BudgetError, match="at most 4"):
        apportion({"a": 1.0, "b": 0.0}, {"a": 4, "b": 100}, 5)


def test_a_mapping_names_parameters_that_there_are():
    weights = prunable_weights(linears(3, 3))
    assert layer_counts(weights, 2, {"0.weight": 0.5}) == {"0.weight": 2}
    with pytest.raises(UnknownName, match="nothing"):
        layer_counts(weights, 2, {"nothing": 0.5})


def test_two_of_four_run_along_input_channels_of_a_convolution():
    model = nn.Conv2d(4, 1, (1, 2), bias=False)
    scores = torch.tensor([[[[1.0, 40.0]], [[2.0, 30.0]], [[3.0, 20.0]], [[4.0, 10.0]]]])
    kept = chosen(model, [scores], 0.5, "layer", pattern=Pattern.parse("2:4")).kept["weight"]
    assert kept[0, :, 0, 0].tolist() == [False, False, True, True]
    assert kept[0, :, 0, 1].tolist() == [True, True, False, False]


def test_a_width_that_does_not_fit_is_refused_skipped_or_padded():
    model = nn.Linear(6, 1, bias=False)
    scores = [torch.tensor([[6.0, 5.0, 4.0, 3.0, 2.0, 1.0]])]
    with pytest.raises(MethodError, match=r"'weight' has 6 inputs.*'skip'.*'pad'"):
        chosen(model, scores, 0.5, "layer", pattern=Pattern(2, 4))
    assert chosen(model, scores, 0.5, "layer", pattern=Pattern(2, 4, "skip")).kept["weight"].all()
    padded = chosen(model, scores, 0.5, "layer", pattern=Pattern(2, 4, "pad")).kept["weight"]
    assert padded.tolist() == [[True, True, False, False, True, True]]


@pytest.mark.parametrize("text", ["4:2", "2:2", "0:4", "2-4", "half", "2:4:8", ""])
def test_a_pattern_without_sense_is_refused(text):
    with pytest.raises(MethodError, match=r"N:M|N < M"):
        Pattern.parse(text)


def test_a_budget_beside_a_pattern_has_to_agree():
    WeightProblem(linears(4, 4), Budget(0.5, "weights"), Pattern(2, 4))
    with pytest.raises(BudgetError, match=r"2:4 removes 50\.0%"):
        WeightProblem(linears(4, 4), Budget(0.6, "weights"), Pattern(2, 4))


@pytest.mark.parametrize(
    "layer",
    [
        nn.Linear(4, 3),
        nn.Conv2d(4, 6, 3, groups=2),
        nn.ConvTranspose2d(4, 3, 2),
        nn.ConvTranspose2d(4, 6, 2, groups=2),
        nn.Conv1d(2, 5, 3),
        nn.Bilinear(2, 3, 4),
    ],
)
def test_rows_are_outputs_and_come_back(layer):
    (weight,) = prunable_weights(layer)
    values = torch.arange(float(weight.tensor.numel())).reshape(weight.tensor.shape)
    rows = weight.rows(values)
    outputs = getattr(layer, "out_channels", None) or layer.out_features
    assert rows.shape[0] == weight.row_count == outputs
    assert torch.equal(weight.from_rows(rows), values)


@pytest.mark.parametrize("groups", [1, 2])
def test_a_row_of_a_transposed_convolution_is_what_one_output_reads(groups):
    """Zeroing a row silences that output and no other."""
    layer = nn.ConvTranspose2d(4, 6, 2, groups=groups, bias=False)
    (weight,) = prunable_weights(layer)
    rows = weight.rows(layer.weight.detach().clone())
    rows[4] = 0
    with torch.no_grad():
        layer.weight.copy_(weight.from_rows(rows))
    silent = (layer(torch.ones(1, 4, 3, 3)).abs().sum((0, 2, 3)) == 0).tolist()
    assert silent == [False, False, False, False, True, False]


def test_biases_norms_and_embeddings_stay_unless_named():
    model = nn.Sequential(nn.Embedding(5, 4), nn.LayerNorm(4), nn.Linear(4, 3), nn.MultiheadAttention(4, 2))
    names = [w.name for w in prunable_weights(model)]
    assert names == ["2.weight", "3.in_proj_weight", "3.out_proj.weight"]
    assert "0.weight" in [w.name for w in prunable_weights(model, include=["0.weight"])]
    with pytest.raises(MethodError, match=r"2\.bias"):
        prunable_weights(model, include=["2.bias"])
    with pytest.raises(UnknownName, match="nothing"):
        prunable_weights(model, include=["nothing"])


def test_a_weight_tied_to_an_embedding_stays():
    model = nn.ModuleDict({"table": nn.Embedding(5, 4), "head": nn.Linear(4, 5, bias=False), "mid": nn.Linear(4, 4)})
    model["head"].weight = model["table"].weight
    assert [w.name for w in prunable_weights(model)] == ["mid.weight"]


def test_gpt2_keeps_its_outputs_on_the_second_axis():
    transformers = pytest.importorskip("transformers")
    layer = transformers.pytorch_utils.Conv1D(6, 4)
    (weight,) = prunable_weights(layer)
    assert (weight.row_axis, weight.row_count, weight.input_count) == (1, 6, 4)


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")
def test_the_lengths_of_old_style_weight_norm_are_no_weights():
    """A zero there takes a whole filter: half of the weights asked for took 12 of 24 filters."""
    model = nn.Sequential(nn.utils.weight_norm(nn.Conv2d(2, 4, 3)), nn.utils.weight_norm(nn.Linear(4, 3), dim=None))
    assert [w.name for w in prunable_weights(model)] == ["0.weight_v", "1.weight_v"]


def test_the_weight_of_an_embedding_that_trains_under_spectral_norm_is_not_looked_at():
    model = nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Embedding(5, 4)), nn.Linear(4, 2))
    before = model[0].parametrizations.weight[0]._u.clone()
    assert [w.name for w in prunable_weights(model)] == ["1.weight"]
    assert torch.equal(model[0].parametrizations.weight[0]._u, before)
