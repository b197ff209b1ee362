"""ERK and Uniform+: densities from shapes, met exactly; also as the scope of other methods."""

import pytest
import torch
from torch import nn

from secateur import Budget, sparsify
from secateur.errors import BudgetError, MethodError, NothingToPrune, UnknownName
from secateur.methods import Erk, Magnitude, Pattern, Snip, WeightProblem, erk_scope
from secateur.methods.erk import kept_counts
from secateur.models import resnet20
from secateur.train import ClassificationTask


def lenet():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(784, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 10))


def mixed():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3),
        nn.Conv2d(16, 32, 3, groups=4),
        nn.ConvTranspose2d(32, 8, 2),
        nn.Flatten(),
        nn.Linear(72, 10),
    )


def densities(model, remove):
    """The paper's, by bisection of e; in no way that the method computes them."""
    shapes = {n: p.shape for n, p in model.named_parameters() if p.dim() > 1}
    keep = sum(s.numel() for s in shapes.values()) * (1 - remove)
    low, high = 0.0, 1e9
    for _ in range(200):
        e = (low + high) / 2
        found = {n: min(1.0, e * sum(s) / s.numel()) for n, s in shapes.items()}
        low, high = (low, e) if sum(d * shapes[n].numel() for n, d in found.items()) > keep else (e, high)
    return found


@pytest.mark.parametrize("make", [lenet, mixed, resnet20])
@pytest.mark.parametrize("remove", [0.3, 0.8, 0.95])
def test_counts_are_within_one_weight_of_the_densities_and_meet_the_budget(make, remove):
    model = make()
    plan = Erk().choose(WeightProblem(model, Budget(remove, "weights"))).plan
    wanted = densities(model, remove)
    for name, mask in plan.kept.items():
        assert abs(int(mask.sum()) - wanted[name] * mask.numel()) <= 1, name
    assert plan.removed_count == -int(-remove * plan.weight_count // 1)


def test_density_counts_the_kernel():
    """(n + c + kh + kw) / (n c kh kw), not (n + c) / (n c): 8 and 10 kept of 40, not 9 and 9."""
    model = nn.Sequential(nn.Conv2d(2, 2, (1, 5)), nn.Linear(4, 5))
    kept = Erk().choose(WeightProblem(model, Budget(0.5, "weights"))).plan.kept
    shares = {"0.weight": 2 + 2 + 1 + 5, "1.weight": 9}
    assert [int(mask.sum()) for mask in kept.values()] == [round(20 * s / 19) for s in shares.values()] == [11, 9]


def test_layers_that_would_exceed_one_are_dense_and_the_rest_is_scaled_again():
    model = nn.Sequential(nn.Linear(100, 100, bias=False), nn.Linear(4, 2, bias=False), nn.Linear(2, 50, bias=False))
    kept = Erk().choose(WeightProblem(model, Budget(0.5, "weights"))).plan.kept
    assert [int(mask.sum()) for mask in kept.values()] == [5054 - 108, 8, 100]


def test_within_a_layer_the_smallest_go():
    model = mixed()
    plan = Erk().choose(WeightProblem(model, Budget(0.7, "weights"))).plan
    for name, mask in plan.kept.items():
        size = model.get_parameter(name).detach().abs()
        assert mask.all() or size[~mask].max() <= size[mask].min()


def test_the_scope_gives_other_methods_the_same_counts():
    model = mixed()
    budget = Budget(0.83, "weights")
    scope = erk_scope(model, budget)
    wanted = Erk().choose(WeightProblem(model, budget)).plan
    assert Magnitude(scope=scope).choose(WeightProblem(model, budget)).plan == wanted
    data = [(torch.randn(4, 3, 8, 8), torch.arange(4))]
    flat = nn.Sequential(*list(model)[:3], nn.AdaptiveAvgPool2d(3), nn.Flatten(), model[4])
    scope = erk_scope(flat, budget)
    plan = sparsify(flat, budget=budget, method=Snip(scope=scope), data=data, task=ClassificationTask()).plan
    assert {n: 1 - float(m.double().mean()) for n, m in plan.kept.items()} == pytest.approx(scope)


def test_the_scope_knows_what_is_protected():
    scope = erk_scope(lenet(), Budget(0.9, "weights"), protect=["0"])
    assert set(scope) == {"2.weight", "4.weight"}
    with pytest.raises(UnknownName, match="nothing"):
        erk_scope(lenet(), Budget(0.9, "weights"), protect=["nothing"])
    with pytest.raises(NothingToPrune):
        erk_scope(lenet(), Budget(0.9, "weights"), protect=[""])


def test_uniform_plus_keeps_the_first_convolution_and_a_fifth_of_the_last_layer():
    model = resnet20()
    kept = Erk("uniform_plus").choose(WeightProblem(model, Budget(0.9, "weights"))).plan.kept
    names = list(kept)
    assert kept[names[0]].all()
    assert int(kept[names[-1]].sum()) == 128  # of 640
    others = {n: float(m.double().mean()) for n, m in kept.items() if n not in (names[0], names[-1])}
    assert max(others.values()) - min(others.values()) < 2 / 2304


def test_uniform_plus_leaves_a_denser_last_layer_as_dense_as_the_rest():
    kept = Erk("uniform_plus").choose(WeightProblem(lenet(), Budget(0.5, "weights"))).plan.kept
    assert [int(mask.sum()) for mask in kept.values()] == [117600, 15000, 500]


def test_at_extreme_budgets_every_output_keeps_a_weight():
    model = lenet()
    plan = Erk().choose(WeightProblem(model, Budget(1 - 420 / 266200, "weights"))).plan
    counts = [int(mask.sum()) for mask in plan.kept.values()]
    assert sum(counts) == 420
    assert counts[0] >= 300
    assert counts[1] >= 100
    assert counts[2] >= 10


@pytest.mark.parametrize("densities", ["erk", "uniform_plus"])
def test_what_cannot_be_reached_is_said_with_the_most_that_can(densities):
    with pytest.raises(BudgetError, match="at most"):
        Erk(densities).choose(WeightProblem(lenet(), Budget(0.9999, "weights")))


def test_bounds_pull_the_others():
    assert kept_counts({"a": 1.0, "b": 1.0}, {"a": 0, "b": 8}, {"a": 9, "b": 9}, keep=10) == {"a": 2, "b": 8}
    with pytest.raises(BudgetError, match="at most"):
        kept_counts({"a": 1.0}, {"a": 3}, {"a": 9}, keep=2)


def test_a_pattern_goes_before_densities():
    plan = Erk().choose(WeightProblem(lenet(), Budget(0.5, "weights"), Pattern(2, 4))).plan
    assert {float(mask.float().mean()) for mask in plan.kept.values()} == {0.5}


def test_unknown_densities_are_refused():
    with pytest.raises(MethodError, match="densities"):
        Erk("uniform")
    with pytest.raises(MethodError, match="densities"):
        erk_scope(lenet(), Budget(0.5, "weights"), densities="er")
