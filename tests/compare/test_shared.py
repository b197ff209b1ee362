"""A network that several methods leave is trained from scratch once, and the result is that of training it again."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from secateur.compare.jobs import jobs_of
from secateur.compare.run import run
from secateur.compare.shared import network_of
from secateur.compare.store import ResultStore
from secateur.compare.work import Place, perform

from .experiments import OwnWorkers
from .quick import batches, quick

WEIGHTS = {"name": "magnitude", "budgets": [{"remove": 0.5, "of": "weights"}]}
METHODS = [{"name": "l1_filter"}, {"name": "l2_filter", "repair": ["batchnorm"]}, WEIGHTS]
BOTH = ["scratch_e", "scratch_b"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A store in which two methods and the random control left the same widths, and what its workers did."""
    folder = tmp_path_factory.mktemp("shared")
    experiment = quick(folder, methods=METHODS, recoveries=BOTH)
    workers = OwnWorkers(lambda job: perform(job, Place(folder)), free=4)
    with torch.random.fork_rng():
        summary = run(experiment, folder, workers, progress=False)
    assert summary.is_complete, summary.failed
    return folder, experiment, workers


def scratch(experiment):
    return [job for job in jobs_of(experiment) if job.kind == "recover"]


def test_the_same_widths_are_trained_once_for_each_way_and_zeros_always(finished):
    folder, experiment, workers = finished
    trained = [str(job) for job in workers.done if job.kind == "recover"]
    assert len(trained) == 2 + 2 * 2, trained  # the one small network; magnitude's and its control's zeros
    assert len(scratch(experiment)) == 2 * 5
    with ResultStore(folder) as store:
        rows = store.rows(experiment.digest, kind="recover")
        shared = [store.detail(row.digest).get("shared_with") for row in rows]
    assert sum(other is not None for other in shared) == 4
    assert {other for other in shared if other} <= {row.digest for row in rows}


def test_a_shared_result_is_to_the_bit_what_training_it_would_give(finished, tmp_path):
    folder, experiment, workers = finished
    ran = {job.digest for job in workers.done}
    job = next(job for job in scratch(experiment) if job.digest not in ran)
    place, alone = Place(folder), Place(tmp_path)
    for need in job.needs:
        alone.of(need).parent.mkdir(exist_ok=True)
        alone.of(need).symlink_to(place.of(need))
    perform(job, alone)
    ours, theirs = (load_file(p.of(job.digest) / "model.safetensors") for p in (place, alone))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    shared, own = place.result(job.digest), alone.result(job.digest)
    for key in ("metric", "epochs", "costs", "costs_before", "widths", "metric_as_cut"):
        assert shared[key] == own[key], key
    cut = place.result(job.needs[0])
    assert shared["metric_as_cut"] == cut["metric_as_cut"], "what is of the cut is of the job's own"


def test_another_seed_way_width_or_recipe_is_another_network(finished):
    folder, experiment, _ = finished
    place = Place(folder)
    by_way = {network_of(job, place) for job in scratch(experiment)}
    assert len(by_way - {None}) == 2
    job = next(job for job in scratch(experiment) if network_of(job, place))
    other = [
        type(job).from_json(job.to_json() | change)
        for change in (
            {"seed": 1},
            {"hold_out": 0.5},
            {"scratch_cap": 2.0},
            {"model": {**job.model, "recipe": "cifar"}},
        )
    ]
    digests = {network_of(one, place) for one in [job, *other]}
    assert len(digests) == 5
    result = place.result(job.needs[0])
    (place.of(job.needs[0]) / "result.json").write_text(json.dumps(result | {"structure": "another"}))
    assert network_of(job, place) not in digests
    (place.of(job.needs[0]) / "result.json").write_text(json.dumps(result))


def test_the_next_run_shares_what_an_earlier_one_trained(finished):
    folder, _, _ = finished
    more = quick(folder, methods=[*METHODS, {"name": "fpgm"}], recoveries=BOTH)
    before = len(batches(folder))
    workers = OwnWorkers(lambda job: perform(job, Place(folder)))
    with torch.random.fork_rng():
        assert run(more, folder, workers, progress=False).is_complete
    assert [job.kind for job in workers.done] == ["cut"]
    assert len(batches(folder)) == before


def test_another_experiment_of_the_store_shares_too(finished):
    folder, _, _ = finished
    other = quick(folder, name="other", methods=[{"name": "fpgm", "label": "other"}], recoveries=BOTH, control=False)
    workers = OwnWorkers(lambda job: perform(job, Place(folder)))
    with torch.random.fork_rng():
        assert run(other, folder, workers, progress=False).is_complete
    assert [job.kind for job in workers.done] == ["cut"]
