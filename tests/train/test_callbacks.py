"""What the callbacks for other trainers refuse, and the corners of their loops."""

from __future__ import annotations

import copy
import importlib.util

import pytest
import torch
from torch import nn

import secateur as sc
from secateur import extras
from secateur.errors import MissingExtra, TrainingError
from secateur.train import Attachment, HuggingFaceCallback, LightningCallback, Moment
from secateur.train.points import Points, leaves_of

from . import loops
from .loops import (
    EPOCHS,
    IMAGES,
    STEPS_PER_EPOCH,
    Killed,
    ShrinkFilters,
    hugging_face_loop,
    lightning_loop,
    network,
    others_quiet,
)

torch.set_num_threads(1)
CALLBACKS = {"lightning": LightningCallback, "transformers": HuggingFaceCallback}


def needs(module: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(importlib.util.find_spec(module) is None, reason=f"{module} is not installed")


LIGHTNING, HUGGING_FACE = needs("lightning"), needs("transformers")
BOTH = [
    pytest.param(lightning_loop, marks=LIGHTNING, id="Lightning"),
    pytest.param(hugging_face_loop, marks=HUGGING_FACE, id="Hugging Face"),
]


class Idle(Attachment):
    """Does nothing."""


class Weighing(Attachment):
    """Adds a fixed multiple of the sum of some weights: the gradient is known."""

    def __init__(self, *weights: nn.Parameter) -> None:
        self.weights = weights
        self.seen: list[torch.Tensor] = []

    def extra_loss(self, moment: Moment) -> torch.Tensor:
        return 3.0 * sum(weight.sum() for weight in self.weights)

    def after_backward(self, moment: Moment) -> None:
        self.seen = [weight.grad.clone() for weight in self.weights]


def moment_of(model: nn.Module) -> Moment:
    return Moment(model, torch.optim.SGD(model.parameters(), lr=0.1), 0, 1, 0, 0.1)


def test_the_extra_gradient_is_added_to_that_of_the_loss_and_replaces_none():
    model = nn.Linear(2, 1)
    unused = nn.Parameter(torch.ones(1))
    attachment = Weighing(model.bias, unused)
    points = Points([attachment], None)
    loss = model(torch.ones(1, 2)).sum() * 2
    points.before_backward(moment_of(model))
    assert model.bias.grad is None, "the loop's own gradients come first"
    loss.backward()
    points.before_step()
    assert [gradient.tolist() for gradient in attachment.seen] == [[5.0], [3.0]]


def test_an_extra_loss_that_shares_the_graph_of_the_forward_pass_leaves_it_to_the_loop():
    model = nn.Linear(2, 1)
    output = model(torch.ones(1, 2)).exp()
    attachment = Idle()
    attachment.extra_loss = lambda moment: output.square().sum()
    points = Points([attachment], None)
    points.before_backward(moment_of(model))
    output.sum().backward()
    points.before_step()
    copied = copy.deepcopy(model)
    copied.zero_grad()
    values = copied(torch.ones(1, 2)).exp()
    (values.sum() + values.square().sum()).backward()
    torch.testing.assert_close(model.weight.grad, copied.weight.grad)


def test_leaves_are_found_once_each_and_only_those_that_the_value_depends_on():
    first, second, other = (torch.ones(2, requires_grad=True) for _ in range(3))
    found = leaves_of((first * second + first).sum() + torch.ones(2).sum())
    assert {id(leaf) for leaf in found} == {id(first), id(second)}
    assert len(found) == 2
    assert leaves_of(other)[0] is other


@pytest.mark.parametrize("loop", BOTH)
def test_accumulated_batches_are_one_step_with_one_extra_loss(loop, tmp_path):
    options = {"accumulate_grad_batches": 2} if loop is lightning_loop else {"gradient_accumulation_steps": 2}
    log = loop(ShrinkFilters(), tmp_path, **options).attached.log
    steps = EPOCHS * STEPS_PER_EPOCH // 2
    assert [step for point, *_, step, _ in log if point == "extra_loss"] == list(range(steps))
    assert [step for point, *_, step, _ in log if point == "after_step"] == list(range(steps))
    assert [epoch for point, epoch, *_ in log if point == "after_epoch"] == list(range(EPOCHS))


@pytest.mark.parametrize("loop", BOTH)
def test_an_epoch_cut_short_is_closed(loop, tmp_path):
    log = loop(ShrinkFilters(), tmp_path, max_steps=6).attached.log
    assert [entry[0] for entry in log[-4:]] == ["extra_loss", "after_backward", "after_step", "after_epoch"]
    assert [epoch for point, epoch, *_ in log if point == "after_epoch"] == [0, 1]


@LIGHTNING
def test_an_epoch_is_closed_at_its_last_batch_which_is_before_validation(tmp_path):
    from lightning.pytorch import Callback

    class Look(Callback):
        order: list[str] = []  # noqa: RUF012

        def on_train_batch_end(self, trainer, *_):
            ours = next(each for each in trainer.callbacks if isinstance(each, LightningCallback))
            if trainer.is_last_batch:
                self.order.append(f"{trainer.current_epoch} {ours._points.closed_epoch}")

    lightning_loop(ShrinkFilters(), tmp_path, callbacks=[Look()])
    assert Look.order == ["0 0", "1 1", "2 2"]


@pytest.mark.parametrize("loop", BOTH)
def test_the_state_of_another_method_is_refused(loop, tmp_path, monkeypatch):
    with pytest.raises(Killed):
        loop(ShrinkFilters(kill_at=7), tmp_path)
    monkeypatch.setattr(loops, "Shrinking", type("Stretching", (loops.Shrinking,), {}))
    with pytest.raises(TrainingError, match=r"belongs to other attachments.*Shrinking.*there.*Stretching.*here"):
        loop(ShrinkFilters(), tmp_path, resume=True)


@HUGGING_FACE
def test_a_checkpoint_without_the_attachments_state_is_refused_by_hugging_faces(tmp_path):
    with pytest.raises(Killed):
        hugging_face_loop(ShrinkFilters(kill_at=7), tmp_path)
    (tmp_path / "checkpoint-6" / "secateur.safetensors").unlink()
    with pytest.raises(TrainingError, match=r"cannot read the attachments' state from .*checkpoint-6"):
        hugging_face_loop(ShrinkFilters(), tmp_path, resume=True)


@LIGHTNING
def test_a_checkpoint_without_the_attachments_state_is_refused_by_lightnings(tmp_path):
    with pytest.raises(Killed):
        lightning_loop(ShrinkFilters(kill_at=7), tmp_path)
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    del saved["callbacks"]["secateur"]
    torch.save(saved, tmp_path / "last.ckpt")
    with pytest.raises(TrainingError, match="holds no state of the attachments"):
        lightning_loop(ShrinkFilters(), tmp_path, resume=True)


@HUGGING_FACE
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_grad_norm": 1.0}, r"max_grad_norm=0\) and HuggingFaceCallback\(..., clip_norm=1.0"),
    ],
)
def test_a_hugging_face_trainer_that_clips_is_refused(options, message, tmp_path):
    with pytest.raises(TrainingError, match=message):
        hugging_face_loop(ShrinkFilters(), tmp_path, **options)


@HUGGING_FACE
@pytest.mark.parametrize(
    ("changed", "message"),
    [({"fp16": True}, "use bf16"), ({"n_gpu": 2}, "2 GPUs in one process"), ({"fsdp": ["x"]}, "fsdp")],
)
def test_a_hugging_face_trainer_that_scales_or_shards_is_refused(changed, message):
    from types import SimpleNamespace

    from secateur.train.hugging_face import _check

    args = {"max_grad_norm": 0.0, "fp16": False, "fsdp": [], "deepspeed": None, "n_gpu": 0}
    _check(SimpleNamespace(**args))
    with pytest.raises(TrainingError, match=message):
        _check(SimpleNamespace(**(args | changed)))


@LIGHTNING
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_epochs": -1, "max_steps": 3}, "max_epochs=-1: methods need"),
        ({"manual": True}, "automatic_optimization=False"),
    ],
)
def test_a_lightning_trainer_that_the_points_do_not_fit_is_refused(options, message, tmp_path, monkeypatch):
    if options.pop("manual", False):
        import lightning.pytorch as pl

        monkeypatch.setattr(pl.LightningModule, "automatic_optimization", property(lambda self: False))
        options["gradient_clip_val"] = None
    with pytest.raises(TrainingError, match=message):
        lightning_loop(ShrinkFilters(), tmp_path, **options)


@pytest.mark.parametrize("loop", BOTH)
def test_an_attachment_to_a_copy_of_the_model_is_refused(loop, tmp_path, monkeypatch):
    elsewhere = sc.attach(network(), IMAGES, method=ShrinkFilters(), budget=sc.Budget(remove=0.4))
    monkeypatch.setattr(loops.sc, "attach", lambda *_, **__: elsewhere)
    with pytest.raises(TrainingError, match="the very model that is trained, not to a copy"):
        loop(ShrinkFilters(), tmp_path)


@pytest.mark.parametrize("name", [pytest.param(n, marks=needs(n)) for n in CALLBACKS])
def test_a_callback_is_one_of_the_frameworks_and_can_be_copied(name):
    with others_quiet():
        if name == "lightning":
            from lightning.pytorch import Callback as Base
        else:
            from transformers import TrainerCallback as Base
    made = CALLBACKS[name](Idle())
    assert isinstance(made, Base)
    assert isinstance(made, CALLBACKS[name])
    assert isinstance(copy.deepcopy(made), Base)
    with pytest.raises(TrainingError, match="no attachment"):
        CALLBACKS[name]()


@pytest.mark.parametrize(("name", "extra"), [("lightning", "lightning"), ("transformers", "hf")])
def test_a_framework_that_is_missing_is_named_with_its_extra(name, extra, monkeypatch):
    def missing(module):
        raise ModuleNotFoundError(f"No module named {module!r}", name=module.partition(".")[0])

    monkeypatch.setattr(extras.importlib, "import_module", missing)
    with pytest.raises(MissingExtra, match=rf'needs {name}, .*pip install "secateur\[{extra}\]"'):
        CALLBACKS[name](Idle())


@HUGGING_FACE
@pytest.mark.parametrize("clip_norm", [0, -1.0, float("inf")])
def test_a_limit_that_limits_nothing_is_refused(clip_norm):
    with pytest.raises(TrainingError, match="clip_norm="):
        HuggingFaceCallback(Idle(), clip_norm=clip_norm)
