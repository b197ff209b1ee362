"""What holds for every method that takes part in training: resumed runs, loops by hand, and what is refused."""

from __future__ import annotations

import copy

import pytest
import torch

from secateur.catalogue import CATALOGUE
from secateur.errors import BudgetError, MethodError
from secateur.methods import (
    AutoPruner,
    DepgraphGroupNorm,
    Greg,
    GroupFisher,
    IstaBn,
    NetworkSlimming,
    StructuredSparsity,
)
from secateur.methods._attached import TrainingMethod

from .attached_runs import (
    POINTS,
    assert_resumes,
    assert_same,
    moment_of,
    problem_of,
    run,
    run_by_hand,
    small_net,
    tensors,
)

METHODS = {
    name: entry.make(**entry.brief) for name, entry in CATALOGUE.items() if isinstance(entry.make(), TrainingMethod)
}
SHORT = {"growth": 0.1, "update_steps": 2, "settle_steps": 2, "ceiling": 0.3}
RUNS = {  # so that within a dozen steps everything happens that a method does
    "autopruner, net": AutoPruner(adapt_steps=2, search=0.7),
    "autopruner, layer": AutoPruner(adapt_steps=2, scope="layer", search=0.7),
    "depgraph_group_norm": DepgraphGroupNorm(penalty=0.05),
    "greg, 1": Greg(**SHORT),
    "greg, 2": Greg(2, **SHORT, choice_growth=0.01, choice_ceiling=0.02),
    "group_fisher, often": GroupFisher(interval=1),
    "group_fisher, seldom": GroupFisher(interval=3),
    "ista_bn": IstaBn(penalty=0.1, early_penalty=0.5, early_part=0.5, rescale=0.25),
    "network_slimming, subgradient": NetworkSlimming(penalty=0.02, initial_scale=0.5),
    "network_slimming, proximal": NetworkSlimming(penalty=0.02, form="proximal", initial_scale=0.5),
    "structured_sparsity, l21": StructuredSparsity("l21", update_steps=3, penalised=0.7),
    "structured_sparsity, l20": StructuredSparsity("l20", update_steps=3, penalised=0.7),
}


@pytest.mark.parametrize("method", RUNS.values(), ids=RUNS)
@pytest.mark.parametrize(("point", "step"), POINTS)
def test_a_run_killed_at_any_point_ends_the_same(tmp_path, method, point, step):
    assert_resumes(method, point, step, tmp_path)


@pytest.mark.parametrize("method", RUNS.values(), ids=RUNS)
def test_a_loop_by_hand_ends_like_ours(method):
    model, _, decision = run(method)
    by_hand, same = run_by_hand(method)
    assert_same(decision, same)
    assert all(torch.equal(one, other) for one, other in zip(tensors(model), tensors(by_hand), strict=True))


@pytest.mark.parametrize("name", METHODS)
def test_the_state_of_another_method_is_refused(name):
    attached = METHODS[name].attach(problem_of(small_net()))
    for state in ({"method": "another"}, {}):
        with pytest.raises(MethodError, match=rf"{name} was given the state of '(another|something else)'"):
            attached.load_state_dict(state)


@pytest.mark.parametrize("name", METHODS)
def test_an_optimizer_without_the_weights_that_a_method_works_on_is_refused(name):
    model = small_net()
    attached = METHODS[name].attach(problem_of(model))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    here = moment_of(model, optimizer=torch.optim.SGD([model[3].bias], lr=0.1))
    with pytest.raises(MethodError, match=rf"{name}.* does not hold"):
        attached.after_backward(here)


@pytest.mark.parametrize("name", METHODS)
def test_a_budget_out_of_reach_is_told_before_training(name):
    with pytest.raises(BudgetError, match="at most"):
        METHODS[name].attach(problem_of(small_net(), remove=0.99))


@pytest.mark.parametrize("name", METHODS)
def test_with_nothing_to_remove_finishing_touches_nothing(name):
    model = small_net()
    before = copy.deepcopy(tensors(model))
    assert METHODS[name].attach(problem_of(model, remove=0.0)).finish().plan.removed_count == 0
    assert all(torch.equal(one, other) for one, other in zip(before, tensors(model), strict=True))
