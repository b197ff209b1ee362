"""Structured sparsity by an augmented Lagrangian: thresholds in closed form, what becomes zero, what is remembered."""

from __future__ import annotations

import copy
import logging

import pytest
import torch
from torch import nn

from secateur import shrink
from secateur.errors import MethodError
from secateur.methods import StructuredSparsity
from secateur.methods._weight_pull import filters_of, laid_out
from secateur.methods.structured_sparsity import block_hard_threshold, block_soft_threshold
from secateur.train import ClassificationTask, Recipe, fit

from .attached_runs import (
    RECIPE,
    batches,
    lost_on_digits,
    moment_of,
    problem_of,
    run,
    small_net,
)
from .test_l1_filter import chain

ROWS = torch.tensor([[3.0, 4.0, 0.0], [0.3, 0.0, 0.4], [1.0, -2.0, 2.0], [0.0, 0.0, 1.1]], dtype=torch.float64)
BRIEF = {"update_steps": 2, "unit": "absolute"}


def model_with(rows):
    """A model whose first layer has these rows as filters, the last column as bias."""
    model = chain(rows[:, :-1].tolist(), [[1.0] * len(rows)]).double()
    with torch.no_grad():
        model[0].weight.copy_(rows[:, :-1, None, None])
        model[0].bias.copy_(rows[:, -1])
    return model


def rows_of(model):
    return torch.cat([model[0].weight.detach().flatten(1), model[0].bias.detach()[:, None]], dim=1)


def attach(method, model, remove=0.25, inputs=2):
    return method.attach(problem_of(model, 1, inputs, 1, 1, remove=remove))


def minimise(method, wanted, steps=800):
    """Minimise 0.5 ||W - wanted||^2 and the norm, from elsewhere; return the attachment and the last rows."""
    model = model_with(wanted + 0.3)
    attached = attach(method, model)
    optimizer = torch.optim.SGD(model[0].parameters(), lr=0.4)
    moment = moment_of(model, optimizer=optimizer)
    for _ in range(steps):
        model[0].weight.grad = model[0].weight.detach() - wanted[:, :-1, None, None]
        model[0].bias.grad = model[0].bias.detach() - wanted[:, -1]
        attached.after_backward(moment)
        optimizer.step()
        attached.after_step(moment)
    return attached, rows_of(model)


@pytest.mark.parametrize("rho", [0.5, 1.0, 2.0])
def test_l21_reaches_the_block_soft_threshold_of_a_quadratic_whatever_rho_is(rho):
    wanted = block_soft_threshold(ROWS, 1.0)
    assert wanted.any(dim=1).tolist() == [True, False, True, True]
    attached, rows = minimise(StructuredSparsity(penalty=1.0, rho=rho, update_steps=8, unit="absolute"), ROWS)
    split = attached._splits["0"]
    torch.testing.assert_close(split.auxiliary, wanted, rtol=0, atol=1e-9)
    torch.testing.assert_close(rows, wanted, rtol=0, atol=1e-9)  # the primal residual is gone
    assert split.auxiliary[1].tolist() == [0.0, 0.0, 0.0], "zero, and not merely small"


def test_l20_reaches_the_block_hard_threshold_of_a_quadratic():
    wanted = block_hard_threshold(ROWS, 2**0.5)  # ||row||^2 = 25, 0.25, 9, 1.21 against 2 lambda = 2
    assert wanted.any(dim=1).tolist() == [True, False, True, False]
    attached, rows = minimise(StructuredSparsity("l20", penalty=1.0, update_steps=8, unit="absolute"), ROWS)
    torch.testing.assert_close(attached._splits["0"].auxiliary, wanted, rtol=0, atol=1e-9)
    torch.testing.assert_close(rows, wanted, rtol=0, atol=1e-9)


def test_thresholds_are_of_whole_rows_and_not_of_their_elements():
    rows = torch.tensor([[0.6, 0.8], [3.0, 0.1]])
    assert block_soft_threshold(rows, 0.5).tolist() == [
        pytest.approx([0.3, 0.4]),
        pytest.approx([2.5, 0.083], abs=1e-3),
    ]
    assert block_hard_threshold(rows, 0.9).tolist() == rows.tolist()
    assert block_hard_threshold(rows, 1.5)[0].tolist() == [0.0, 0.0]


def test_the_bias_is_part_of_the_filter():
    model = model_with(torch.tensor([[0.1, 0.1, 5.0], [2.0, 2.0, 0.0], [9.0, 9.0, 9.0], [9.0, 8.0, 9.0]]).double())
    assert attach(StructuredSparsity(), model).finish().plan.removed("0") == (1,)


def test_gradients_grow_by_those_of_the_quadratic_term():
    torch.manual_seed(2)
    model, rho = model_with(ROWS), 0.7
    attached = attach(StructuredSparsity(penalty=0.3, rho=rho, **BRIEF), model)
    moment = moment_of(model)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    attached.after_backward(moment)
    assert not model[0].weight.grad.any(), "F = W and Y = 0 in the beginning"
    attached.after_step(moment)
    attached.after_step(moment)  # the second updates F and Y
    split = attached._splits["0"]
    torch.testing.assert_close(split.dual, rho * (ROWS - block_soft_threshold(ROWS, 0.3 / rho)))
    with torch.no_grad():
        model[0].weight.normal_()
    attached.after_backward(moment)
    weight, bias = (p.detach().clone().requires_grad_() for p in model[0].parameters())
    own = torch.cat([weight.flatten(1), bias[:, None]], dim=1)
    (rho / 2 * (own - split.auxiliary + split.dual / rho).square().sum()).backward()
    torch.testing.assert_close(model[0].weight.grad, weight.grad)
    torch.testing.assert_close(model[0].bias.grad, bias.grad)
    assert not model[1].weight.grad.any(), "only filters that may go are drawn"


def test_heads_are_filters_over_query_key_and_value_and_numbers_come_back_where_they_were_read():
    class Heads(nn.Module):
        def __init__(self):
            super().__init__()
            self.qkv, self.out = nn.Linear(2, 12), nn.Linear(4, 2)

        def forward(self, x):
            q, k, v = self.qkv(x).reshape(*x.shape[:2], 3, 2, 2).permute(2, 0, 3, 1, 4).unbind(0)
            mixed = nn.functional.scaled_dot_product_attention(q, k, v)
            return self.out(mixed.transpose(1, 2).reshape(*x.shape[:2], 4))

    model = Heads().double()
    filters = filters_of(model, problem_of(model, 1, 3, 2).graph, "qkv", with_biases=True)
    rows = filters.read(model)
    assert rows.shape == (2, 3 * 2 * 2 + 3 * 2)
    laid = laid_out(model, filters, rows.detach())
    assert torch.equal(laid["qkv.weight"], model.qkv.weight)
    assert torch.equal(laid["qkv.bias"], model.qkv.bias)


def test_lambda_is_measured_in_mean_filter_norms_of_each_layer():
    relative, absolute = StructuredSparsity(penalty=0.4, rho=2.0), StructuredSparsity(penalty=0.4, rho=2.0, **BRIEF)
    assert (relative.threshold(5.0), absolute.threshold(5.0)) == (pytest.approx(1.0), pytest.approx(0.2))
    hard = StructuredSparsity("l20", penalty=0.4, rho=0.2)
    assert hard.threshold(5.0) == pytest.approx(10.0)  # ||T||^2 > 2 lambda / rho with lambda = 0.4 * 5^2


def test_scores_say_at_one_where_filters_become_zero():
    model = model_with(ROWS)
    attached = attach(StructuredSparsity(penalty=0.5, unit="absolute"), model)
    scores = attached.finish().scores["0"]
    torch.testing.assert_close(scores, torch.tensor([10.0, 1.0, 6.0, 2.2], dtype=torch.float64))


def test_what_goes_is_zero_when_the_penalty_ends_and_stays_so():
    model, attached, decision = run(StructuredSparsity(penalised=0.34, **BRIEF))
    gone = {"0": list(decision.plan.removed("0")), "3": list(decision.plan.removed("3"))}
    assert [len(own) for own in gone.values()] == [4, 3]
    assert not model[0].weight[gone["0"]].any()
    assert not model[1].bias[gone["0"]].any()
    assert not model[3].weight[:, gone["0"]].any()
    small = shrink(model, attached.problem.graph, decision.plan).eval()
    images = batches()[0][0]
    torch.testing.assert_close(small(images), model.eval()(images), rtol=0, atol=1e-12)


def test_the_rest_trains_on_after_the_filters_went():
    attached = StructuredSparsity(penalised=0.34, **BRIEF).attach(problem_of(model := small_net()))
    first = RECIPE.replace(epochs=1)
    fit(model, batches(), ClassificationTask(), first, attachments=[attached], progress=False)
    plan, before = attached.finish().plan, copy.deepcopy(model)
    fit(model, batches(), ClassificationTask(), RECIPE, attachments=[attached], progress=False)
    kept = list(plan.kept["0"])
    assert not torch.equal(model[0].weight[kept], before[0].weight[kept])
    assert not model[0].weight[list(plan.removed("0"))].any()
    assert attached.finish().plan == plan


def test_the_cut_computes_what_the_model_with_zeroed_filters_did():
    model = small_net()
    attached = StructuredSparsity(**BRIEF, penalised=1.0).attach(problem_of(model))
    moment = moment_of(model)
    fit(model, batches(), ClassificationTask(), RECIPE.replace(epochs=2), progress=False)
    zeroed = copy.deepcopy(model)
    attached.after_epoch(moment)
    decision = attached.finish()
    with torch.no_grad():
        for k in (0, 3):
            zeroed[k].weight[list(decision.plan.removed(str(k)))] = 0.0
        zeroed[3].bias[list(decision.plan.removed("3"))] = 0.0
    small, images = shrink(model, attached.problem.graph, decision.plan).eval(), batches()[0][0]
    torch.testing.assert_close(small(images), zeroed.eval()(images), rtol=0, atol=1e-12)


def test_the_log_says_when_penalty_and_budget_do_not_fit(caplog):
    with caplog.at_level(logging.WARNING):
        attach(StructuredSparsity(penalty=0.01, unit="absolute"), model_with(ROWS), remove=0.5).finish()
    assert "2 of the 2 filters that go are not at zero" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        attach(StructuredSparsity(penalty=99.0, unit="absolute"), model_with(ROWS), remove=0.5).finish()
    assert "2 filters at zero stay" in caplog.text
    assert "every filter of 0 is at zero: lower the penalty" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        attach(StructuredSparsity(penalty=2.0, unit="absolute"), model_with(ROWS), remove=0.5).finish()
    assert not caplog.text


def test_a_model_of_zeros_is_no_reason_for_scores_that_are_no_numbers():
    model = model_with(torch.zeros(4, 3, dtype=torch.float64))
    assert attach(StructuredSparsity(), model).finish().scores["0"].tolist() == [0.0] * 4


@pytest.mark.parametrize(
    ("name", "value"),
    [("norm", "l1"), ("unit", "percent"), ("penalty", 0.0), ("rho", -1.0), ("update_steps", 0), ("penalised", 1.5)],
)
def test_settings_without_sense_are_refused(name, value):
    with pytest.raises(MethodError, match=rf"{name}={value!r}: expected"):
        StructuredSparsity(**{name: value})


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["l21", "l20"])
def test_digits_lose_less_than_two_points(norm):
    assert lost_on_digits(StructuredSparsity(norm, update_steps=20, recipe=Recipe(epochs=10, lr=0.01))) < 0.02
