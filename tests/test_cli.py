"""The command line: what it prints, what it writes, how it ends."""

from __future__ import annotations

import dataclasses
import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner, Result

import secateur
from secateur.catalogue import CATALOGUE
from secateur.cli import app
from secateur.methods import Decision
from secateur.models import digits_resnet

FACTORY = '''
import torch
from torch import nn


def build():
    """Two convolutions for digits."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.ReLU(),
        nn.Flatten(), nn.Linear(96, 10),
    )


def single():
    """Nothing in it can go."""
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
'''
COMMANDS = ("methods", "groups", "train", "sensitivity", "prune", "sparsify", "bench", "compare", "results", "report")


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("models") / "nets.py"
    file.write_text(FACTORY)
    return f"{file}:build"


@pytest.fixture(scope="module")
def trained(tiny: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as `train` writes it."""
    out = tmp_path_factory.mktemp("trained") / "base"
    assert run("train", tiny, "--out", out, "--epochs", "2", "--threads", "1", "--quiet").exit_code == 0
    return out


def run(*args: Any) -> Result:
    return CliRunner().invoke(app, [str(arg) for arg in args])


def facts(*args: Any) -> Any:
    """Run with --json; the whole of standard output has to be JSON."""
    result = run(*args, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


# ---------------------------------------------------------------- help and names


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_and_the_json_option(command):
    result = run(command, "--help")
    assert result.exit_code == 0
    assert "--json" in result.stdout


@pytest.mark.parametrize("command", ["train", "sensitivity", "prune", "sparsify", "compare"])
def test_commands_that_write_or_train_have_a_dry_run(command):
    assert "--dry-run" in run(command, "--help").stdout


def test_the_installed_module_runs_and_tells_its_version():
    found = subprocess.run([sys.executable, "-m", "secateur", "--version"], capture_output=True, text=True, check=True)
    assert found.stdout.strip().count(".") == 2


def test_methods_are_those_of_the_catalogue():
    assert [entry["name"] for entry in facts("methods")] == list(CATALOGUE)
    assert all(name in run("methods").stdout for name in CATALOGUE)


def test_a_method_shows_its_settings():
    found = facts("methods", "l1_filter")
    assert found["settings"]["allocation"] == "uniform"
    assert "--set residual='projection'" in run("methods", "l1_filter").stdout


@pytest.mark.parametrize(
    ("args", "suggestion"),
    [
        (("methods", "l1_fliter"), "did you mean 'l1_filter'"),
        (("groups", "resnet2"), "'resnet20'"),
        (("prune", "digits_resnet", "--remove", 0.5, "--method", "randon"), "did you mean 'random'?"),
        (("prune", "digits_resnet", "--remove", 0.5, "--protect", "stage.1.0"), "'stages.1.0'"),
        (("groups", "digits_resnet", "--explain", "conv1", "stages.0.0.conv9"), "'stages.0.0.conv1'"),
        (("prune", "digits_resnet", "--remove", 0.5, "--data", "digit", "--dry-run"), "'digits'"),
    ],
)
def test_a_wrong_name_ends_with_1_and_suggests_a_near_one(args, suggestion):
    result = run(*args)
    assert result.exit_code == 1
    assert suggestion in result.stderr
    assert result.stdout == ""


def test_a_wrong_recipe_value_suggests_a_near_one(tmp_path):
    result = run("train", "digits_resnet", "--out", tmp_path / "x", "--with", "learning=1", "--dry-run")
    assert result.exit_code == 1
    assert "no value of a recipe is called 'learning'" in result.stderr


# ---------------------------------------------------------------- how errors end


def test_a_percentage_is_told_from_a_fraction():
    result = run("prune", "digits_resnet", "--remove", 50)
    assert result.exit_code == 1
    assert "remove=50.0: expected a fraction in [0, 1), e.g. 0.5 for 50 %" in result.stderr


@pytest.mark.parametrize(
    "args",
    [
        ("prune", "digits_resnet"),
        ("prune", "digits_resnet", "--remove", "half"),
        ("prune", "digits_resnet", "--remove", 0.5, "--with", "lr=1"),
        ("prune", "digits_resnet", "--remove", 0.5, "--set", "residual"),
        ("prune", "digits_resnet", "--remove", 0.5, "--verbose", "--quiet"),
        ("sparsify", "digits_resnet"),
        ("sparsify", "digits_resnet", "--remove", 0.5, "--with", "lr=1"),
        ("groups", "digits_resnet", "--input-shape", "1x8xx8"),
        ("bench", "digits_resnet"),
        ("bench", "digits_resnet", "--remove", 0.5, "--batch", "0"),
        ("train", "digits_resnet"),
        ("trian",),
    ],
)
def test_a_wrong_command_line_ends_with_2(args):
    result = run(*args)
    assert result.exit_code == 2
    assert result.stdout == ""


def test_an_error_with_json_is_json_too():
    result = run("groups", "resnet2", "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["error"]["kind"] == "UnknownName"
    assert "error: no model is called 'resnet2'" in result.stderr


def test_an_error_shows_no_traceback():
    command = [sys.executable, "-m", "secateur", "methods", "nothing-like-it"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert found.returncode == 1
    assert found.stderr.startswith("error: ")
    assert "Traceback" not in found.stderr


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--set", "penalty=1"), "l1_filter has no setting 'penalty'"),
        (("--repair", "magic"), "--repair magic: expected none or some of"),
        (("--repair", "none", "--repair", "batchnorm"), "--repair none excludes"),
        (("--repair", "batchnorm"), "needs data"),
        (("--finetune", 1), "--finetune needs data: give --data"),
        (("--min-keep", 0), "min_keep=0: expected a whole number"),
        (("--of", "flops"), "of='flops': expected one of channels, macs"),
        (("--method", "sensitivity"), "reads data and labels: give --data"),
        (("--weights", "nowhere.safetensors"), "there is no file nowhere.safetensors"),
        (("--device", "cuda:99"), "--device cuda:99: the model cannot be put there"),
        (("--data", "digits", "--input-shape", "3x8x8"), "leave --input-shape out"),
    ],
)
def test_what_a_user_can_mend_ends_with_1_and_says_how(args, message):
    result = run("prune", "digits_resnet", "--remove", 0.5, *args)
    assert result.exit_code == 1
    assert message in result.stderr


def test_a_model_whose_input_is_unknown_asks_for_its_shape(tiny):
    result = run("groups", tiny)
    assert result.exit_code == 1
    assert "give --input-shape" in result.stderr


def test_weights_of_another_model_are_refused(trained):
    result = run("prune", "digits_resnet", "--remove", 0.5, "--weights", trained)
    assert result.exit_code == 1
    assert "do not fit the model" in result.stderr


def test_a_file_that_is_no_weights_is_refused(tmp_path):
    file = tmp_path / "weights.safetensors"
    file.write_bytes(b"no tensors here")
    result = run("prune", "digits_resnet", "--remove", 0.5, "--weights", file)
    assert result.exit_code == 1
    assert "no readable safetensors file" in result.stderr


def test_an_interrupt_ends_with_130(monkeypatch):
    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("secateur.models.resolve", interrupt)
    result = run("groups", "digits_resnet")
    assert result.exit_code == 130
    assert "Traceback" not in result.stderr


def test_logging_and_threads_are_as_before_afterwards():
    log = logging.getLogger("secateur")
    before = log.level, list(log.handlers), torch.get_num_threads()
    run("prune", "digits_resnet", "--remove", 50, "--threads", 2, "--verbose")
    assert (log.level, list(log.handlers), torch.get_num_threads()) == before


# ---------------------------------------------------------------- groups


def test_groups_prints_the_graph_of_the_model():
    graph = secateur.trace(digits_resnet(), torch.zeros(1, 1, 8, 8))
    assert run("groups", "digits_resnet").stdout.strip() == str(graph)
    found = facts("groups", "digits_resnet")
    assert {group["name"]: group["width"] for group in found["groups"]} == graph.widths
    assert found["macs"] == graph.costs().macs


def test_groups_explains_why_two_layers_share_channels():
    result = run("groups", "digits_resnet", "--explain", "conv1", "fc:in")
    assert result.stdout.startswith("conv1:out and fc:in share channels")
    assert "linear in fc -> fc:in" in result.stdout


def test_groups_reads_a_users_file(tiny):
    found = facts("groups", tiny, "--input-shape", "1,8,8")
    assert [group["width"] for group in found["groups"]] == [8, 6]


@pytest.mark.parametrize(
    ("name", "channels"), [("timm:resnet18.a1_in1k", 3), ("torchvision:squeezenet1_1", 3), ("resnet20", 1)]
)
def test_groups_knows_what_models_of_libraries_take(name, channels):
    shape = () if channels == 3 else ("--input-shape", f"{channels}x16x16")
    found = facts("groups", name, *shape)
    assert found["macs"] > 1e6
    assert found["without_a_rule"] == []


def test_groups_reads_a_language_model(tmp_path):
    config = {"model_type": "bert", "architectures": ["BertForMaskedLM"], "vocab_size": 30, "num_hidden_layers": 1}
    sizes = {"hidden_size": 16, "num_attention_heads": 4, "intermediate_size": 24, "max_position_embeddings": 32}
    (tmp_path / "config.json").write_text(json.dumps(config | sizes))
    found = facts("groups", f"hf:{tmp_path}")
    assert 24 in [group["width"] for group in found["groups"]]


# ---------------------------------------------------------------- train


def test_train_saves_weights_and_a_record(trained):
    record = json.loads((trained / "train.json").read_text())
    assert record["recipe"]["epochs"] == 2
    assert record["train_images"] == 1294
    assert 0 <= record["test_metric"] <= 1
    assert load_file(trained / "model.safetensors")["0.weight"].shape == (8, 1, 3, 3)
    assert sorted(path.name for path in trained.iterdir()) == ["model.safetensors", "train.json"]


def test_train_leaves_nothing_else_behind(trained):
    assert [path.name for path in trained.parent.iterdir()] == ["base"]


def test_train_goes_on_where_a_killed_run_stopped(tiny, trained, tmp_path):
    out = tmp_path / "base"
    killed = (
        "import os\nfrom secateur.train import loop\nfrom secateur.cli import app\nwrite = loop.write_checkpoint\n"
        "def write_and_die(*args):\n    write(*args)\n    os._exit(9)\nloop.write_checkpoint = write_and_die\n"
        f"app({['train', tiny, '--out', str(out), '--epochs', '2', '--threads', '1']!r})"
    )
    died = subprocess.run([sys.executable, "-c", killed], capture_output=True, text=True, check=False)
    assert died.returncode == 9, died.stderr
    assert not out.exists()
    found = facts("train", tiny, "--out", out, "--epochs", 2, "--threads", 1)
    assert found["resumed_from_step"] == 21
    whole, resumed = load_file(trained / "model.safetensors"), load_file(out / "model.safetensors")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert [path.name for path in tmp_path.iterdir()] == ["base"]


def test_train_dry_run_writes_nothing(tmp_path):
    found = facts("train", "digits_resnet", "--out", tmp_path / "base", "--dry-run", "--with", "lr=0.01")
    assert found["dry_run"] is True
    assert found["recipe"]["lr"] == 0.01
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", [("train",), ("sensitivity",), ("prune", "--remove", 0.5)])
def test_an_existing_folder_is_never_overwritten(command, tmp_path):
    (tmp_path / "mine.txt").write_text("keep me")
    result = run(*command, "digits_resnet", "--out", tmp_path)
    assert result.exit_code == 1
    assert "exists already, and nothing is overwritten" in result.stderr
    assert (tmp_path / "mine.txt").read_text() == "keep me"


@pytest.mark.parametrize("place", ["file/out", "/proc/no-such-place/out"])
def test_a_folder_that_cannot_be_written_is_told(place, tmp_path):
    (tmp_path / "file").write_text("no folder")
    result = run("prune", "digits_resnet", "--remove", 0.5, "--out", tmp_path / place)
    assert result.exit_code == 1
    assert "cannot be written" in result.stderr


# ---------------------------------------------------------------- prune


def test_prune_saves_a_model_that_loads_and_says_what_came_of_it(tiny, trained, tmp_path):
    out = tmp_path / "small"
    options = ("--weights", trained, "--data", "digits", "--remove", 0.5, "--of", "macs", "--finetune", 1)
    found = facts("prune", tiny, *options, "--out", out)
    assert found["budget"]["removed"] >= 0.5
    assert found["verification"]["max_relative_error"] < 1e-9
    assert {"before", "as_cut", "repaired", "finetuned"} <= found["test"].keys()
    assert found["finetune"]["epochs"] == 1
    assert json.loads((out / "result.json").read_text())["after"] == found["after"]
    assert [path.name for path in tmp_path.iterdir()] == ["small"]
    fresh = secateur.models.resolve(tiny)
    small = secateur.load(out, model=fresh)
    assert sum(p.numel() for p in small.parameters()) == found["after"]["params"] < found["before"]["params"]
    assert (
        secateur.Plan.load(out / "plan.json").removed_count == found["before"]["channels"] - found["after"]["channels"]
    )


def test_prune_without_out_saves_nothing_and_says_so(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run("prune", "digits_resnet", "--remove", 0.3)
    assert result.exit_code == 0
    assert "asked: remove 30.0% of channels" in result.stdout
    assert "exact: largest relative error" in result.stdout
    assert "nothing was saved: give --out DIR" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_prune_dry_run_writes_nothing_and_trains_nothing(tiny, tmp_path):
    options = ("--data", "digits", "--remove", 0.5, "--finetune", 3, "--out", tmp_path / "small", "--dry-run")
    found = facts("prune", tiny, *options)
    assert found["dry_run"] is True
    assert found["finetune"]["epochs"] == 3
    assert found["after"]["channels"] == 7
    assert list(tmp_path.iterdir()) == []


def test_prune_heeds_method_settings_limits_and_seed(tiny):
    base = ("prune", tiny, "--input-shape", "1x8x8", "--method", "random", "--remove", 0.3)
    assert facts(*base, "--protect", "0")["widths"] == {"3": {"before": 6, "after": 1}}
    assert facts(*base, "--round-to", 4)["widths"]["0"]["after"] == 4
    one, same, other = (facts(*base, "--set", "allocation=global", "--seed", seed)["widths"] for seed in (1, 1, 2))
    assert one == same
    assert one != other


def test_prune_repairs_without_data_where_that_can_be(tiny):
    base = ("prune", tiny, "--input-shape", "1x8x8", "--remove", 0.5)
    assert facts(*base, "--repair", "fold")["after"] == facts(*base)["after"]


def test_a_dry_run_uses_the_brief_settings_of_a_method_that_trains(tiny, monkeypatch):
    entry = dataclasses.replace(CATALOGUE["l1_filter"], brief={"residual": "skip", "selection": "greedy"})
    monkeypatch.setitem(CATALOGUE, "l1_filter", entry)
    base = ("prune", tiny, "--input-shape", "1x8x8", "--remove", 0.5, "--set", "residual=prune")
    assert facts(*base, "--dry-run")["settings"] == {"residual": "prune", "selection": "greedy"}
    assert facts(*base)["settings"] == {"residual": "prune"}


def test_a_model_in_which_nothing_can_go_is_an_error(tiny):
    result = run("prune", tiny.replace(":build", ":single"), "--input-shape", "1x8x8", "--remove", 0.5)
    assert result.exit_code == 1
    assert "0 groups of channels" in result.stderr


def test_a_budget_under_which_nothing_went_ends_with_3(tiny, monkeypatch):
    def decide_nothing(*_: Any) -> Decision:
        return Decision(secateur.Plan())

    monkeypatch.setattr("secateur.methods.l1_filter.L1Filter.decide", decide_nothing)
    options = ("prune", tiny, "--input-shape", "1x8x8", "--remove", 0.5)
    result = run(*options)
    assert result.exit_code == 3
    assert "NothingPruned: remove 50.0% of channels: nothing was removed." in result.stderr
    assert "NothingPruned" not in run(*options, "--quiet").stderr


def test_a_setting_may_be_json(tiny):
    found = facts("prune", tiny, "--input-shape", "1x8x8", "--remove", 0.2, "--set", 'allocation={"0": 1.0}')
    assert found["settings"] == {"allocation": {"0": 1.0}}
    assert found["widths"] == {"0": {"before": 8, "after": 5}, "3": {"before": 6, "after": 6}}


# ---------------------------------------------------------------- sensitivity and bench


def test_sensitivity_writes_curves_that_load_and_a_page(tiny, trained, tmp_path):
    out = tmp_path / "curves"
    found = facts("sensitivity", tiny, "--weights", trained, "--removes", "0.5", "--out", out, "--tolerance", 1)
    assert found["fractions_within"] == {"0": 0.5, "3": 0.5}
    curves = secateur.SensitivityCurves.load(out / "curves.json")
    assert curves.sample_count == 144
    assert (out / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert "<html" in (out / "curves.html").read_text()


def test_sensitivity_dry_run_names_the_groups_and_writes_nothing(tiny, tmp_path):
    found = facts("sensitivity", tiny, "--out", tmp_path / "curves", "--dry-run")
    assert found["groups"] == ["0", "3"]
    assert found["images"] == 144
    assert list(tmp_path.iterdir()) == []


def test_sensitivity_names_a_setting_or_a_method_that_does_not_suit_it(tiny, tmp_path):
    base = ("sensitivity", tiny, "--out", tmp_path / "curves", "--dry-run")
    wrong = run(*base, "--method", "magnitude")
    assert wrong.exit_code == 1
    assert "magnitude removes weights, not channels" in wrong.stderr
    wrong = run(*base, "--set", "residual=[1]", "--set", "selection={}")
    assert wrong.exit_code == 1
    assert "expected" in wrong.stderr


def test_sensitivity_refuses_to_choose_on_training_images(tmp_path):
    result = run("sensitivity", "digits_resnet", "--hold-out", 0, "--out", tmp_path / "curves")
    assert result.exit_code == 1
    assert "--hold-out is 0" in result.stderr


def test_bench_states_threads_batch_and_device(tiny):
    found = facts("bench", tiny, "--input-shape", "1x8x8", "--remove", 0.5, "--batch", "1,3", "--seconds", 0.01)
    assert [one["before"]["batch"] for one in found["comparisons"]] == [1, 3]
    assert {one["after"]["threads"] for one in found["comparisons"]} == {1}
    assert {one["after"]["device"] for one in found["comparisons"]} == {"cpu"}
    text = run("bench", tiny, "--input-shape", "1x8x8", "--remove", 0.5, "--batch", "2", "--seconds", 0.01).stdout
    assert "batch 2, 1 thread, cpu" in text


def test_bench_times_a_saved_model(tiny, tmp_path):
    out = tmp_path / "small"
    facts("prune", tiny, "--input-shape", "1x8x8", "--remove", 0.5, "--out", out)
    found = facts("bench", tiny, "--input-shape", "1x8x8", "--pruned", out, "--batch", 1, "--seconds", 0.01)
    assert found["pruned"] == str(out)
    assert found["comparisons"][0]["after"]["median_ms"] > 0


def test_bench_of_a_folder_without_a_model_says_so(tmp_path):
    result = run("bench", "digits_resnet", "--pruned", tmp_path)
    assert result.exit_code == 1
    assert "no saved model can be read" in result.stderr


# ---------------------------------------------------------------- live view

SHORT = ("--set", 'recipe={"epochs": 2, "lr": 0.01}')


def test_prune_writes_how_training_went_as_figures_and_charts(tiny: str, tmp_path: Path) -> None:
    pytest.importorskip("altair")
    base = ("prune", tiny, "--data", "digits", "--method", "soft_filter", *SHORT, "--remove", 0.3)
    facts(*base, "--out", tmp_path / "small")
    history = json.loads((tmp_path / "small" / "result.json").read_text())["history"]
    assert [view["epoch"] for view in history["epochs"]] == [1, 2]
    assert history["epochs"][-1]["if_cut"]["channels"] == sum(history["epochs"][-1]["kept"].values())
    assert "<html" in (tmp_path / "small" / "training.html").read_text().lower()


@pytest.mark.filterwarnings("ignore")
def test_training_pruning_and_finetuning_are_shown_in_tensorboard(tiny: str, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from .train.test_tracking import events

    shown = ("--data", "digits", "--track", "tensorboard", "--track-dir", tmp_path / "runs")
    facts("train", tiny, "--epochs", 2, "--out", tmp_path / "base", *shown)
    assert len(events(tmp_path / "runs" / "base").Scalars("train/loss")) == 2
    base = ("prune", tiny, "--remove", 0.3, "--out", tmp_path / "small", "--finetune", 1, *shown)
    facts(*base, "--method", "soft_filter", *SHORT)
    assert events(tmp_path / "runs" / "small").Tags()["histograms"] == ["scores/0", "scores/3"]
    assert len(events(tmp_path / "runs" / "small-finetune").Scalars("train/loss")) == 1


def test_tracking_what_does_not_train_is_refused(tiny: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("secateur.train.tracking.find_spec", lambda name: True)
    result = run("prune", tiny, "--input-shape", "1x8x8", "--remove", 0.3, "--track", "mlflow")
    assert result.exit_code == 1
    assert "--track: l1_filter takes no part in training" in result.stderr


# ---------------------------------------------------------------- sparsify


def test_sparsify_saves_a_model_that_loads_with_its_mask(tiny, trained, tmp_path):
    out = tmp_path / "sparse"
    options = ("--weights", trained, "--data", "digits", "--remove", 0.6, "--finetune", 1)
    found = facts("sparsify", tiny, *options, "--out", out)
    assert found["budget"] == {"remove": 0.6, "of": "weights", "removed": pytest.approx(0.6, abs=1e-3)}
    assert {"before", "as_cut", "finetuned"} <= found["test"].keys()
    assert json.loads((out / "result.json").read_text())["zeros"] == found["zeros"]
    assert [path.name for path in tmp_path.iterdir()] == ["sparse"]
    sparse = secateur.load(out, model=secateur.models.resolve(tiny))
    plan = secateur.WeightPlan.load(out / "plan.safetensors")
    assert plan.removed_count == found["zeros"] > 0
    assert secateur.WeightPlan.of(sparse) == plan, "fine-tuning did not hold the zeros"
    again = facts("sparsify", tiny, "--weights", out, "--remove", 0.6)
    assert again["zeros"] == found["zeros"], "the weights that were zero are the smallest"


def test_sparsify_takes_a_pattern_alone(tiny):
    found = facts("sparsify", tiny, "--pattern", "2:4", "--uneven", "skip")
    assert found["pattern"] == "2:4"
    assert found["weights"]["3.weight"] == {"before": 432, "after": 216}
    assert found["weights"]["6.weight"] == {"before": 960, "after": 480}


def test_sparsify_heeds_settings_protection_and_inclusion(tiny):
    base = ("sparsify", tiny, "--remove", 0.5, "--set", "scope=layer")
    found = facts(*base, "--protect", "0")
    assert found["weights"] == {"3.weight": {"before": 432, "after": 216}, "6.weight": {"before": 960, "after": 480}}
    result = run(*base, "--include", "0.bais")
    assert result.exit_code == 1
    assert "did you mean '0.bias'" in result.stderr


def test_sparsify_dry_run_writes_nothing_and_trains_nothing(tiny, tmp_path):
    options = ("--data", "digits", "--remove", 0.5, "--finetune", 3, "--out", tmp_path / "sparse", "--dry-run")
    found = facts("sparsify", tiny, *options)
    assert found["dry_run"] is True
    assert found["finetune"]["epochs"] == 3
    assert list(tmp_path.iterdir()) == []


def test_sparsify_without_out_saves_nothing_and_says_so(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run("sparsify", tiny, "--remove", 0.5)
    assert result.exit_code == 0
    assert "asked: remove 50.0% of weights" in result.stdout
    assert "nothing was saved: give --out DIR" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_each_command_points_to_the_one_that_a_method_belongs_to(tiny):
    wrong = run("prune", tiny, "--input-shape", "1x8x8", "--remove", 0.5, "--method", "magnitude")
    assert wrong.exit_code == 1
    assert "magnitude removes weights, not channels: call secateur sparsify." in wrong.stderr
    wrong = run("sparsify", tiny, "--remove", 0.5, "--method", "l1_filter")
    assert wrong.exit_code == 1
    assert "l1_filter removes channels, not weights: call secateur prune." in wrong.stderr


def test_weights_may_be_a_saved_model_that_was_cut(tiny, tmp_path):
    out = tmp_path / "small"
    facts("prune", tiny, "--input-shape", "1x8x8", "--remove", 0.5, "--out", out)
    found = facts("sparsify", tiny, "--weights", out, "--remove", 0.5)
    assert found["weights"]["3.weight"]["before"] == 4 * 3 * 9


def test_bench_times_zeros_in_every_form_and_says_what_helped(tiny, tmp_path):
    base = ("bench", tiny, "--input-shape", "1x8x8", "--batch", 1, "--seconds", 0.005)
    found = facts(*base, "--zeros", 0.5)["comparisons"][0]
    assert [row["form"] for row in found["rows"]][:3] == ["dense", "zeros", "CSR"]
    out = tmp_path / "sparse"
    facts("sparsify", tiny, "--remove", 0.5, "--out", out)
    assert "of the parameters are zero; dense kernels run them at" in run(*base, "--pruned", out).stdout
    assert run(*base, "--zeros", 0.5, "--remove", 0.5).exit_code == 2
