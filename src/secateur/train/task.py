"""A task says how to feed a batch, what the loss is and what the metric is. Nothing else here knows labels.

A metric is the mean of one score per sample. That makes it exact over batches of any size and over processes, and
leaves the single scores for those who want an interval.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from secateur.errors import MethodError, TrainingError

Inputs = tuple[tuple[Any, ...], dict[str, Any]]


class Task(Protocol):
    """What a model is for; write your own with these five names, or use `FunctionTask`."""

    @property
    def name(self) -> str:
        """The metric's name, as in tables."""

    @property
    def higher_is_better(self) -> bool:
        """Whether a larger metric is a better model."""

    def to_inputs(self, batch: Any) -> Inputs:
        """Return what to call the model with: positional and keyword arguments. Labels stay out."""

    def loss(self, output: Any, batch: Any) -> Tensor:
        """Return the mean loss of the batch, a scalar that gradients flow through."""

    def metric(self, output: Any, batch: Any) -> Tensor:
        """Return one score per sample, (samples,); the metric is their mean over the whole data set."""


@dataclass(frozen=True)
class ClassificationTask:
    """Cross entropy, and top-1 accuracy as a fraction in [0, 1].

    A batch is (inputs, labels), or a mapping with the labels under `label_key`. Outputs may be a tensor of logits,
    a mapping with "logits" or any object with `.logits`. Logits are (samples, classes, ...) and labels (samples, ...).

    Attributes:
        label_smoothing: share of the target spread over all classes, in [0, 1).
        label_key: where a mapping keeps its labels; None = "labels" or "label", whichever is there.
        ignore_index: label that counts neither in the loss nor in the accuracy.

    >>> task = ClassificationTask()
    >>> images, labels = torch.zeros(2, 3), torch.tensor([0, 1])
    >>> task.to_inputs((images, labels))[0][0].shape
    torch.Size([2, 3])
    >>> task.metric(torch.tensor([[2.0, 1.0], [2.0, 1.0]]), (images, labels)).tolist()
    [1.0, 0.0]
    """

    label_smoothing: float = 0.0
    label_key: str | None = None
    ignore_index: int = -100
    name: ClassVar[str] = "accuracy"
    higher_is_better: ClassVar[bool] = True

    def to_inputs(self, batch: Any) -> Inputs:
        """Return the batch without its labels."""
        return _without_label(batch, self._key_in(batch))

    def loss(self, output: Any, batch: Any) -> Tensor:
        """Return the mean cross entropy of the batch, in nats."""
        return F.cross_entropy(
            logits_of(output),
            _label(batch, self._key_in(batch)),
            label_smoothing=self.label_smoothing,
            ignore_index=self.ignore_index,
        )

    def metric(self, output: Any, batch: Any) -> Tensor:
        """Return 1 for each label that has the highest logit, else 0."""
        labels = _label(batch, self._key_in(batch))
        right = logits_of(output).argmax(dim=1) == labels
        return right[labels != self.ignore_index].float()

    def _key_in(self, batch: Any) -> str | None:
        return _label_key(batch, self.label_key, ("labels", "label"))


@dataclass(frozen=True)
class RegressionTask:
    """Mean squared error as loss and as metric (lower is better).

    A batch is (inputs, targets), or a mapping with the targets under `target_key`. Targets have the output's shape;
    (samples,) is also taken for (samples, 1).

    Attributes:
        target_key: where a mapping keeps its targets; None = "targets", "target" or "labels", whichever is there.
    """

    target_key: str | None = None
    name: ClassVar[str] = "mse"
    higher_is_better: ClassVar[bool] = False

    def to_inputs(self, batch: Any) -> Inputs:
        """Return the batch without its targets."""
        return _without_label(batch, self._key_in(batch))

    def loss(self, output: Any, batch: Any) -> Tensor:
        """Return the squared error, averaged over the batch."""
        prediction, target = self._pair(output, batch)
        return F.mse_loss(prediction, target)

    def metric(self, output: Any, batch: Any) -> Tensor:
        """Return the mean squared error of each sample."""
        prediction, target = self._pair(output, batch)
        return (prediction - target).square().flatten(start_dim=1).mean(dim=1)

    def _pair(self, output: Any, batch: Any) -> tuple[Tensor, Tensor]:
        prediction, target = logits_of(output), _label(batch, self._key_in(batch))
        if target.shape != prediction.shape and prediction.shape != (*target.shape, 1):
            raise TrainingError(
                f"the model's output is {tuple(prediction.shape)} and the target {tuple(target.shape)}; "
                "make them equal (they would broadcast to a wrong loss)."
            )
        prediction = prediction.unsqueeze(1) if prediction.ndim == 1 else prediction
        return prediction, target.reshape(prediction.shape).to(prediction.dtype)

    def _key_in(self, batch: Any) -> str | None:
        return _label_key(batch, self.target_key, ("targets", "target", "labels"))


@dataclass(frozen=True)
class NextTokenTask:
    """Language modelling: predict each token from those before it. The metric is the loss per token, in nats.

    A batch is a tensor of token ids (samples, length) or a mapping with "input_ids" and, where there is padding,
    "attention_mask" (1 = a real token). Logits are (samples, length, vocabulary).
    """

    name: ClassVar[str] = "nats_per_token"
    higher_is_better: ClassVar[bool] = False

    def to_inputs(self, batch: Any) -> Inputs:
        """Return the tokens, and the rest of a mapping as keywords; "labels" stay out."""
        if isinstance(batch, Mapping):
            return (), {key: value for key, value in batch.items() if key != "labels"}
        return (batch,), {}

    def loss(self, output: Any, batch: Any) -> Tensor:
        """Return the mean cross entropy of the tokens that have one before them."""
        return self.metric(output, batch).mean()

    def metric(self, output: Any, batch: Any) -> Tensor:
        """Return the cross entropy of each such token, (tokens,)."""
        tokens = batch["input_ids"] if isinstance(batch, Mapping) else batch
        losses = F.cross_entropy(logits_of(output)[:, :-1].transpose(1, 2), tokens[:, 1:], reduction="none")
        mask = batch.get("attention_mask") if isinstance(batch, Mapping) else None
        return losses.flatten() if mask is None else losses[mask[:, 1:].bool()]


@dataclass(frozen=True)
class FunctionTask:
    """A task made of functions.

    Attributes:
        inputs: batch → what to call the model with: (args, kwargs), a tuple of positional arguments, a mapping of
            keyword arguments, or anything else as the one positional argument.
        loss: (output, batch) → scalar, the mean over the batch.
        metric: (output, batch) → one score per sample, (samples,).
        name: the metric's name.
        higher_is_better: whether a larger metric is a better model.

    >>> task = FunctionTask(
    ...     inputs=lambda batch: batch["x"],
    ...     loss=lambda output, batch: (output - batch["y"]).abs().mean(),
    ...     metric=lambda output, batch: (output - batch["y"]).abs().flatten(),
    ...     name="absolute error",
    ...     higher_is_better=False,
    ... )
    >>> task.to_inputs({"x": 1, "y": 2})
    ((1,), {})
    """

    inputs: Callable[[Any], Any]
    loss: Callable[[Any, Any], Tensor]
    metric: Callable[[Any, Any], Tensor]
    name: str = "metric"
    higher_is_better: bool = True

    def to_inputs(self, batch: Any) -> Inputs:
        """Return what `inputs` made of the batch, as (args, kwargs)."""
        given = self.inputs(batch)
        if isinstance(given, Mapping):
            return (), dict(given)
        if isinstance(given, tuple):
            if len(given) == 2 and isinstance(given[0], tuple) and isinstance(given[1], dict):
                return given
            return given, {}
        return (given,), {}


def check_task(task: object) -> None:
    """Raise `MethodError` for a class in the place of a task.

    >>> check_task(ClassificationTask)
    Traceback (most recent call last):
    secateur.errors.MethodError: task=<class 'secateur.train.task.ClassificationTask'>: expected a task such as ...
    """
    if isinstance(task, type):
        raise MethodError(f"task={task!r}: expected a task such as ClassificationTask(), and no class.")


def logits_of(output: Any) -> Tensor:
    """Return the logits in a model's output: the tensor itself, its "logits" or its `.logits`.

    Raises:
        TrainingError: the output is none of these.
    """
    found = output
    if isinstance(output, Mapping):
        found = output.get("logits")
    elif not isinstance(output, Tensor):
        found = getattr(output, "logits", None)
    if not isinstance(found, Tensor):
        raise TrainingError(
            f"this task needs logits; the model returned {type(output).__name__} without them. "
            "Use FunctionTask(inputs=..., loss=..., metric=...) to say where they are."
        )
    return found.float() if found.dtype in (torch.bfloat16, torch.float16) else found


def _label_key(batch: Any, asked: str | None, usual: tuple[str, ...]) -> str | None:
    if not isinstance(batch, Mapping):
        return None
    names = (asked,) if asked is not None else usual
    return next((name for name in names if name in batch), None)


def _without_label(batch: Any, key: str | None) -> Inputs:
    if isinstance(batch, Mapping):
        rest = {name: value for name, value in batch.items() if name != key}
        return (tuple(rest.values()), {}) if len(rest) == 1 else ((), rest)
    if isinstance(batch, (tuple, list)):
        return (tuple(batch[:-1]) if len(batch) > 1 else tuple(batch)), {}
    return (batch,), {}


def _label(batch: Any, key: str | None) -> Tensor:
    if isinstance(batch, Mapping) and key is not None:
        found = batch[key]
    elif isinstance(batch, (tuple, list)) and len(batch) > 1:
        found = batch[-1]
    else:
        kind = f"a mapping with {sorted(batch)}" if isinstance(batch, Mapping) else type(batch).__name__
        raise TrainingError(
            f"the loss needs labels; the batch is {kind}. Give (inputs, labels), name the key, or use FunctionTask."
        )
    return found if isinstance(found, Tensor) else torch.as_tensor(found)
