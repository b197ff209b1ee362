"""An experiment says all that is wrong with it at once, where, and before anything runs."""

from __future__ import annotations

import pytest

from secateur.compare.jobs import Job, jobs_of
from secateur.compare.spec import digest_of, made, read_experiment
from secateur.errors import ExperimentError

from .experiments import TINY, tiny

GOOD = """
name = "tiny"
recoveries = ["finetune", "scratch_b"]
seeds = [0, 1]
budgets = [{ remove = 0.5, of = "macs" }, { remove = 0.7, of = "macs" }]

[[models]]
name = "digits_resnet"
data = "digits"
recipe = "digits"
changes = { epochs = 2 }
finetune_epochs = 1

[[methods]]
name = "l1_filter"

[[methods]]
name = "magnitude"
budgets = [{ remove = 0.9, of = "weights" }]
"""


def written(tmp_path, text=GOOD):
    path = tmp_path / "experiment.toml"
    path.write_text(text)
    return path


def test_controls_of_each_kind_join_with_the_budgets_of_their_kind(tmp_path):
    experiment = read_experiment(written(tmp_path))
    compared = {m.name: [b.remove for b in experiment.budgets_of(m)] for m in experiment.compared}
    assert compared == {"l1_filter": [0.5, 0.7], "magnitude": [0.9], "random": [0.5, 0.7], "random_weights": [0.9]}


def test_a_control_that_is_named_is_not_added_and_may_be_left_out(tmp_path):
    named = read_experiment(written(tmp_path, GOOD + '\n[[methods]]\nname = "random"\n'))
    assert [m.name for m in named.compared].count("random") == 1
    without = read_experiment(written(tmp_path, "control = false\n" + GOOD))
    assert [m.name for m in without.compared] == ["l1_filter", "magnitude"]


def test_a_method_may_have_recoveries_of_its_own(tmp_path):
    text = GOOD.replace('name = "magnitude"', 'name = "magnitude"\nrecoveries = ["distill"]')
    experiment = read_experiment(written(tmp_path, text))
    assert experiment.every_recovery == ("finetune", "scratch_b", "distill")
    ways = {(job.method["name"], job.recovery) for job in jobs_of(experiment) if job.kind == "recover"}
    assert {way for name, way in ways if name == "magnitude"} == {"distill"}
    assert {way for name, way in ways if name == "random_weights"} == {"finetune", "scratch_b"}
    cuts = [
        {job.digest for job in jobs_of(one) if job.kind == "cut"}
        for one in (experiment, read_experiment(written(tmp_path)))
    ]
    assert cuts[0] == cuts[1], "what follows a cut does not change it"
    with pytest.raises(ExperimentError, match=r"line 19: methods\.1\.recoveries.*distill"):
        read_experiment(written(tmp_path, text.replace('["distill"]', '["distil"]')))


def test_jobs_share_one_dense_network_a_seed_and_one_cut_for_all_recoveries(tmp_path):
    jobs = jobs_of(read_experiment(written(tmp_path)))
    kinds = [job.kind for job in jobs]
    assert (kinds.count("dense"), kinds.count("cut"), kinds.count("recover")) == (2, 12, 24)
    seen = set()
    for job in jobs:
        assert set(job.needs) <= seen, "a job stands after what it needs"
        seen.add(job.digest)
    assert len(seen) == len(jobs)


def test_a_job_survives_json_and_its_digest_follows_what_decides_its_result(tmp_path):
    jobs = jobs_of(read_experiment(written(tmp_path)))
    for job in jobs:
        again = Job.from_json(job.to_json())
        assert again == job
        assert again.digest == job.digest
    longer = jobs_of(read_experiment(written(tmp_path, GOOD.replace("epochs = 2", "epochs = 3"))))
    assert not {j.digest for j in jobs} & {j.digest for j in longer}
    other_tuning = jobs_of(read_experiment(written(tmp_path, GOOD.replace('"scratch_b"', '"scratch_e"'))))
    shared = {j.digest for j in jobs} & {j.digest for j in other_tuning}
    assert {j.kind for j in jobs if j.digest in shared} == {"dense", "cut", "recover"}


def test_settings_that_came_later_leave_the_digests_of_earlier_experiments_and_jobs_as_they_were():
    values = tiny().model_dump(mode="json")
    assert tiny().digest == digest_of({k: v for k, v in values.items() if k not in ("sensitivity", "processes")})
    assert tiny(sensitivity=True).digest != tiny().digest
    assert jobs_of(tiny())[0].digest == "191fe1dd94891d8e"
    assert all("processes" not in job.to_json() for job in jobs_of(tiny(sensitivity=True)))


def test_sensitivity_is_one_job_for_each_network(tmp_path):
    jobs = jobs_of(tiny(sensitivity=True, seeds=[5, 6]))
    (own,) = [job for job in jobs if job.kind == "sensitivity"]
    (dense,) = [job for job in jobs if job.digest in own.needs]
    assert (dense.kind, dense.seed) == ("dense", 5)


def test_only_what_trains_is_shared_by_several_processes_and_is_another_job(tmp_path):
    slimming = {"name": "network_slimming", "settings": {"recipe": {"epochs": 1}}}
    asked = {"methods": [{"name": "l1_filter"}, slimming], "latency": True, "sensitivity": True}
    alone, shared = jobs_of(tiny(**asked)), jobs_of(tiny(**asked, processes=2))
    assert tiny(processes=2).digest != tiny().digest
    assert not {job.digest for job in alone} & {job.digest for job in shared}
    by_count = {(job.kind, (job.method or {}).get("name") == "network_slimming"): job.processes for job in shared}
    assert {key for key, count in by_count.items() if count == 2} == {
        ("dense", False),
        ("cut", True),
        ("recover", False),
        ("recover", True),
    }
    assert all(Job.from_json(job.to_json()) == job for job in shared)
    trained = [{**TINY["models"][0], "weights": "there.safetensors"}]
    assert jobs_of(tiny(models=trained, processes=2))[0].processes == 1


def test_processes_among_which_batches_cannot_be_shared_out_are_refused(monkeypatch):
    with pytest.raises(ExperimentError, match=r"batches of 256 .* 3 processes; set changes = \{ batch_size = 255 \}"):
        tiny(processes=3)
    with pytest.raises(ExperimentError, match="processes"):
        tiny(processes=0)
    monkeypatch.setattr("secateur.compare.spec.find_spec", lambda name: None)
    with pytest.raises(ExperimentError, match=r"needs Accelerate: pip install"):
        tiny(processes=2)


def test_the_order_of_keys_does_not_change_a_digest():
    assert digest_of({"a": [1], "b": {"c": None, "d": 0.5}}) == digest_of({"b": {"d": 0.5, "c": None}, "a": [1]})
    assert digest_of({"a": 1}) != digest_of({"a": 2})


BAD = """
name = "bad"
recoveries = ["finetune", "scratch_c"]
seeds = [0, 0]
budgets = [{ remove = 0.5, of = "macs" }]

[[models]]
name = "digits_resnet"
data = "digit"
recipe = "digits"
changes = { epochs = 0 }

[[methods]]
name = "l1_fliter"

[[methods]]
name = "magnitude"

[[methods]]
name = "l1_filter"
settings = { residual = "sideways" }
"""


def test_everything_wrong_is_told_at_once_with_its_line(tmp_path):
    with pytest.raises(ExperimentError) as told:
        read_experiment(written(tmp_path, BAD))
    text = str(told.value)
    lines = {line.split(": ")[0].strip(): line for line in text.splitlines()[1:]}
    assert "scratch_e" in lines["line 3"]
    assert "twice" in lines["line 4"]
    assert "epochs" in lines["line 11"]
    assert "l1_filter" in lines["line 14"]
    assert "weights" in lines["line 16"]
    assert len(lines) >= 5


def test_a_value_that_cannot_be_is_told_with_what_it_may_be_and_nothing_else(tmp_path):
    bad = GOOD.replace("{ remove = 0.5, of", "{ remove = 50, of").replace("{ remove = 0.7, of", "{ remove = 70, of")
    with pytest.raises(ExperimentError) as told:
        read_experiment(written(tmp_path, bad.replace("seeds = [0, 1]", "seeds = [0, 1.5]")))
    first, *rows = str(told.value).splitlines()
    assert "3 things are wrong" in first
    assert sorted(row.strip().split(":")[0] for row in rows) == ["line 4", "line 5", "line 5"]
    assert any("1.5" in row for row in rows)
    assert any("50" in row and "0.5" in row for row in rows)
    assert any("70" in row and "0.7" in row for row in rows)


def test_an_unknown_network_is_told_with_its_line(tmp_path):
    with pytest.raises(ExperimentError, match=r"1 thing is wrong:\n  line 8: models\.0\.name: .*digits_resnet"):
        read_experiment(written(tmp_path, GOOD.replace("digits_resnet", "digit_resnet")))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("seeds = [0, 1]", "seeds = []"), "seeds"),
        (("remove = 0.5", "remove = 50"), "budgets"),
        (('of = "weights"', 'of = "macs"'), "single weights"),
        (("finetune_epochs = 1", "finetune_epochs = 0"), "finetune_epochs"),
        (("finetune_epochs = 1", "finetune_epoch = 1"), "finetune_epoch"),
        (('name = "tiny"', "name = 3"), "name"),
        (("changes = { epochs = 2 }", "changes = { epoch = 2 }"), "epoch"),
        (('name = "l1_filter"', 'name = "l1_filter"\nsettings = { nothing = 1 }'), "nothing"),
    ],
)
def test_what_cannot_be_is_refused(tmp_path, change, said):
    with pytest.raises(ExperimentError, match=said):
        read_experiment(written(tmp_path, GOOD.replace(*change)))


def test_text_that_is_no_toml_or_no_file_is_refused(tmp_path):
    with pytest.raises(ExperimentError, match="line 1"):
        read_experiment(written(tmp_path, "name = = 3"))
    with pytest.raises(ExperimentError, match="cannot be read"):
        read_experiment(tmp_path / "missing.toml")


def test_values_without_a_text_are_checked_too():
    with pytest.raises(ExperimentError, match="methods"):
        made({"models": [{"name": "digits_resnet", "data": "digits"}], "methods": [], "budgets": [{"remove": 0.5}]})
