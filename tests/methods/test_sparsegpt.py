"""SparseGPT: its error identity, what a diagonal Hessian leaves of it, lazy updates, exact counts and N:M."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from secateur import Budget, sparsify
from secateur.errors import MethodError
from secateur.methods import Pattern, SparseGPT, Wanda, WeightProblem
from secateur.methods._calibrate import FewSamples
from secateur.methods.sparsegpt import sparsegpt
from secateur.train import FunctionTask

TASK = FunctionTask(inputs=lambda batch: batch, loss=lambda o, b: o.sum(), metric=lambda o, b: o.sum())


def choose(model, data, method=None, remove=0.5, **more):
    problem = WeightProblem(model, Budget(remove, "weights"), data=data, task=TASK, **more)
    return (method or SparseGPT()).choose(problem)


def correlated(rows=60, columns=12, seed=0):
    """Return W (1, 7, columns), X (rows, columns), H, all float64."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.eye(columns, dtype=torch.float64) + 0.5 * torch.randn(
        columns, columns, generator=generator, dtype=torch.float64
    )
    X = torch.randn(rows, columns, generator=generator, dtype=torch.float64) @ mix
    W = torch.randn(1, 7, columns, generator=generator, dtype=torch.float64)
    return W, X, (2 * X.T @ X / rows)[None]


def lowest_half(cell, scores):
    edge = scores.flatten().median()
    return scores > edge


def blocks(columns, size):
    return [[(start, min(start + size, columns))] for start in range(0, columns, size)]


@pytest.mark.parametrize("size", [1, 4, 5, 12])
def test_half_the_squared_errors_are_what_the_output_loses(size):
    W, X, H = correlated()
    found = sparsegpt(W, H, blocks(12, size), lowest_half)
    lost = ((W - found.kernel)[0] @ X.T).square().sum() / len(X)
    torch.testing.assert_close(found.errors.square().sum() / 2, lost)
    assert lost > 0.1
    assert not found.kernel[~found.keep_mask].any()
    unchanged = torch.equal(found.kernel[found.keep_mask], W[found.keep_mask])
    assert not unchanged


def test_lazy_updates_equal_eager_ones():
    """Which columns go is fixed here; then it does not matter how many columns are updated together."""
    W, _, H = correlated()
    keep = torch.rand(W.shape, generator=torch.Generator().manual_seed(3)) > 0.5
    results = [
        sparsegpt(W, H, blocks(12, size), lambda cell, _: keep[..., cell[0] : cell[1]]).kernel for size in (1, 3, 12)
    ]
    for other in results[1:]:
        torch.testing.assert_close(results[0], other, rtol=1e-10, atol=1e-12)


def test_the_result_is_the_least_squares_answer_for_the_first_columns_removed():
    """Where the columns that go are the leading ones, the others' update is the exact re-fit."""
    W, X, H = correlated()
    found = sparsegpt(W, H, blocks(12, 4), lambda cell, s: torch.full_like(s, cell[0] >= 4, dtype=torch.bool))
    target = X @ W[0].T
    refitted = torch.linalg.lstsq(X[:, 4:], target).solution.T
    torch.testing.assert_close(found.kernel[0, :, 4:], refitted)


def test_scores_are_squares_over_the_squared_diagonal_of_u():
    W, _, H = correlated()
    U = torch.linalg.cholesky(torch.linalg.inv(H), upper=True)
    found = sparsegpt(W, H, blocks(12, 12), lambda cell, s: torch.ones_like(s, dtype=torch.bool))
    torch.testing.assert_close(found.scores, (W / U.diagonal(dim1=1, dim2=2)[:, None]) ** 2)
    assert torch.equal(found.kernel, W)


def orthogonal_inputs(columns, seed=0):
    """Rows whose columns do not correlate and have different norms."""
    scale = torch.linspace(0.5, 4, columns, dtype=torch.float64)[torch.randperm(columns)]
    return torch.eye(columns, dtype=torch.float64) * scale


def test_a_diagonal_hessian_gives_wandas_metric_over_all_rows_and_no_update():
    torch.manual_seed(0)
    layer = nn.Linear(16, 6, bias=False).double()
    X = orthogonal_inputs(16)
    decision = choose(layer, [X])
    expected = layer.weight.detach() ** 2 * X.square().sum(0)
    order = expected.flatten().argsort()
    mask = torch.ones(96, dtype=torch.bool)
    mask[order[:48]] = False
    assert torch.equal(decision.plan.kept["weight"], mask.view(6, 16))
    kept = decision.plan.kept["weight"]
    torch.testing.assert_close(decision.model.weight[kept], layer.weight[kept], rtol=0, atol=1e-12)
    by_row = Wanda().choose(WeightProblem(layer, Budget(0.5, "weights"), data=[X], task=TASK)).plan
    assert by_row != decision.plan


def test_each_block_of_columns_loses_the_same_share():
    """The weights of the first block are all smaller: a ranking over the layer would take it whole."""
    layer = nn.Linear(16, 4, bias=False).double()
    with torch.no_grad():
        layer.weight.copy_(torch.arange(16.0).add(1).expand(4, 16))
    kept = choose(layer, [torch.eye(16, dtype=torch.float64)], SparseGPT(block=8)).plan.kept["weight"]
    assert kept[:, :8].sum() == kept[:, 8:].sum() == 16
    default = choose(layer, [torch.eye(16, dtype=torch.float64)]).plan.kept["weight"]
    assert default[:, :8].sum() == 0


def test_it_beats_masking_with_its_own_choice_and_wanda():
    torch.manual_seed(1)
    layer = nn.Linear(24, 16, bias=False).double()
    X = torch.randn(200, 24, dtype=torch.float64) @ torch.randn(24, 24, dtype=torch.float64)
    before = layer(X)
    decision = choose(layer, [X])
    refitted = (decision.model(X) - before).square().sum()
    masked = F.linear(X, layer.weight * decision.plan.kept["weight"])
    wanda = Wanda().choose(WeightProblem(layer, Budget(0.5, "weights"), data=[X], task=TASK)).plan
    by_wanda = F.linear(X, layer.weight * wanda.kept["weight"])
    assert refitted < 0.75 * (masked - before).square().sum()
    assert refitted < (by_wanda - before).square().sum()


def test_dead_inputs_go_first_and_change_nothing_else():
    torch.manual_seed(0)
    layer = nn.Linear(8, 4, bias=False).double()
    X = torch.randn(40, 8, dtype=torch.float64)
    X[:, [1, 6]] = 0
    decision = choose(layer, [X], remove=0.25)
    kept = decision.plan.kept["weight"]
    assert kept.sum(0).tolist() == [4, 0, 4, 4, 4, 4, 0, 4]
    assert torch.equal(decision.model.weight[kept], layer.weight[kept])


@pytest.mark.parametrize("pattern", [Pattern(2, 4), Pattern(1, 3), Pattern(3, 5, uneven="pad")])
def test_n_of_m_along_inputs_whatever_the_block(pattern):
    """Groups that straddle a block of columns are chosen as one."""
    torch.manual_seed(0)
    layer = nn.Linear(24, 6, bias=False).double()
    X = torch.randn(80, 24, dtype=torch.float64) @ torch.randn(24, 24, dtype=torch.float64)
    results = [choose(layer, [X], SparseGPT(block=b), pattern.remove, pattern=pattern) for b in (1, 7, 128)]
    for found in results:
        for block in found.plan.kept["weight"].split(pattern.of, dim=1):
            assert block.sum(1).eq(min(pattern.keep, block.shape[1])).all()
        torch.testing.assert_close(found.model.weight, results[0].model.weight)


def test_n_of_m_of_a_convolution_runs_along_channels():
    torch.manual_seed(0)
    conv = nn.Conv2d(8, 4, 3, padding=1, bias=False)
    kept = choose(conv, [torch.randn(4, 8, 6, 6)], pattern=Pattern(2, 4)).plan.kept["weight"]
    assert kept.unflatten(1, (2, 4)).sum(2).eq(2).all()


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_a_convolution_is_its_unfolded_product(groups):
    """Group by group, the same as a linear layer on the patches."""
    torch.manual_seed(groups)
    conv = nn.Conv2d(4, 4, 2, groups=groups, bias=False).double()
    images = torch.randn(6, 4, 5, 5, dtype=torch.float64)
    patches = F.unfold(images, 2).transpose(1, 2).reshape(-1, groups, 16 // groups)
    found = choose(conv, [images], pattern=Pattern(1, 2, uneven="skip") if groups < 4 else None)
    lost = (found.model(images) - conv(images)).square().sum()
    assert (found.model.weight == 0).sum() == conv.weight.numel() // 2
    rows = (found.model.weight - conv.weight).view(groups, 4 // groups, -1)
    torch.testing.assert_close(lost, torch.einsum("ngc,goc->ngo", patches, rows).square().sum())
    masked = F.conv2d(images, conv.weight * found.plan.kept["weight"], groups=groups)
    assert lost < (masked - conv(images)).square().sum()


def test_dependent_inputs_need_damping():
    layer = nn.Sequential(nn.Linear(6, 3))
    data = [torch.ones(40, 6)]
    with pytest.raises(MethodError, match=r"0: .*damping"):
        choose(layer, data, SparseGPT(damping=0))
    assert choose(layer, data).plan.removed_count == 9


def test_fewer_samples_than_inputs_are_said():
    with pytest.warns(FewSamples, match=r"weight \(3 for 8\)"):
        found = choose(nn.Linear(8, 4), [torch.randn(3, 8)])
    assert found.plan.removed_count == 16
    assert found.model.weight.isfinite().all()


def test_the_second_layer_sees_what_the_pruned_first_one_gives():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(10, 8), nn.ReLU(), nn.Linear(8, 4)).double()
    data = [torch.randn(100, 10, dtype=torch.float64)]
    one_by_one = choose(model, data, SparseGPT(together="layer"))
    hidden = one_by_one.model[:2](data[0]).detach()
    alone = choose(nn.Sequential(model[2]), [hidden])
    torch.testing.assert_close(one_by_one.model[2].weight, alone.model[0].weight)
    at_once = choose(model, data, SparseGPT(together="model"))
    assert not torch.allclose(at_once.model[2].weight, one_by_one.model[2].weight)


def test_activations_that_are_no_numbers_name_the_layer():
    with pytest.raises(MethodError, match=r"'0'.*NaN"):
        choose(nn.Sequential(nn.Linear(4, 4)), [torch.full((9, 4), float("inf"))])


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"damping": -0.1}, "damping"),
        ({"block": 0}, "block"),
        ({"scope": "row"}, "scope"),
        ({"together": "all"}, "together"),
        ({"rows_per_sample": 0}, "rows_per_sample"),
    ],
)
def test_settings_without_sense_are_refused(settings, said):
    with pytest.raises(MethodError, match=said):
        SparseGPT(**settings)


def test_no_data_is_said():
    with pytest.raises(MethodError, match="sparsegpt looks at activations: give data="):
        sparsify(nn.Linear(4, 4), budget=Budget(0.5, "weights"), method="sparsegpt")
