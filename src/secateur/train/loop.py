"""The training loop: on Hugging Face Accelerate, with four points for methods to attach to, resumable to the bit.

What an exact resume needs: the same machine, versions and thread count; a model built as before; attachments that
return all they remember; and data that follow from the random numbers the loop seeds. A `DataLoader` does (its own
`generator` is seeded too, from the recipe's seed and the epoch; random transforms in *persistent* workers do not
start anew, so leave those off). Any other iterable must give the same batches in the same order each time it is
iterated; if it has `set_epoch(epoch)` it is told which epoch comes. A generator can be read once only and is
refused for more than one epoch.
"""

from __future__ import annotations

import functools
import logging
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from secateur.errors import TrainingError
from secateur.train.attachment import Attachment, Moment
from secateur.train.batches import batches_in, device_of, explained, same_modes_after, sample_count, to_device
from secateur.train.checkpoint import (
    Checkpoint,
    discard_checkpoints,
    plain,
    read_newest_checkpoint,
    settings_of,
    weights_of,
    write_checkpoint,
)
from secateur.train.evaluation import forward, mean_score, score_sums
from secateur.train.placement import accelerator, check_distribution, check_iterable, dealt, equal_buffers_, placed
from secateur.train.progress import ProgressBar
from secateur.train.randomness import (
    Stream,
    epoch_seed,
    random_state,
    same_loader_after,
    same_randomness_after,
    seed_,
    seed_loader_,
    set_random_state_,
)
from secateur.train.schedules import Recipe
from secateur.train.task import Task
from secateur.train.tracking import Tracking, Tracks, tracked

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class EpochRecord:
    """One epoch.

    Attributes:
        epoch: 0 = the schedule's first.
        loss: mean training loss over the epoch's samples, with what attachments added.
        metric: of the evaluation after the epoch; None without an `eval_loader`.
        lr: learning rate of the epoch's first step.
        seconds: wall time, evaluation included; does not count in comparisons.
    """

    epoch: int
    loss: float
    metric: float | None
    lr: float
    seconds: float = field(compare=False)


@dataclass(frozen=True)
class TrainResult:
    """What a training run did.

    Attributes:
        history: one record per epoch, earlier runs of a resumed one included.
        metric_name: the task's metric.
        step_count: optimizer steps in all.
        resumed_from: step at which a checkpoint was taken up, None = started anew; does not count in comparisons.
    """

    history: tuple[EpochRecord, ...]
    metric_name: str
    step_count: int
    resumed_from: int | None = field(default=None, compare=False)

    @property
    def metric(self) -> float | None:
        """The metric after the last epoch. Never the best one: choosing it on test data flatters."""
        return self.history[-1].metric

    @property
    def loss(self) -> float:
        """The mean training loss of the last epoch."""
        return self.history[-1].loss

    @property
    def seconds(self) -> float:
        """Wall time of all epochs."""
        return sum(record.seconds for record in self.history)


def fit(
    model: nn.Module,
    loader: Iterable[Any],
    task: Task,
    recipe: Recipe,
    *,
    attachments: Sequence[Attachment] = (),
    eval_loader: Iterable[Any] | None = None,
    checkpoint_dir: str | Path | None = None,
    checkpoint_steps: int | None = None,
    resume: bool = True,
    run_id: str = "",
    progress: bool | None = None,
    tracking: Tracking | None = None,
) -> TrainResult:
    """Train the model IN PLACE; the one function here that does. `recovery.finetune` works on a copy.

    The model trains where it is; under `accelerate launch`, on the device of each process. Only its weights and
    buffers change: flags, device and memory format, the global random numbers and the loaders' generators are
    afterwards as they were, also after an exception. Gradients are None.

    Args:
        model: parameters that do not require gradients stay as they are.
        loader: an iterable of batches that can be iterated once per epoch; for several processes, a `DataLoader`.
        task: how to feed a batch, the loss and the metric.
        recipe: how to train.
        attachments: what takes part in the loop, called in this order at each of the four points.
        eval_loader: data for the metric after each epoch.
        checkpoint_dir: where to keep checkpoints: one after each epoch, the newest two stay.
        checkpoint_steps: also write one whenever the step count is a multiple of this.
        resume: go on from the newest whole checkpoint if there is one. The weights are then the same, bit for bit
            on a CPU, as if the run had never stopped. False discards the checkpoints that are there.
        run_id: must be equal for a checkpoint to be taken up, besides model shape, recipe, task and attachments.
        progress: True or False to force the progress bar; None = where there is a terminal.
        tracking: where to write loss, learning rate, metric and what attachments measure after each epoch. A resumed
            run goes on in the same TensorBoard folder, and as another run of the same name elsewhere.

    Raises:
        TrainingError: nothing to train, no data, the loss or a weight is no longer finite (the last good checkpoint
            stays), a checkpoint belongs to another run, or the extra "train" is not installed.

    >>> from secateur.train.task import ClassificationTask
    >>> _ = torch.manual_seed(0)
    >>> batches = [(torch.eye(2), torch.tensor([0, 1]))]
    >>> result = fit(nn.Linear(2, 2), batches, ClassificationTask(), Recipe(epochs=50, lr=0.5), eval_loader=batches)
    >>> result.metric, len(result.history)
    (1.0, 50)
    """
    if checkpoint_steps is not None and (checkpoint_dir is None or checkpoint_steps < 1):
        raise TrainingError(f"checkpoint_steps={checkpoint_steps}: expected a count >= 1, with a checkpoint_dir.")
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise TrainingError("no parameter of the model requires gradients, so there is nothing to train.")
    check_iterable(loader, recipe.epochs - recipe.first_epoch)
    with ExitStack() as stack:
        made = stack.enter_context(accelerator(tracking))
        check_distribution(made)
        device = device_of(model) if made.num_processes == 1 else made.device
        stack.enter_context(same_modes_after(model))
        stack.enter_context(placed(model, device, channels_last=recipe.channels_last))
        stack.enter_context(same_randomness_after(device))
        stack.enter_context(same_loader_after(loader))
        stack.enter_context(same_loader_after(eval_loader))
        tracks = stack.enter_context(tracked(tracking, made, asdict(recipe)))
        folder = None if checkpoint_dir is None else Path(checkpoint_dir)
        data = _Data(made, loader, eval_loader, recipe)
        run = _Run(made, model, data, task, recipe, tuple(attachments), folder, checkpoint_steps, run_id, tracks)
        run.begin(resume=resume)
        return run.to_end(visible=progress)


class _Data:
    """The loaders, dealt out to the processes; the epochs' batches with random numbers of their own."""

    def __init__(self, made: Any, loader: Iterable[Any], eval_loader: Iterable[Any] | None, recipe: Recipe) -> None:
        self.train, self.evaluation = dealt(made, loader, even=True), dealt(made, eval_loader, even=False)
        self.batch_count = batches_in(self.train)
        self._seed = recipe.seed
        size, meant = getattr(loader, "batch_size", None), recipe.batch_size
        if size is not None and meant is not None and size * made.num_processes != meant:
            logger.warning(
                "lr=%g is meant for batches of %d, and these are of %d", recipe.lr, meant, size * made.num_processes
            )

    def batches(self, epoch: int, skip_count: int) -> Iterator[Any]:
        """Yield the batches of an epoch after the first `skip_count`, which are read all the same."""
        stream = Stream(epoch_seed(self._seed, epoch))
        with stream:
            seed_loader_(self.train, self._seed, epoch)
            iterator = iter(self.train)
            for _ in range(skip_count):
                next(iterator, None)
        while True:
            with stream:
                try:
                    batch = next(iterator)
                except StopIteration:
                    return
            yield batch


@dataclass
class _Run:
    """One call of `fit` under way."""

    accelerator: Any
    model: nn.Module
    data: _Data
    task: Task
    recipe: Recipe
    attachments: tuple[Attachment, ...]
    folder: Path | None
    checkpoint_steps: int | None
    run_id: str
    tracks: Tracks | None = None

    def __post_init__(self) -> None:
        self.device = device_of(self.model)
        self.epoch, self.batch, self.step = self.recipe.first_epoch, 0, 0
        self.loss_sum, self.sample_count, self.seconds = 0.0, 0, 0.0
        self.history: list[EpochRecord] = []
        self.resumed_from: int | None = None
        self.trainable = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        # Accelerate's optimizer wrapper would only scale fp16 and skip accumulation steps, for 0.4 ms a step.
        self.optimizer = self.recipe.make_optimizer(self.trainable)
        self.wrapped = self.accelerator.prepare(self.model)
        # Accelerate marks what it prepared, and would leave a marked model unwrapped in a later run.
        vars(self.model).pop("_is_accelerate_prepared", None)

    def begin(self, *, resume: bool) -> None:
        """Seed, and take up the newest checkpoint."""
        seed_(epoch_seed(self.recipe.seed, self.recipe.epochs + self.accelerator.process_index))
        if self.folder is None:
            return
        if resume:
            self._take_up(read_newest_checkpoint(self.folder, self._identity()))
        elif self.accelerator.is_main_process:
            discard_checkpoints(self.folder)
        self.accelerator.wait_for_everyone()

    def to_end(self, *, visible: bool | None) -> TrainResult:
        """Run the epochs that are left."""
        total = None
        if self.data.batch_count is not None:
            total = self.data.batch_count * (self.recipe.epochs - self.recipe.first_epoch)
        with ProgressBar("training", total, visible=visible if self.accelerator.is_main_process else False) as bar:
            bar.advance(self.step)
            while self.epoch < self.recipe.epochs:
                self._run_epoch(bar)
        return TrainResult(tuple(self.history), self.task.name, self.step, self.resumed_from)

    def _run_epoch(self, bar: ProgressBar) -> None:
        started = time.monotonic() - self.seconds
        self.model.train()
        for batch in self.data.batches(self.epoch, self.batch):
            self._train_on(batch)
            self.batch, self.step = self.batch + 1, self.step + 1
            bar.advance(title=f"epoch {self.epoch + 1}/{self.recipe.epochs}")
            if self.checkpoint_steps is not None and self.step % self.checkpoint_steps == 0:
                self.seconds = time.monotonic() - started
                self._check_weights()
                self._save()
        if self.batch == 0:
            raise TrainingError(
                f"the loader gave no batch in epoch {self.epoch + 1}; it must start anew each time it is iterated."
            )
        self._check_weights()
        equal_buffers_(self.model, self.accelerator.num_processes)
        moment = self._moment(self.batch - 1, self.step - 1)
        for attachment in self.attachments:
            attachment.after_epoch(moment)
        self._check_weights()
        metric = self._metric()
        self.seconds = time.monotonic() - started
        self._close_epoch(metric)

    def _train_on(self, batch: Any) -> None:
        moment = self._moment(self.batch, self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = moment.lr
        self.optimizer.zero_grad()
        self.accelerator.backward(self._loss(to_device(batch, self.device), moment))
        for attachment in self.attachments:
            attachment.after_backward(moment)
        if self.recipe.clip_norm is not None:
            self.accelerator.clip_grad_norm_(self.wrapped.parameters(), self.recipe.clip_norm)
        self.optimizer.step()
        for attachment in self.attachments:
            attachment.after_step(moment)

    def _loss(self, batch: Any, moment: Moment) -> Tensor:
        recipe = self.recipe
        with explained("the loader"):
            inputs = self.task.to_inputs(batch)
            output = forward(self.wrapped, inputs, recipe.precision, channels_last=recipe.channels_last)
            parts = [("loss", self.task.loss(output, batch))]
        for attachment in self.attachments:
            extra = attachment.extra_loss(moment)
            if extra is not None:
                parts.append((f"extra loss of {type(attachment).__name__}", torch.as_tensor(extra, device=self.device)))
        loss = functools.reduce(torch.add, (part for _, part in parts))
        value = loss.detach().item()
        if not math.isfinite(value):
            raise self._not_finite(", ".join(f"{name} {part.detach().item():g}" for name, part in parts))
        count = sample_count(*inputs)
        self.loss_sum, self.sample_count = self.loss_sum + value * count, self.sample_count + count
        return loss

    def _metric(self) -> float | None:
        if self.data.evaluation is None:
            return None
        sums = score_sums(self.model, self.data.evaluation, self.task, precision=self.recipe.precision)
        if self.accelerator.num_processes > 1:
            total = torch.tensor(sums, dtype=torch.float64, device=self.device)
            score_sum, score_count = self.accelerator.reduce(total, "sum").tolist()
            sums = score_sum, int(score_count)
        return mean_score(*sums)

    def _close_epoch(self, metric: float | None) -> None:
        lr = self._moment(0, 0).lr
        record = EpochRecord(self.epoch, self._mean_loss(), metric, lr, self.seconds)
        self.history.append(record)
        shown = "" if metric is None else f", {self.task.name} {metric:.4f}"
        logger.info(
            "epoch %d/%d: loss %.4f%s, lr %g, %.1f s",
            self.epoch + 1,
            self.recipe.epochs,
            record.loss,
            shown,
            lr,
            self.seconds,
        )
        self.epoch, self.batch = self.epoch + 1, 0
        self.loss_sum, self.sample_count, self.seconds = 0.0, 0, 0.0
        self._save()
        self._track(record)

    def _track(self, record: EpochRecord) -> None:
        if self.tracks is None:
            return
        values: dict[str, float | Tensor] = {"train/loss": record.loss, "train/lr": record.lr}
        if record.metric is not None:
            values[f"evaluation/{self.task.name}"] = record.metric
        for attachment in self.attachments:
            values |= attachment.measurements()
        self.tracks.write(record.epoch + 1, values)

    def _mean_loss(self) -> float:
        sums = torch.tensor([self.loss_sum, self.sample_count], dtype=torch.float64)
        if self.accelerator.num_processes > 1:
            sums = self.accelerator.reduce(sums.to(self.device), "sum")
        return float(sums[0] / sums[1])

    def _moment(self, batch: int, step: int) -> Moment:
        tick = 1.0 if self.data.batch_count is None else 1.0 / self.data.batch_count
        passed = 0.0 if self.data.batch_count is None else batch * tick
        lr = self.recipe.lr_at(self.epoch + passed, tick)
        count = self.data.batch_count
        step_count = None if count is None else count * (self.recipe.epochs - self.recipe.first_epoch)
        return Moment(self.model, self.optimizer, self.epoch, self.recipe.epochs, step, lr, step_count)

    def _check_weights(self) -> None:
        if not all(bool(torch.isfinite(parameter).all()) for parameter in self.trainable):
            raise self._not_finite("a weight is")

    def _not_finite(self, found: str) -> TrainingError:
        lr = self._moment(self.batch, self.step).lr
        kept = "" if self.folder is None else f" The last good checkpoint is in {self.folder}."
        return TrainingError(
            f"training left the finite numbers: {found}, in epoch {self.epoch + 1}, step {self.step}, at lr {lr:g}. "
            f"Lower the lr, add warmup_epochs or clip_norm, or look for bad values in the data.{kept}"
        )

    def _identity(self) -> dict[str, Any]:
        tensors = {name: f"{value.dtype} {tuple(value.shape)}" for name, value in weights_of(self.model).items()}
        recipe = {name: value for name, value in asdict(self.recipe).items() if name != "source"}
        return {
            "run_id": self.run_id,
            "model": {"class": type(self.model).__qualname__, **tensors},
            "recipe": recipe,
            "task": settings_of(self.task),
            "attachments": [settings_of(attachment) for attachment in self.attachments],
            "process_count": self.accelerator.num_processes,
            "batch_count": self.data.batch_count,
        }

    def _save(self) -> None:
        if self.folder is None:
            return
        from accelerate.utils import gather_object

        of_process = {
            "random": random_state(self.device),
            "loss_sum": self.loss_sum,
            "sample_count": self.sample_count,
        }
        of_processes = gather_object([of_process])
        if self.accelerator.is_main_process:
            state = {
                "optimizer": self.optimizer.state_dict(),
                "processes": of_processes,
                "attachments": [
                    plain(attachment.state_dict(), type(attachment).__name__) for attachment in self.attachments
                ],
            }
            progress = {
                "batch": self.batch,
                "seconds": self.seconds,
                "history": [asdict(record) for record in self.history],
            }
            weights = weights_of(self.model)
            write_checkpoint(self.folder, Checkpoint(self.epoch, self.step, self._identity(), weights, state, progress))
        self.accelerator.wait_for_everyone()

    def _take_up(self, checkpoint: Checkpoint | None) -> None:
        if checkpoint is None:
            return
        self.model.load_state_dict(checkpoint.weights)
        self.optimizer.load_state_dict(checkpoint.state["optimizer"])
        for attachment, state in zip(self.attachments, checkpoint.state["attachments"], strict=True):
            attachment.load_state_dict(state)
        of_process, progress = checkpoint.state["processes"][self.accelerator.process_index], checkpoint.progress
        set_random_state_(of_process["random"], self.device)
        self.loss_sum, self.sample_count = of_process["loss_sum"], of_process["sample_count"]
        self.epoch, self.batch, self.step = checkpoint.epoch, progress["batch"], checkpoint.step
        self.seconds = progress["seconds"]
        self.history = [EpochRecord(**record) for record in progress["history"]]
        self.resumed_from = checkpoint.step
        logger.info("going on from epoch %d, step %d in %s", self.epoch + 1, self.step, self.folder)
