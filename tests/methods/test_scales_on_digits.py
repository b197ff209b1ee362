"""Methods that penalise scales, trained as they are meant to be, on real digits."""

from __future__ import annotations

import pytest
import torch

from secateur import Budget, finetune, prune
from secateur.data import digits
from secateur.methods import IstaBn, NetworkSlimming
from secateur.models import digits_resnet
from secateur.train import ClassificationTask, evaluate, fit, recipe

pytest.importorskip("sklearn", reason="the digits come with scikit-learn")
pytestmark = pytest.mark.slow
TASK, RECIPE = ClassificationTask(), recipe("digits")


@pytest.fixture(scope="module")
def dense():
    loaders = digits().loaders(64)
    torch.manual_seed(0)
    model = digits_resnet()
    return loaders, model, fit(model, loaders.train, TASK, RECIPE, eval_loader=loaders.test, progress=False).metric


@pytest.mark.parametrize(
    "method",
    [
        NetworkSlimming(penalty=0.01, recipe=RECIPE),
        NetworkSlimming(penalty=0.01, form="proximal", recipe=RECIPE),
        IstaBn(penalty=0.02, early_penalty=0.01, recipe=RECIPE),
        IstaBn(penalty=0.02, early_penalty=0.01, residual="prune", recipe=RECIPE),
    ],
    ids=["subgradient", "proximal", "ista", "ista, streams too"],
)
def test_the_budget_is_reached_within_two_points_of_dense(dense, method):
    loaders, model, metric = dense
    example = next(iter(loaders.test))[0][:2]
    result = prune(model, example, budget=Budget(0.4, "macs"), method=method, data=loaders.train, task=TASK)
    assert 0.4 <= result.removed < 0.42
    tuned, _ = finetune(result.model, loaders.train, TASK, RECIPE.finetuning(3), progress=False)
    assert evaluate(tuned, loaders.test, TASK, progress=False) >= metric - 0.02


def test_what_ista_brought_to_zero_leaves_without_a_loss(dense):
    loaders, model, metric = dense
    example = next(iter(loaders.test))[0][:2]
    method = IstaBn(penalty=0.02, early_penalty=0.01, recipe=RECIPE)
    result = prune(model, example, budget=Budget(0.4, "macs"), method=method, data=loaders.train, task=TASK)
    gone = [float(result.decision.scores[n][i]) for n in result.plan for i in result.plan.removed(n)]
    assert len(gone) > 20
    assert max(gone) == 0
    assert evaluate(result.model, loaders.test, TASK, progress=False) >= metric - 0.01
