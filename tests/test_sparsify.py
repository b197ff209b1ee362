"""The one call for single weights."""

import threading

import pytest
import torch
from torch import nn

import secateur as sc
from secateur import Budget, sparsify
from secateur.errors import BudgetError, MethodError, NothingPruned, NothingToPrune, SurgeryError, UnknownName
from secateur.methods import L1Filter, Magnitude, Pattern
from secateur.train import ClassificationTask


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 4, 8))


def test_the_result_says_what_was_asked_and_got():
    result = sparsify(model(), budget=Budget(0.5, "weights"))
    assert result.plan.removed_count == 272
    assert result.removed == 0.5
    assert "got 50.0%" in str(result)
    assert f"of all {sum(p.numel() for p in model().parameters()):,} parameters" in str(result)
    assert isinstance(result.model[0], nn.Conv2d)


def test_of_params_counts_zeros_among_all_parameters():
    result = sparsify(model(), budget=Budget(0.5, "params"))
    whole = sum(p.numel() for p in model().parameters())
    assert result.plan.removed_count == -(-whole // 2)
    assert result.removed == pytest.approx(0.5, abs=1 / whole)


def test_a_pattern_needs_no_budget():
    result = sparsify(model(), pattern="2:4")
    assert result.removed == 0.5
    assert (result.model[4].weight.reshape(8, 8, 4) != 0).sum(-1).eq(2).all()
    assert sparsify(model(), pattern=Pattern(1, 4)).removed == 0.75


def test_what_is_missing_or_mixed_up_is_named():
    with pytest.raises(BudgetError, match="pattern="):
        sparsify(model())
    with pytest.raises(BudgetError, match=r"0\.9 for 90 %"):
        sparsify(model(), budget=Budget(90, "weights"))
    with pytest.raises(BudgetError, match="channels"):
        sparsify(model(), budget=Budget(0.5))
    with pytest.raises(MethodError, match=r"secateur\.prune"):
        sparsify(model(), budget=Budget(0.5, "weights"), method="l1_filter")
    with pytest.raises(MethodError, match=r"secateur\.prune"):
        sparsify(model(), budget=Budget(0.5, "weights"), method=L1Filter())
    with pytest.raises(MethodError, match="task="):
        sparsify(model(), budget=Budget(0.5, "weights"), data=[1])
    with pytest.raises(UnknownName, match="magnitude"):
        sparsify(model(), budget=Budget(0.5, "weights"), method="magnitud")


def test_weights_that_are_computed_stay_whole_and_are_named(caplog):
    budget, normed = Budget(0.5, "weights"), nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))
    result = sparsify(nn.Sequential(normed, nn.Linear(4, 2)), budget=budget)
    assert list(result.plan) == ["1.weight"]
    assert "left whole, since torch.nn.utils.parametrize computes them: 0.weight" in caplog.text
    with pytest.raises(NothingToPrune, match=r"0\.weight are computed \(torch\.nn\.utils\.parametrize\)"):
        sparsify(nn.Sequential(normed), budget=budget)
    caplog.clear()
    named = sparsify(nn.Sequential(normed), budget=budget, include="0.parametrizations.weight.original1")
    assert (named.model[0].weight == 0).sum() == 8
    assert not caplog.text


def test_prune_points_to_it():
    images = torch.zeros(1, 4, 4, 4)
    for method in ("magnitude", Magnitude()):
        with pytest.raises(MethodError, match=r"sparsify|expected a name"):
            sc.prune(model(), images, method=method, budget=Budget(0.5))
    with pytest.raises(BudgetError, match="weights"):
        sc.prune(model(), images, budget=Budget(0.5, "weights"))


def test_nothing_removed_is_said():
    tiny = nn.Linear(2, 1, bias=False)
    assert sparsify(tiny, budget=Budget(0.0, "weights")).plan.removed_count == 0
    padded = Pattern(3, 4, uneven="pad")
    with pytest.warns(NothingPruned) as told:
        sparsify(tiny, pattern=padded)
    assert told[0].filename == __file__, "where the call stands"


@pytest.mark.parametrize("method", ["magnitude", "sparsegpt"])
def test_a_model_that_cannot_be_copied_is_refused(method):
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    model.lock = threading.Lock()
    before = [parameter.clone() for parameter in model.parameters()]
    data = [(torch.randn(16, 4), torch.zeros(16, dtype=torch.long))]
    with pytest.raises(SurgeryError, match=r"attribute 'lock' of the model, a lock, cannot be copied"):
        sparsify(model, budget=Budget(remove=0.5, of="weights"), method=method, data=data, task=ClassificationTask())
    assert all(map(torch.equal, model.parameters(), before))
