"""What a dry run foretells: multiply-adds from recipes and graphs, time from what the store knows."""

from __future__ import annotations

import pytest
import torch

from secateur.compare import estimate
from secateur.compare.estimate import PASSES, estimates, totals
from secateur.compare.work import Place, write_json
from secateur.data import digits
from secateur.graph import trace
from secateur.models import digits_resnet

from .experiments import tiny
from .results import AFTER, BEFORE, made_up


@pytest.fixture(scope="module")
def dense_macs():
    return trace(digits_resnet(), torch.zeros(1, 1, 8, 8)).costs().macs


def by_job(told):
    return {str(one.job).removeprefix("digits_resnet ").removesuffix(" seed 0"): one for one in told}


def test_multiply_adds_are_epochs_images_and_passes_of_the_graph(dense_macs, tmp_path):
    told = by_job(estimates(tiny(recoveries=["finetune", "scratch_e", "scratch_b"]), tmp_path))
    images = len(digits().split_validation(fraction=0.1, seed=0).train_labels)
    assert told["dense"].train_macs == 2 * PASSES * images * dense_macs
    assert told["dense"].is_exact
    assert told["l1_filter 50% of macs cut"].train_macs == 0
    half = PASSES * images * dense_macs // 2
    assert told["l1_filter 50% of macs finetune"].train_macs == half
    assert told["l1_filter 50% of macs scratch_e"].train_macs == 3 * half
    assert told["l1_filter 50% of macs scratch_b"].train_macs == 5 * half  # twice the epochs, and the fine-tuning's
    assert not told["l1_filter 50% of macs finetune"].is_exact, "the cut is not made yet"
    assert all(one.seconds > 0 for one in told.values() if one.train_macs)
    assert not list(tmp_path.iterdir()), "a dry run writes nothing"


def test_a_method_that_trains_is_counted_by_its_recipe(dense_macs):
    methods = [{"name": "network_slimming", "settings": {"recipe": {"epochs": 4}}}]
    (cut,) = [one for one in estimates(tiny(methods=methods, control=False)) if one.job.kind == "cut"]
    images = len(digits().split_validation(fraction=0.1, seed=0).train_labels)
    assert cut.train_macs == 4 * PASSES * images * dense_macs


def test_what_is_done_gives_the_time_and_the_exact_costs_of_the_rest(tmp_path, dense_macs):
    experiment = made_up(tmp_path, tiny(control=False), leaves=2)
    for one in estimates(experiment):
        if one.job.kind == "cut":
            folder = Place(tmp_path).of(one.job.digest)
            folder.mkdir(parents=True)
            write_json(folder / "result.json", {"costs": AFTER, "costs_before": BEFORE})
    told = by_job(estimates(experiment, tmp_path))
    images = len(digits().split_validation(fraction=0.1, seed=0).train_labels)
    tuned = told["l1_filter 50% of macs finetune"]
    assert (tuned.status, tuned.is_exact) == ("to do", True)
    assert tuned.train_macs == PASSES * images * AFTER["macs"]
    assert told["dense"].seconds == 1.5
    second_per_mac = 1.5 / (PASSES * images * 2 * BEFORE["macs"])
    assert tuned.seconds == pytest.approx(tuned.train_macs * second_per_mac)
    total = totals(list(told.values()), jobs=2)
    assert (total["jobs"], total["left"]) == (4, 2)
    assert total["wall_seconds"] == pytest.approx(total["seconds"] / 2)


def test_timing_and_sensitivity_are_listed_and_train_nothing():
    told = estimates(tiny(control=False, latency=True, sensitivity=True, recoveries=["none"]))
    kinds = {one.job.kind: one for one in told}
    assert len(told) == 4
    assert kinds["latency"].train_macs == kinds["sensitivity"].train_macs == 0
    assert kinds["sensitivity"].seconds > 0


def test_measuring_leaves_the_random_state_alone():
    before = torch.get_rng_state()
    estimates(tiny())
    assert torch.equal(torch.get_rng_state(), before)


def test_speed_is_measured_with_the_threads_of_a_job(monkeypatch):
    seen, step = [], estimate._step
    monkeypatch.setattr(estimate, "_step", lambda *given: (seen.append(torch.get_num_threads()), step(*given)))
    before = torch.get_num_threads()
    estimates(tiny(), threads=before + 1)
    assert set(seen) == {before + 1}
    assert torch.get_num_threads() == before
