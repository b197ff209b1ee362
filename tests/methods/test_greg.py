"""Growing regularisation: which filters the penalty is on, how it grows, when it stops, and what is remembered."""

from __future__ import annotations

import logging

import pytest
import torch

from secateur import shrink
from secateur.errors import MethodError
from secateur.methods import Greg
from secateur.methods.greg import grown_penalty
from secateur.train import Recipe

from .attached_runs import (
    batches,
    lost_on_digits,
    moment_of,
    problem_of,
    run,
)
from .test_l1_filter import chain

BRIEF = {"growth": 0.1, "update_steps": 2, "settle_steps": 2}
BRIEF_2 = {**BRIEF, "variant": 2, "choice_growth": 0.01, "choice_ceiling": 0.02}


def attach(method, model, remove=0.5):
    return method.attach(problem_of(model, 1, 1, 1, 1, remove=remove))


def step(attached, model, slope=None):
    """One step of SGD at rate 1 / 10 with these gradients of the loss; returns what the first layer's became."""
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    if slope is not None:
        model[0].weight.grad += slope(model[0].weight.detach())
    moment = moment_of(model)
    attached.after_backward(moment)
    gradient = model[0].weight.grad.flatten().clone()
    moment.optimizer.step()
    attached.after_step(moment)
    return gradient


def test_the_filters_of_smallest_l1_norm_get_a_gradient_of_lambda_w_which_grows_every_few_steps():
    model = chain([[1.0, 0.0], [-0.8, -0.8], [3.0, 3.0], [-2.0, 0.1]], [[1.0] * 4]).double()  # L1: 1, 1.6, 6, 2.1
    attached = Greg(growth=0.5, update_steps=2, small_enough=1e9, settle_steps=99).attach(
        problem_of(model, 1, 2, 1, 1, remove=0.5)
    )
    for wanted in (0.0, 0.0, 0.5, 0.5, 1.0, 1.0, 1.0):
        weight = model[0].weight.detach().flatten(1).clone()
        gradient = step(attached, model).view(4, 2)
        torch.testing.assert_close(gradient[:2], wanted * weight[:2])
        assert not gradient[2:].any(), "filters that stay have no penalty"
        assert not model[0].bias.grad.any(), "nor have biases"
        assert not model[1].weight.grad.any()


def test_the_penalty_stops_at_its_ceiling_and_the_filters_go_after_some_more_steps():
    model = chain([[1.0], [2.0]], [[1.0, 1.0]]).double()
    attached = attach(Greg(growth=0.25, ceiling=0.5, update_steps=1, settle_steps=2), model)
    found = [step(attached, model)[0].item() != 0 for _ in range(4)]
    assert found == [False, True, True, True]  # lambda 0, 0.25, then 0.5 for two steps
    assert model[0].weight.flatten().tolist() == [0.0, 2.0]
    step(attached, model, slope=torch.ones_like)
    assert model[0].weight.flatten().tolist() == [0.0, pytest.approx(1.9)], "what is gone stays so, the rest trains"


def test_the_penalty_stops_when_what_goes_is_small_beside_what_stays():
    model = chain([[0.01], [2.0], [0.01], [3.0]], [[1.0] * 4]).double()
    attached = attach(Greg(growth=0.25, update_steps=1, small_enough=249.0, settle_steps=1), model)
    step(attached, model)
    assert attached._state.growing == []  # 2.5 / 0.01 = 250
    model = chain([[0.01], [2.0], [0.01], [3.0]], [[1.0] * 4]).double()
    attached = attach(Greg(growth=0.25, update_steps=1, small_enough=251.0, settle_steps=1), model)
    step(attached, model)
    assert attached._state.growing == ["0"]


def test_a_penalty_on_all_filters_parts_equal_ones_by_the_curvature_of_the_loss():
    def quadratic(weight):
        return torch.tensor([9.0, 1.0, 8.0, 2.0], dtype=torch.float64).view(4, 1, 1, 1) * (weight - 1)

    found = {}
    for variant in (1, 2):
        model = chain([[0.99], [1.0], [1.0], [1.0]], [[1.0] * 4]).double()
        method = Greg(variant, update_steps=1, choice_growth=0.002, choice_ceiling=0.5, small_enough=1e9)
        attached = attach(method, model)
        for _ in range(252):
            step(attached, model, quadratic)
        found[variant] = attached.finish()
    assert found[1].plan.removed("0") == (0, 1), "smallest at the start, then the first of equals"
    assert found[2].plan.removed("0") == (1, 3), "flattest"
    curvature = torch.tensor([9.0, 1.0, 8.0, 2.0], dtype=torch.float64)
    torch.testing.assert_close(found[2].scores["0"], curvature / (curvature + 0.5), rtol=0.02, atol=0)


def test_after_the_choice_variant_2_goes_on_from_its_penalty_and_gives_the_others_a_negative_one():
    model = chain([[1.0], [2.0]], [[1.0, 1.0]]).double()
    method = Greg(2, growth=0.25, update_steps=1, choice_growth=0.05, choice_ceiling=0.1, kept_penalty=-0.5)
    attached = attach(method, model)
    for goes, stays in ((0.0, 0.0), (0.05, 0.05), (0.1, -0.5), (0.35, -0.5), (0.6, -0.5)):
        weight = model[0].weight.detach().flatten().clone()
        torch.testing.assert_close(step(attached, model), weight * torch.tensor([goes, stays], dtype=torch.float64))


def test_the_penalty_grows_evenly_up_to_its_ceiling():
    assert [grown_penalty(k, 0.3, 1.0) for k in range(5)] == pytest.approx([0.0, 0.3, 0.6, 0.9, 1.0])


@pytest.mark.parametrize("brief", [BRIEF, BRIEF_2], ids=["1", "2"])
def test_the_cut_computes_what_the_trained_model_does(brief):
    model, attached, decision = run(Greg(**brief))
    gone = list(decision.plan.removed("0"))
    assert [len(decision.plan.removed(name)) for name in "03"] == [4, 3]
    assert not model[0].weight[gone].any()
    small = shrink(model, attached.problem.graph, decision.plan).eval()
    images = batches()[0][0]
    torch.testing.assert_close(small(images), model.eval()(images), rtol=0, atol=1e-12)


def test_the_log_says_when_training_was_too_short(caplog):
    model = chain([[1.0], [2.0]], [[1.0, 1.0]]).double()
    attached = attach(Greg(growth=0.25, update_steps=1), model)
    step(attached, model)
    with caplog.at_level(logging.WARNING):
        assert attached.finish().plan.removed("0") == (0,)
    assert "a penalty of 0.25 in place of 1 on 0, whose kept weights are 2 times those that go" in caplog.text


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("variant", 3),
        ("growth", 0.0),
        ("ceiling", float("nan")),
        ("update_steps", 0),
        ("choice_growth", -1.0),
        ("choice_ceiling", 0.0),
        ("kept_penalty", float("inf")),
        ("small_enough", 1.0),
        ("settle_steps", -1),
    ],
)
def test_settings_without_sense_are_refused(name, value):
    with pytest.raises(MethodError, match=rf"{name}={value!r}: expected"):
        Greg(**{name: value})


@pytest.mark.slow
@pytest.mark.parametrize("variant", [1, 2])
def test_digits_lose_less_than_two_points(variant):
    short = {"growth": 0.05, "choice_growth": 0.002, "settle_steps": 20, "recipe": Recipe(epochs=30, lr=0.01)}
    assert lost_on_digits(Greg(variant, **short)) < 0.02
