"""Discrimination-aware channel pruning: channels stay that both rebuild the next layer and tell the classes apart.

Source: Zhuang, Tan, Zhuang, Liu, Guo, Wu, Huang, Zhu, "Discrimination-aware Channel Pruning for Deep Neural Networks",
NeurIPS 2018, arXiv:1810.11809.

Claim: reconstruction alone keeps channels that help no class; with classifiers on intermediate layers, channels are
chosen by what they do for discrimination as well, and less accuracy is lost.

Equation: L(W) = L_M + lambda L_S, with L_M = 1 / (2 Q) ||O_base - O(W)||^2 over the Q outputs of the layers that read
the channels, and L_S the cross entropy of a classifier theta * AvgPool(ReLU(BN(O^p))) at the end of stage p (the
network's own loss in the last stage). From W = 0 on, the channel j with the largest ||dL / dW_j|| joins the selected
set, gets its former weights back, and W is trained on the selected channels, until kappa channels are selected.

Cost: for each of P + 1 stages `stage_epochs` of training with two steps per batch; for each group of channels kappa /
`channels_per_step` rounds of 1 + `selection_epochs` passes over the data, each two forward passes up to the consumer
and one forward and backward pass. Memory: the outputs of one group's consumers for one batch.

Use it when the task is classification, labelled data are at hand and time is not short: it is among the slowest
methods, and its first selling point is accuracy before any fine-tuning.

Where we differ, and why:

- The paper selects input channels of one convolution. Channels that several layers read are one group here, and the
  gradient norms of all their consumers are added up.
- The classifiers' weights start at zero in place of random numbers, so that the order of channels has no say. They sit
  on outputs of modules that the forward pass runs once with samples along the first axis; where there are fewer of
  those than asked for, there are fewer stages. Stages without a group to prune are left out.
- Biases and normalisation stay as they are during a selection; the authors' code trains the layer's bias as well.
- Exactly kappa channels of each group stay, with kappa from the budget. With ``stop="adaptive"`` (the paper's
  DCP-Adapt) a group stops earlier, once `patience` steps in a row have each lowered the loss by `tolerance` of its
  first value or less: then the budget is the least that goes. Patience is ours: the loss need not fall at each step.
- ``channels_per_step`` above 1 is ours, to save passes.
- A consumer whose weight is computed from parameters (standardised weights) has no reconstruction error; its gradient
  comes from L_S alone.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import TrainingError
from ..graph.products import products
from ..plan import Plan
from ..surgery.shrink import clone
from ..train.batches import device_of, same_modes_after, to_device
from ..train.randomness import epoch_seed, same_loader_after, same_randomness_after, seed_, seed_loader_
from ..train.task import Inputs
from ._auxiliary import AuxiliaryHead, Socket, evenly, sockets
from ._column_selection import Selection, SubProblem, readings
from ._problem import Decision, Problem
from ._scores import Allocation, counts_for, eligible
from ._settings import check_settings
from ._training import HeldAtZero, blamed, training_data

log = logging.getLogger(__name__)
MILESTONES = (0.4, 0.6)  # the authors' 40 and 60 of 100 epochs


@dataclass(frozen=True)
class Dcp:
    """Select channels greedily by reconstruction error and discrimination, stage by stage.

    Attributes:
        penalty: lambda, weight of the classifier's loss, >= 0; the paper uses 1.
        heads: P, number of intermediate classifiers; the paper uses 3 for ResNet-50 and -56, 2 for VGG and ResNet-18.
        stop: "budget" selects exactly what the budget leaves, "adaptive" may stop earlier.
        tolerance: epsilon, smallest decrease of the loss that counts for "adaptive", as a fraction of the first loss;
            the paper tries 0.1, 0.01 and 0.001.
        patience: steps in a row without such a decrease that end an adaptive selection.
        channels_per_step: channels that join at once; the paper takes 1.
        stage_epochs: passes over the data that train network and classifier before a stage's selections.
        stage_lr: their learning rate, a tenth after 40 % and again after 60 % of them, as in the authors' code.
        selection_epochs: passes over the data after each step of a selection.
        selection_lr: their learning rate; 0 leaves the weights as they were.
        selection_batches: only so many batches for selections (the paper uses 10 000 images of ImageNet); None = all.
        momentum: Nesterov momentum of all three.
        weight_decay: of all three.
        allocation: "uniform", "global" (by each group's shares of the first gradient) or {module path: fraction}.
        residual: "skip" (the paper), "projection" or "prune": what happens to residual streams.

    Raises:
        MethodError: a setting makes no sense.
    """

    penalty: float = 1.0
    heads: int = 3
    stop: str = "budget"
    tolerance: float = 0.01
    patience: int = 2
    channels_per_step: int = 1
    stage_epochs: int = 100
    stage_lr: float = 0.1
    selection_epochs: int = 1
    selection_lr: float = 0.01
    selection_batches: int | None = None
    momentum: float = 0.9
    weight_decay: float = 1e-4
    allocation: Allocation = "uniform"
    residual: str = "skip"

    def __post_init__(self) -> None:
        ranges = {
            "penalty": (0 <= self.penalty < math.inf, "a number >= 0"),
            "heads": (self.heads >= 0, "a whole number >= 0"),
            "stop": (self.stop in ("budget", "adaptive"), "'budget' or 'adaptive'"),
            "tolerance": (0 <= self.tolerance < 1, "a fraction in [0, 1)"),
            "patience": (self.patience >= 1, "a whole number >= 1"),
            "channels_per_step": (self.channels_per_step >= 1, "a whole number >= 1"),
            "stage_epochs": (self.stage_epochs >= 0, "a whole number >= 0"),
            "stage_lr": (0 < self.stage_lr < math.inf, "a number > 0"),
            "selection_epochs": (self.selection_epochs >= 0, "a whole number >= 0"),
            "selection_lr": (0 <= self.selection_lr < math.inf, "a number >= 0"),
            "selection_batches": (
                self.selection_batches is None or self.selection_batches >= 1,
                "None or a whole number >= 1",
            ),
            "momentum": (0 <= self.momentum < 1, "a number in [0, 1)"),
            "weight_decay": (0 <= self.weight_decay < math.inf, "a number >= 0"),
        }
        check_settings(self, ranges)

    def decide(self, problem: Problem) -> Decision:
        """Select stage by stage; the decision holds the trained model at full width.

        The scores: above 1 for selected channels, the higher the earlier they joined; for the others their last
        gradient norm as a fraction of the largest.

        Raises:
            BudgetError: the budget is not reachable.
            MethodError: no data, no task, no classification, a group that no layer reads, or weights or activations
                are not finite real numbers.
            NothingToPrune: no group is free to go.
        """
        names = eligible(problem, self.residual)
        problem.check_weights(names)
        data, _ = training_data(problem, "dcp")
        device = device_of(problem.model)
        with same_randomness_after(device), same_loader_after(data), blamed("dcp", problem):
            run = _Run(self, problem, names)
            kept = counts_for(problem, names, self.allocation, run.shares() if self.allocation == "global" else None)
            return run.decision(kept)


@dataclass(frozen=True)
class _Stage:
    names: list[str]
    socket: Socket | None  # None = the last stage, which has the network's own loss


class _Run:
    """The stages of one decision, on one working copy."""

    def __init__(self, method: Dcp, problem: Problem, names: Sequence[str]) -> None:
        self.method, self.problem = method, problem
        self.data, self.task = training_data(problem, "dcp")
        self.device = device_of(problem.model)
        self.base, self.model = clone(problem.model).eval(), clone(problem.model)
        self.products = products(problem.graph)
        self.reads = {name: readings(self.model, problem.graph, name, self.products) for name in names}
        self.removed: dict[str, list[int]] = {}
        self.scores: dict[str, Tensor] = {}
        self.epoch_count = 0

    def decision(self, kept: dict[str, int]) -> Decision:
        """Run all stages and return what came of them."""
        stages = self._stages([name for name in kept if self._is_open(name, kept[name])])
        with same_modes_after(self.model):
            for number, stage in enumerate(stages):
                log.info("stage %d of %d: %s", number + 1, len(stages), ", ".join(stage.names))
                self._run(stage, kept)
        plan = Plan.from_removed(self.removed, self.problem.graph.widths)
        return Decision(plan, self.model if stages else None, self.scores)

    def _is_open(self, name: str, kept: int) -> bool:
        """Whether a selection may leave out channels of a group."""
        is_free = self.method.stop == "adaptive" and isinstance(self.method.allocation, str)
        return is_free or kept < self.problem.graph.groups[name].width

    def shares(self) -> dict[str, Tensor]:
        """Return for each group what share of the first gradient each channel has: scores that compare over groups."""
        found = {}
        for name, reads in self.reads.items():
            model = clone(self.problem.model).eval()
            guide = self._guide(model, None, None)
            _, norms = Selection(model, self.base, reads, batches=self._selection_batches, guide=guide).gradient()
            found[name] = norms / norms.sum().clamp(min=1e-300) * len(norms)
        return found

    def _stages(self, names: Sequence[str]) -> list[_Stage]:
        if not names:
            return []
        first = next(iter(self._batches(0)), None)
        if first is None:
            raise TrainingError("data= gave no batch; a generator can be read once only, pass a list or a loader.")
        with same_modes_after(self.model):
            places, self.class_count = sockets(self.model.eval(), self.products, self.task, first[1])
        last = {name: max(read.product.op.index for read in self.reads[name]) for name in names}
        positions = sorted({read.product.op.index for reads in self.reads.values() for read in reads})
        chosen = evenly(places, positions, self.method.heads)
        ends = [*chosen, None]
        stages, since = [], -1
        for socket in ends:
            until = math.inf if socket is None else socket.position
            own = sorted((n for n in names if since < last[n] <= until), key=lambda name: last[name])
            stages += [_Stage(own, socket)] if own else []
            since = int(until) if socket is not None else since
        return stages

    def _run(self, stage: _Stage, kept: dict[str, int]) -> None:
        head = None
        if stage.socket is not None:
            head = stage.socket.head(self.class_count, next(self.model.parameters()))
        self._finetune(stage, head)
        self.model.eval()
        if head is not None:
            head.eval().requires_grad_(False)
        for name in stage.names:
            guide = self._guide(self.model, stage.socket, head)
            selection = Selection(self.model, self.base, self.reads[name], batches=self._selection_batches, guide=guide)
            self._select(name, selection, kept[name])
            self._held().apply_()

    def _select(self, name: str, selection: Selection, wanted: int) -> None:
        """Add channels until enough are selected, or the loss no longer falls."""
        method = self.method
        losses: list[float] = []
        norms = torch.zeros(selection.width, dtype=torch.float64)
        while len(selection.selected) < wanted:
            loss, norms = selection.gradient()
            losses.append(loss)
            if self._is_enough(losses, len(selection.selected)):
                break
            selection.add(selection.best(norms, min(method.channels_per_step, wanted - len(selection.selected))))
            how = SubProblem(method.selection_epochs, method.selection_lr, method.momentum, method.weight_decay)
            selection.train_(how)
        log.info("%s: %d of %d channels selected", name, len(selection.selected), selection.width)
        chosen = selection.selected
        scores = norms / norms.max().clamp(min=1e-300)
        scores[chosen] = 1.0 + torch.arange(len(chosen), 0, -1, dtype=torch.float64)
        self.scores[name] = scores
        self.removed[name] = sorted(set(range(selection.width)) - set(chosen))

    def _is_enough(self, losses: list[float], count: int) -> bool:
        method, limits = self.method, self.problem.limits
        fits = count >= limits.min_keep and count % limits.round_to == 0 and count > 0
        if method.stop == "budget" or not fits or len(losses) <= method.patience:
            return False
        recent = losses[-method.patience - 1 :]
        drops = [abs(before - after) / losses[0] if losses[0] else 0.0 for before, after in pairwise(recent)]
        return all(drop <= method.tolerance for drop in drops)

    def _guide(
        self, model: nn.Module, socket: Socket | None, head: AuxiliaryHead | None
    ) -> Callable[[Inputs, Any], Tensor] | None:
        """Return lambda times the loss of a stage's classifier; None where lambda is 0."""
        if not self.method.penalty:
            return None
        return lambda inputs, batch: self.method.penalty * self._stage_loss(model, socket, head, inputs, batch)

    def _stage_loss(
        self, model: nn.Module, socket: Socket | None, head: AuxiliaryHead | None, inputs: Inputs, batch: Any
    ) -> Tensor:
        args, kwargs = inputs
        if socket is None or head is None:
            return self.task.loss(model(*args, **kwargs), batch)
        with socket.caught(model) as caught:
            model(*args, **kwargs)
        return self.task.loss(head(caught[0]), batch)

    def _finetune(self, stage: _Stage, head: AuxiliaryHead | None) -> None:
        """Train classifier and network, then the network by its own loss, with one step of each per batch."""
        method = self.method
        own = [p for p in self.model.parameters() if p.requires_grad]
        if not own:
            raise TrainingError("no parameter of the model requires gradients, so there is nothing to train.")
        how = SubProblem(method.stage_epochs, method.stage_lr, method.momentum, method.weight_decay)
        steps: list[tuple[Socket | None, AuxiliaryHead | None, torch.optim.Optimizer]] = []
        if head is not None:
            steps.append((stage.socket, head, how.optimizer([*own, *head.parameters()])))
        steps.append((None, None, how.optimizer(own)))
        held = self._held()
        self.model.train()
        for epoch in range(method.stage_epochs):
            lr = method.stage_lr * 0.1 ** sum(epoch >= m * method.stage_epochs for m in MILESTONES)
            for inputs, batch in self._batches(self._next_epoch()):
                for socket, classifier, optimizer in steps:
                    self._step(optimizer, lr, self._stage_loss(self.model, socket, classifier, inputs, batch))
                    held.apply_()
        self.model.zero_grad(set_to_none=True)

    def _step(self, optimizer: torch.optim.Optimizer, lr: float, loss: Tensor) -> None:
        if not bool(loss.isfinite()):
            raise TrainingError(
                f"the loss became {loss.item()} in epoch {self.epoch_count} of the stages, at lr {lr:g}: "
                "lower stage_lr, or look for bad values in the data."
            )
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    def _held(self) -> HeldAtZero:
        plan = Plan.from_removed(self.removed, self.problem.graph.widths)
        return HeldAtZero(self.model, self.problem.graph, plan)

    def _next_epoch(self) -> int:
        self.epoch_count += 1
        return self.epoch_count

    def _batches(self, epoch: int) -> Iterator[tuple[Inputs, Any]]:
        """Give inputs and batch; the order of the data and dropout follow from seed and epoch."""
        seed_(epoch_seed(self.problem.seed, epoch))
        seed_loader_(self.data, self.problem.seed, epoch)
        for batch in self.data:
            moved = to_device(batch, self.device)
            yield self.task.to_inputs(moved), moved

    def _selection_batches(self) -> Iterator[tuple[Inputs, Any]]:
        """Give the same batches in the same order at each call."""
        return islice(self._batches(0), self.method.selection_batches)
