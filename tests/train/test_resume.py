"""A run that was killed and taken up again ends with the same weights, bit for bit."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

from secateur.errors import TrainingError
from secateur.train import Attachment, ClassificationTask, Recipe, TrainResult, fit
from secateur.train import checkpoint as checkpoints

from .cases import KillAt, Killed, Remembers, noisy_loader, tiny_model

TASK = ClassificationTask()
RECIPE = Recipe(epochs=3, lr=0.05, clip_norm=1.0, warmup_epochs=0.5, seed=3)  # 5 steps per epoch


def train(folder: Path | None = None, *attachments: Attachment, recipe: Recipe = RECIPE, loader=None, **options):
    model = tiny_model()
    loader = noisy_loader() if loader is None else loader
    result = fit(model, loader, TASK, recipe, attachments=attachments, checkpoint_dir=folder, **options)
    return model.state_dict(), result


def train_with_kill(folder: Path, kill: KillAt, *attachments: Attachment, recipe: Recipe = RECIPE, **options):
    """Kill once, then run again; the dead attachment keeps its place, so that the two runs are of one kind."""
    with pytest.raises(Killed):
        train(folder, kill, *attachments, recipe=recipe, **options)
    fresh = [type(attachment)() for attachment in attachments]
    return train(folder, KillAt("never", 0), *fresh, recipe=recipe, **options)


def assert_same(first: tuple[dict, TrainResult], second: tuple[dict, TrainResult]) -> None:
    assert all(torch.equal(first[0][name], second[0][name]) for name in first[0])
    assert first[1] == second[1]


@pytest.mark.parametrize(
    ("point", "step", "checkpoint_steps"),
    [
        ("after_backward", 7, None),
        ("after_step", 7, 1),
        ("after_step", 7, 3),
        ("after_epoch", 4, 1),  # the last step of an epoch is saved, its end is not
        ("after_epoch", 9, None),
        ("extra_loss", 5, None),
        ("after_step", 14, 2),
    ],
)
def test_a_kill_changes_nothing(tmp_path, point, step, checkpoint_steps):
    whole = train(None)
    resumed = train_with_kill(tmp_path, KillAt(point, step), checkpoint_steps=checkpoint_steps)
    assert resumed[1].resumed_from
    assert_same(whole, resumed)


@pytest.mark.parametrize(
    "recipe",
    [
        RECIPE.replace(optimizer="adamw", lr=0.01),
        RECIPE.replace(precision="bf16", channels_last=True),
        RECIPE.replace(nesterov=True, schedule="step", milestones=(1 / 3,)),
    ],
    ids=["adamw", "bf16 channels last", "nesterov"],
)
def test_every_optimizer_precision_and_layout_resumes(tmp_path, recipe):
    whole = train(None, recipe=recipe)
    assert_same(whole, train_with_kill(tmp_path, KillAt("after_step", 8), recipe=recipe, checkpoint_steps=4))


def test_what_attachments_remember_comes_back(tmp_path):
    whole = train(None, Remembers())
    resumed = train_with_kill(tmp_path, KillAt("after_step", 8), Remembers(), checkpoint_steps=4)
    assert_same(whole, resumed)
    assert not all(torch.equal(value, train(None)[0][name]) for name, value in whole[0].items())


def test_workers_that_draw_random_numbers_resume_too(tmp_path):
    loader = noisy_loader(num_workers=1, generator=torch.Generator().manual_seed(99))
    recipe = RECIPE.replace(epochs=2)
    whole = train(None, recipe=recipe, loader=loader)
    resumed = train_with_kill(tmp_path, KillAt("after_step", 7), recipe=recipe, checkpoint_steps=7, loader=loader)
    assert_same(whole, resumed)


def test_the_loss_and_metric_of_an_epoch_cut_in_two_are_of_the_whole_epoch(tmp_path):
    evaluation = list(noisy_loader(shuffle=False))
    whole = train(None, eval_loader=evaluation)[1]
    resumed = train_with_kill(tmp_path, KillAt("after_step", 7), checkpoint_steps=1, eval_loader=evaluation)[1]
    assert resumed.resumed_from == 7
    assert [record.loss for record in resumed.history] == [record.loss for record in whole.history]
    assert [record.metric for record in resumed.history] == [record.metric for record in whole.history]


def test_a_finished_run_is_taken_up_without_training(tmp_path):
    whole = train(tmp_path)
    again = train(tmp_path)
    assert_same(whole, again)
    assert again[1].resumed_from == 15


@pytest.mark.parametrize("damage", ["cut off", "one bit", "weights gone", "never renamed"])
def test_a_damaged_checkpoint_is_ignored_and_the_one_before_is_used(tmp_path, damage):
    whole = train(None)
    with pytest.raises(Killed):
        train(tmp_path, KillAt("after_step", 12), checkpoint_steps=1)
    newest = sorted(tmp_path.glob("epoch-*"))[-1]
    weights = newest / "model.safetensors"
    content = bytearray(weights.read_bytes())
    if damage == "cut off":
        (newest / "run.json").write_text((newest / "run.json").read_text()[:100])
    elif damage == "one bit":
        content[-1] ^= 1
        weights.write_bytes(content)
    elif damage == "weights gone":
        weights.unlink()
    else:
        newest.rename(tmp_path / f".{newest.name}.part")
    resumed = train(tmp_path, KillAt("never", 0))
    assert resumed[1].resumed_from == 11
    assert_same(whole, resumed)


def test_a_kill_while_a_checkpoint_is_written_leaves_the_one_before(tmp_path, monkeypatch):
    whole = train(None)
    original, calls = checkpoints.flush, []

    def flush(path):
        calls.append(path)
        if len(calls) == 13:  # 5 flushes a checkpoint: in the middle of the third
            raise Killed
        original(path)

    monkeypatch.setattr(checkpoints, "flush", flush)
    with pytest.raises(Killed):
        train(tmp_path, checkpoint_steps=2)
    resumed = train(tmp_path, checkpoint_steps=2)
    assert resumed[1].resumed_from == 4
    assert_same(whole, resumed)


def test_two_checkpoints_stay(tmp_path):
    train(tmp_path, checkpoint_steps=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["epoch-0002-step-00000014", "epoch-0003-step-00000015"]


@pytest.mark.slow
def test_a_real_kill_by_the_system_changes_nothing(tmp_path):
    script = f"""
        import os, signal
        import torch
        from tests.train.cases import noisy_loader, tiny_model
        from tests.train.test_resume import RECIPE, TASK
        from secateur.train import Attachment, fit
        torch.set_num_threads({torch.get_num_threads()})
        class Kill(Attachment):
            def after_step(self, moment):
                if moment.step == 8:
                    os.kill(os.getpid(), signal.SIGKILL)
        Kill.__qualname__ = "KillAt"
        fit(tiny_model(), noisy_loader(), TASK, RECIPE, attachments=[Kill()], checkpoint_dir={str(tmp_path)!r})
    """
    root = Path(__file__).parents[2]
    environment = os.environ | {"PYTHONPATH": f"{root / 'src'}{os.pathsep}{root}"}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], env=environment, capture_output=True, timeout=120, check=False
    )
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    resumed = train(tmp_path, KillAt("never", 0))
    assert resumed[1].resumed_from == 5
    assert_same(train(None), resumed)


def test_another_model_is_refused_and_the_message_says_what_differs(tmp_path):
    train(tmp_path)
    model = tiny_model()
    model[5] = torch.nn.Linear(96, 4)
    with pytest.raises(
        TrainingError, match=r"5\.weight is 'torch.float32 \(3, 96\)' there and .*\(4, 96\).*resume=False"
    ):
        fit(model, noisy_loader(), TASK, RECIPE, checkpoint_dir=tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"recipe": RECIPE.replace(lr=0.5)}, r"recipe\.lr is 0.05 there and 0.5 here"),
        ({"recipe": RECIPE.replace(seed=4)}, r"recipe\.seed is 3 there and 4 here"),
        ({"run_id": "b"}, "run_id is '' there and 'b' here"),
        ({"loader": noisy_loader(batch_size=4)}, "batch_count is 5 there and 10 here"),
    ],
)
def test_another_run_is_refused(tmp_path, options, message):
    train(tmp_path)
    with pytest.raises(TrainingError, match=message):
        train(tmp_path, **options)


def test_another_attachment_setting_is_refused(tmp_path):
    train(tmp_path)
    with pytest.raises(TrainingError, match="attachments"):
        train(tmp_path, Remembers())


def test_resume_false_starts_anew_and_discards_what_was_there(tmp_path):
    train(tmp_path)
    result = train(tmp_path, recipe=RECIPE.replace(epochs=1, lr=0.01), resume=False)[1]
    assert result.resumed_from is None
    assert [path.name for path in tmp_path.iterdir()] == ["epoch-0001-step-00000005"]


def test_a_state_that_would_need_pickle_is_refused_when_it_is_saved(tmp_path):
    class Odd(Attachment):
        def state_dict(self):
            return {"value": self}

    with pytest.raises(TrainingError, match="state of Odd cannot be saved without pickle"):
        train(tmp_path, Odd())


def test_a_checkpoint_with_code_in_it_is_not_run(tmp_path):
    train(tmp_path)
    newest = sorted(tmp_path.iterdir())[-1]
    flag = tmp_path.parent / "executed"

    class Trap:
        def __reduce__(self):
            return (os.mkdir, (str(flag),))

    torch.save({"state": Trap(), "extra_weights": {}}, newest / "state.pt")
    record = json.loads((newest / "run.json").read_text())
    record["sha256"]["state.pt"] = checkpoints._sha256(newest / "state.pt")
    (newest / "run.json").write_text(json.dumps(record))
    assert train(tmp_path)[1].resumed_from == 10
    assert not flag.exists()


def test_a_folder_that_cannot_be_written_is_an_error_with_its_name(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(TrainingError, match=r"cannot write the checkpoint .*file/epoch-0001"):
        train(tmp_path / "file")
