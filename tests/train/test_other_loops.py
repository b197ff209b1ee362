"""The same attachment in our loop, a hand-written one, Lightning's and Hugging Face's: one plan, also after a kill."""

from __future__ import annotations

import importlib.util
import math

import pytest
import torch

from .loops import (
    EPOCHS,
    STEPS_PER_EPOCH,
    TRAINING_METHODS,
    WEIGHT_METHODS,
    Dying,
    Killed,
    ShrinkFilters,
    hugging_face_loop,
    lightning_loop,
    our_loop,
    own_loop,
    plan_of,
)

torch.set_num_threads(1)


def needs(module: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(importlib.util.find_spec(module) is None, reason=f"{module} is not installed")


LIGHTNING = pytest.param(lightning_loop, marks=needs("lightning"), id="Lightning")
HUGGING_FACE = pytest.param(hugging_face_loop, marks=needs("transformers"), id="Hugging Face")
OTHERS = [pytest.param(own_loop, id="hand-written"), LIGHTNING, HUGGING_FACE]
FRAMEWORKS = [LIGHTNING, HUGGING_FACE]


@pytest.mark.parametrize("through_activations", [False, True])
@pytest.mark.parametrize("loop", OTHERS)
def test_every_loop_gives_the_plan_of_ours(loop, through_activations, tmp_path):
    method = ShrinkFilters(through_activations=through_activations)
    ours, theirs = our_loop(method, tmp_path / "ours"), loop(method, tmp_path)
    assert len(ours.attached.log) == EPOCHS * (3 * STEPS_PER_EPOCH + 1)
    assert theirs.attached.log == ours.attached.log, "the same calls in the same order, with the same moments"
    for name, scores in ours.attached.scores().items():
        torch.testing.assert_close(theirs.attached.scores()[name], scores, rtol=1e-4, atol=1e-7)
    for name, weight in ours.weights.items():
        torch.testing.assert_close(theirs.weights[name], weight, rtol=1e-4, atol=1e-6)
    assert theirs.attached.finish().plan == ours.attached.finish().plan


@pytest.mark.parametrize("method", TRAINING_METHODS)
@pytest.mark.parametrize("loop", [HUGGING_FACE, LIGHTNING])
def test_every_method_of_the_catalogue_gives_the_plan_of_our_loop(loop, method, tmp_path):
    ours, theirs = our_loop(method, tmp_path / "ours"), loop(method, tmp_path)
    for name, weight in ours.weights.items():
        torch.testing.assert_close(theirs.weights[name], weight, rtol=1e-3, atol=1e-5)
    assert plan_of(theirs.attached) == plan_of(ours.attached)


@pytest.mark.parametrize("method", WEIGHT_METHODS)
@pytest.mark.parametrize("loop", [pytest.param(our_loop, id="ours"), *OTHERS])
def test_zeros_are_exact_in_every_loop(loop, method, tmp_path):
    outcome = loop(method, tmp_path)
    masks = {name: torch.tensor(kept) for name, kept in plan_of(outcome.attached).items()}
    assert all(torch.equal(outcome.weights[name] != 0, kept) for name, kept in masks.items())
    assert sum(int((~kept).sum()) for kept in masks.values()) == math.ceil(0.4 * (8 * 27 + 6 * 72 + 18))


@pytest.mark.parametrize("method", WEIGHT_METHODS)
@pytest.mark.parametrize("kill_at", [3, 4, 6])  # gradual pruning masks anew after each of the first six steps
@pytest.mark.parametrize("loop", FRAMEWORKS)
def test_a_killed_run_with_zeros_resumes_to_the_same_weights(loop, kill_at, method, tmp_path):
    whole = loop(method, tmp_path / "whole")
    with pytest.raises(Killed):
        loop(Dying(method, kill_at), tmp_path / "killed")
    resumed = loop(method, tmp_path / "killed", resume=True)
    assert all(torch.equal(resumed.weights[name], weight) for name, weight in whole.weights.items())
    assert plan_of(resumed.attached) == plan_of(whole.attached)


@pytest.mark.parametrize("kill_at", [6, 7, 9])  # checkpoints are after steps 3, 6, 9 and 12, epochs of 4 steps
@pytest.mark.parametrize("loop", FRAMEWORKS)
def test_a_killed_run_resumes_to_the_same_plan(loop, kill_at, tmp_path):
    whole = loop(ShrinkFilters(), tmp_path / "whole")
    with pytest.raises(Killed):
        loop(ShrinkFilters(kill_at=kill_at), tmp_path / "killed")
    resumed = loop(ShrinkFilters(), tmp_path / "killed", resume=True)
    assert resumed.attached.log == whole.attached.log
    assert all(torch.equal(resumed.weights[name], weight) for name, weight in whole.weights.items())
    assert resumed.attached.finish().plan == whole.attached.finish().plan


def test_a_hand_written_loop_resumes_to_the_same_plan(tmp_path):
    for folder in ("whole", "killed"):
        (tmp_path / folder).mkdir()
    whole = own_loop(ShrinkFilters(), tmp_path / "whole")
    with pytest.raises(Killed):
        own_loop(ShrinkFilters(kill_at=9), tmp_path / "killed")
    resumed = own_loop(ShrinkFilters(), tmp_path / "killed", resume=True)
    assert resumed.attached.log == whole.attached.log
    assert all(torch.equal(resumed.weights[name], weight) for name, weight in whole.weights.items())


@pytest.mark.parametrize("loop", [HUGGING_FACE])
def test_a_checkpoint_at_the_last_step_of_an_epoch_has_the_epochs_end_in_it(loop, tmp_path):
    """Resuming there starts the next epoch, so nobody would call `after_epoch` for the one before."""
    whole = loop(ShrinkFilters(), tmp_path / "whole", save_steps=4)
    with pytest.raises(Killed):
        loop(ShrinkFilters(kill_at=5), tmp_path / "killed", save_steps=4)
    resumed = loop(ShrinkFilters(), tmp_path / "killed", resume=True, save_steps=4)
    assert resumed.attached.log == whole.attached.log
