"""MixMatch: train a pruned network on with few labels and many images that have none.

Source: Berthelot, Carlini, Goodfellow, Papernot, Oliver, Raffel, "MixMatch: A Holistic Approach to Semi-Supervised
Learning", NeurIPS 2019, arXiv:1905.02249. Figures and constants as in the authors' published code.

A step guesses labels for the unlabelled images (mean softmax over K augmentations, sharpened), mixes labelled and
unlabelled images and labels with each other (MixUp), and trains on cross entropy for the first and squared distance of
probabilities for the others, whose weight rises from 0.

Where we differ, and why:

- It starts from the pruned network's weights, which is what recovery means, so the recipe's rate should be low (SGD at
  0.01 or Adam at 2e-4) where the authors start at 0.002 from nothing.
- With a `teacher`, the network that was cut, its softmax takes the place of the guess and nothing is sharpened. That is
  the stronger way where there is such a network, and the plain baseline to hold the guess against.
- All images of a step go through the network at once. The authors interleave several smaller batches, each of the same
  mixture, so that each has the same statistics; at once they share one set. Running statistics follow the mixture in
  both cases, and guessing leaves them alone in both.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import MethodError, TrainingError
from ..train.attachment import Attachment, Moment
from ..train.batches import device_of, same_modes_after, to_device
from ..train.checkpoint import digest_of
from ..train.loop import TrainResult, fit
from ..train.schedules import Recipe
from ..train.task import ClassificationTask, Inputs, logits_of

Augment = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class MixMatch:
    """The method's numbers, with the authors' values.

    Attributes:
        guesses: K, augmentations of an unlabelled image whose softmaxes are averaged.
        temperature: T, sharpens the guess; 1 leaves it.
        alpha: of the Beta distribution that mixing shares are drawn from; 0 = nothing is mixed.
        unlabelled_weight: of the unlabelled loss once it has risen: 75 for CIFAR-10, 150 for CIFAR-100, 250 for SVHN.
        ramp_steps: over which that weight rises.
        decay: of the average of weights over steps that the result is made of; 0 = the last weights themselves.

    Raises:
        MethodError: a number makes no sense.
    """

    guesses: int = 2
    temperature: float = 0.5
    alpha: float = 0.75
    unlabelled_weight: float = 75.0
    ramp_steps: int = 16_384
    decay: float = 0.999

    def __post_init__(self) -> None:
        limits = {
            "guesses": isinstance(self.guesses, int) and self.guesses >= 1,
            "temperature": 0 < self.temperature < float("inf"),
            "alpha": 0 <= self.alpha < float("inf"),
            "unlabelled_weight": 0 <= self.unlabelled_weight < float("inf"),
            "ramp_steps": isinstance(self.ramp_steps, int) and self.ramp_steps >= 0,
            "decay": 0 <= self.decay < 1,
        }
        for name, is_valid in limits.items():
            if not is_valid:
                raise MethodError(f"{name}={getattr(self, name)!r} makes no sense; see secateur.recovery.mixmatch.")


def mixmatch(
    model: nn.Module,
    labelled: Iterable[Any],
    unlabelled: Iterable[Any],
    recipe: Recipe,
    *,
    settings: MixMatch | None = None,
    augment: Augment | None = None,
    teacher: nn.Module | None = None,
    checkpoint_dir: str | Path | None = None,
    progress: bool | None = None,
) -> tuple[nn.Module, TrainResult]:
    """Return a copy of the model that was trained on with few labels, and what the run did.

    An epoch is one pass over the unlabelled images; the labelled ones start anew as often as it takes.

    Args:
        model: a classifier, usually cut; nothing of it changes.
        labelled: batches (images, labels), augmented once by whoever makes them.
        unlabelled: batches of images, alone or first in a tuple; not augmented.
        recipe: how to train.
        settings: the method's numbers.
        augment: (B, ...) images -> as many, drawn anew at each call from torch's global random numbers; None = shift by
            up to an eighth of the height, nothing else, since mirroring changes what a digit means.
        teacher: guesses in place of the model, unsharpened; the network that the model was cut from.
        checkpoint_dir: where to keep checkpoints.
        progress: as in `secateur.train.fit`.

    Raises:
        MethodError: a batch has no labels where it needs them.
        TrainingError: as in `secateur.train.fit`.
    """
    chosen = settings if settings is not None else MixMatch()
    tuned = copy.deepcopy(model)
    mixed = MixedBatches(tuned, labelled, unlabelled, chosen, augment or shifted, teacher)
    state = _Progress(chosen)
    result = fit(
        tuned,
        mixed,
        _MixedTask(state),
        recipe,
        attachments=[state],
        checkpoint_dir=checkpoint_dir,
        run_id="" if checkpoint_dir is None else f"mixmatch from weights {digest_of(model)}",
        progress=progress,
    )
    state.put_average_(tuned)
    return tuned, result


class MixedBatches:
    """Makes each step's batch: guessed, sharpened, shuffled and mixed; re-iterable, one pass over the unlabelled.

    A batch is {"inputs": ((1 + K) * B, ...), "targets": ((1 + K) * B, classes), "labelled": how many come first}.
    """

    def __init__(
        self,
        model: nn.Module,
        labelled: Iterable[Any],
        unlabelled: Iterable[Any],
        settings: MixMatch,
        augment: Augment,
        teacher: nn.Module | None = None,
    ) -> None:
        self.model, self.settings, self.augment = model, settings, augment
        self.labelled, self.unlabelled = labelled, unlabelled
        self.teacher = None if teacher is None else copy.deepcopy(teacher).eval()

    def __iter__(self) -> Iterator[dict[str, Any]]:
        known = _again_and_again(self.labelled)
        for batch in self.unlabelled:
            images = batch[0] if isinstance(batch, tuple | list) else batch
            yield self._mixed(next(known), images)

    def _mixed(self, known: Any, images: Tensor) -> dict[str, Any]:
        device = device_of(self.model)
        if not isinstance(known, tuple | list) or len(known) < 2:
            raise MethodError("labelled= has to give batches of (images, labels).")
        own, labels = to_device((known[0], known[1]), device)
        views = [self.augment(to_device(images, device)) for _ in range(self.settings.guesses)]
        guess = self._guess(views)
        targets = F.one_hot(labels.long(), guess.shape[1]).to(guess.dtype)
        inputs, wanted = torch.cat([own, *views]), torch.cat([targets, *[guess] * len(views)])
        order = torch.randperm(len(inputs)).to(device)
        share = mixing_share(self.settings.alpha)
        return {
            "inputs": share * inputs + (1 - share) * inputs[order],
            "targets": share * wanted + (1 - share) * wanted[order],
            "labelled": len(own),
        }

    def _guess(self, views: list[Tensor]) -> Tensor:
        source = self.model if self.teacher is None else self.teacher.to(device_of(self.model))
        with torch.no_grad(), same_modes_after(source), _frozen_statistics(source):
            mean = torch.stack([logits_of(source(view)).softmax(1) for view in views]).mean(0)
        return mean if self.teacher is not None else sharpened(mean, self.settings.temperature)


def sharpened(probabilities: Tensor, temperature: float) -> Tensor:
    """Return p^(1/T) scaled so that each row sums to 1; (samples, classes).

    Source: Berthelot et al. 2019, section 3.2.

    >>> [round(p, 4) for p in sharpened(torch.tensor([[0.2, 0.8]]), 0.5)[0].tolist()]
    [0.0588, 0.9412]
    """
    powers = probabilities ** (1 / temperature)
    return powers / powers.sum(1, keepdim=True)


def mixing_share(alpha: float) -> float:
    """Draw MixUp's share of the first of two, at least one half, from torch's global random numbers; 1 if alpha is 0.

    Source: Berthelot et al. 2019, section 3.3: max(l, 1 - l) with l ~ Beta(alpha, alpha).
    """
    if alpha == 0:
        return 1.0
    drawn = float(torch.distributions.Beta(alpha, alpha).sample())
    return max(drawn, 1 - drawn)


def shifted(images: Tensor) -> Tensor:
    """Shift each image by up to an eighth of its height, the border repeated; from torch's global random numbers."""
    if images.dim() != 4:
        return images
    pad = max(images.shape[-2] // 8, 1)
    height, width = images.shape[-2:]
    windows = F.pad(images, (pad,) * 4, mode="replicate").unfold(2, height, 1).unfold(3, width, 1)
    top, left = torch.randint(0, 2 * pad + 1, (2, len(images))).to(images.device)
    return windows[torch.arange(len(images), device=images.device), :, top, left]


class _Progress(Attachment):
    """Counts steps for the ramp and averages the weights; part of a run's checkpoints."""

    def __init__(self, settings: MixMatch) -> None:
        self.settings, self.step = settings, 0
        self.average: dict[str, Tensor] = {}

    @property
    def weight(self) -> float:
        """Of the unlabelled loss at this step."""
        ramp = self.settings.ramp_steps
        return self.settings.unlabelled_weight * (min(self.step / ramp, 1.0) if ramp else 1.0)

    def after_step(self, moment: Moment) -> None:
        self.step += 1
        if not self.settings.decay:
            return
        now = {n: p.detach() for n, p in moment.model.named_parameters()}
        if not self.average:
            self.average = {n: p.clone() for n, p in now.items()}
        torch._foreach_lerp_(list(self.average.values()), list(now.values()), 1 - self.settings.decay)

    def put_average_(self, model: nn.Module) -> None:
        """Set the model's parameters to the average, in place; running statistics are those of training."""
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name in self.average:
                    parameter.copy_(self.average[name])

    def state_dict(self) -> dict[str, Any]:
        return {"step": self.step, "average": dict(self.average)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.step, self.average = int(state["step"]), dict(state["average"])


class _MixedTask:
    """Cross entropy with soft labels on the labelled part, squared distance of probabilities on the others."""

    name, higher_is_better = "accuracy", True

    def __init__(self, progress: _Progress) -> None:
        self._progress, self._plain = progress, ClassificationTask()

    def to_inputs(self, batch: Any) -> Inputs:
        return ((batch["inputs"],), {}) if isinstance(batch, Mapping) else self._plain.to_inputs(batch)

    def loss(self, output: Any, batch: Any) -> Tensor:
        logits, count, targets = logits_of(output), batch["labelled"], batch["targets"]
        known = F.cross_entropy(logits[:count], targets[:count])
        guessed = (logits[count:].softmax(1) - targets[count:]).square().mean()
        total: Tensor = known + self._progress.weight * guessed
        return total

    def metric(self, output: Any, batch: Any) -> Tensor:
        return self._plain.metric(output, batch)


def _again_and_again(loader: Iterable[Any]) -> Iterator[Any]:
    while True:
        count = 0
        for batch in loader:
            count += 1
            yield batch
        if not count:
            raise TrainingError("labelled= gave no batch: it must start anew each time it is iterated.")


@contextmanager
def _frozen_statistics(model: nn.Module) -> Iterator[None]:
    """Leave running statistics alone, while batches are normalised by their own."""
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training]
    tracked = [(norm, norm.track_running_stats) for norm in norms]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm, before in tracked:
            norm.track_running_stats = before
