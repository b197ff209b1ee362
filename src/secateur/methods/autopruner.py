"""AutoPruner: coding layers learn, while the network is fine-tuned, which channels stay, and their codes become binary.

Source: Luo, Wu, "AutoPruner: An End-to-End Trainable Filter Pruning Method for Efficient Deep Model Inference", Pattern
Recognition 2020, arXiv:1805.08941, and the authors' repository Roll920/AutoPruner.

Claim: choosing filters and fine-tuning the network help each other when they are one training run, and a sigmoid whose
scale grows turns soft gates into a binary code without a threshold.

Equation: v = sigmoid(alpha (A pool(mean over the batch of X) + b)), X' = v X, and L = cross entropy + sum over layers
of lambda (||v||_1 / C - r)^2, with X the activation that the next layer reads, C its channels, r the fraction to keep,
alpha growing, and lambda = 100 |r_b - r| for the fraction r_b of channels whose code was above 1/2 lately.

Cost: training by `recipe`; per gate one pass over an activation for its mean, one for its product with v, and a fully
connected layer of C x (C map) weights, which sees one sample per batch.

Use it when there are labelled data and time to fine-tune, and channels should be chosen by what the network as a whole
makes of them.

Where we differ, and why:

- The budget is met exactly: r follows from it for every group, and when the codes are done, the channels with the
  highest codes stay, as many as the budget leaves. What a code says is then multiplied into the weights that read the
  channel. Where codes are binary and as many as asked for, this is the paper's cut.
- All layers at once by default, as the authors do for MobileNetV2; ``scope="stage"`` and ``scope="layer"`` go through
  the network in parts, as they do for ResNet and VGG, each part with its share of the epochs.
- The gate stands where the next layer reads, behind activation and pooling; a group that several layers read has one
  code, made where it is read first. A depthwise convolution is gated where its result is read, not before it too.
- alpha grows with every step (theirs for VGG and ResNet: every 100 steps), in the first epoch only if the data have a
  length. It is lifted for a layer whose code is too empty (they: 95 % pruned, then 90 %, ...), or not binary enough at
  the end of an epoch, and every `adapt_steps` steps of the last one.
- The mean goes over the batches of all processes, so that they and one process alone come to the same codes.
- Coding layers are trained by an SGD of their own at the learning rate of the step, whatever trains the network.
- Inputs of linear layers are pooled over all positions, such as tokens.
- Channels that more than columns of trained weights read stay whole, and so do those read by a module that does more
  with its input than multiply it by its weight, such as ``nn.MultiheadAttention``.
"""

from __future__ import annotations

import functools
import itertools
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import MethodError
from ..graph.groups import ChannelGraph
from ..graph.products import products, readers
from ..graph.walk import parameters_of
from ..plan import Plan
from ..train.attachment import Moment
from ..train.batches import batches_in, device_of
from ..train.points import averaged_over_processes
from ..train.schedules import Recipe
from ._attached import Attached, train_and_decide
from ._channel_sides import Sides
from ._coding import Code, CodingLayer, Gates, Reader, code_loss, readers_of
from ._filter_masks import maskable
from ._history import Standing
from ._problem import Decision, Problem
from ._scores import Allocation, counts_for, eligible, plan_from_counts
from ._settings import check_settings
from ._taking_part import check_same_settings, own_state, settings_of, tell_left_whole
from ._training import HeldAtZero

log = logging.getLogger(__name__)
NAME = "autopruner"
SCOPES = ("net", "stage", "layer")
PAPER = Recipe(
    epochs=30,
    lr=0.01,
    batch_size=256,
    source="the authors' repository Roll920/AutoPruner: MobileNetV2, 5 epochs at 0.01 with codes and 150 without; the "
    "length is ours",
)


@dataclass(frozen=True)
class AutoPruner:
    """Learn a binary code for the channels of every layer while the network trains.

    Attributes:
        scope: "net" codes all layers at once, "stage" those of maps of one size after another, "layer" one by one.
        alpha_start: scale of the sigmoid at the beginning, > 0; the authors have 0.1 for MobileNetV2 and VGG, 1 for
            ResNet.
        alpha_end: scale at the end, >= `alpha_start`; the authors have 100, and 2 for VGG.
        lift: what alpha is lifted by where a code is not as it should be, >= 0; the authors have 1, and 0.1 for VGG.
        penalty: lambda at the beginning, >= 0.
        adapt: strength of lambda's adaptation, >= 0; 0 keeps it as it is, as the authors do for MobileNetV2.
        adapt_steps: steps over which codes are counted before lambda is adapted, >= 1.
        pool: largest map, along each axis, that coding layers see, >= 1; None = half of it, as in the paper, whose
            coding layers grow large on large maps.
        spread: coding layers start with this times He's deviation, > 0.
        momentum: of the coding layers' optimizer, in [0, 1).
        weight_decay: of the coding layers' optimizer, >= 0.
        search: fraction of the epochs in which codes are learned, in (0, 1]; the others fine-tune.
        allocation: "uniform" (the paper), "sensitivity", {module path: relative fraction} or, in scope "net" only,
            "global", by the codes of all layers.
        residual: "skip" (the paper), "projection" or "prune": what happens to residual streams.
        recipe: how to train, where we do.

    Raises:
        MethodError: a setting makes no sense.
    """

    scope: str = "net"
    alpha_start: float = 0.1
    alpha_end: float = 100.0
    lift: float = 1.0
    penalty: float = 10.0
    adapt: float = 100.0
    adapt_steps: int = 20
    pool: int | None = None
    spread: float = 10.0
    momentum: float = 0.9
    weight_decay: float = 5e-4
    search: float = 0.5
    allocation: Allocation = "uniform"
    residual: str = "skip"
    recipe: Recipe = PAPER

    def __post_init__(self) -> None:
        is_by_codes = isinstance(self.allocation, str) and self.allocation == "global"
        ranges = {
            "scope": (self.scope in SCOPES, f"one of {', '.join(SCOPES)}"),
            "alpha_start": (0 < self.alpha_start < math.inf, "a number > 0"),
            "alpha_end": (self.alpha_start <= self.alpha_end < math.inf, "a number >= alpha_start"),
            "lift": (0 <= self.lift < math.inf, "a number >= 0"),
            "penalty": (0 <= self.penalty < math.inf, "a number >= 0"),
            "adapt": (0 <= self.adapt < math.inf, "a number >= 0"),
            "adapt_steps": (isinstance(self.adapt_steps, int) and self.adapt_steps >= 1, "a whole number >= 1"),
            "pool": (self.pool is None or self.pool >= 1, "None or a whole number >= 1"),
            "spread": (0 < self.spread < math.inf, "a number > 0"),
            "momentum": (0 <= self.momentum < 1, "a number in [0, 1)"),
            "weight_decay": (0 <= self.weight_decay < math.inf, "a number >= 0"),
            "search": (0 < self.search <= 1, "a fraction of the epochs in (0, 1]"),
            "allocation": (self.scope == "net" or not is_by_codes, "a count per layer, or scope='net'"),
        }
        check_settings(self, ranges)

    def attach(self, problem: Problem) -> Attached:
        """Return what gates the channels of `problem.model` while it trains, through hooks until `finish`.

        Raises:
            BudgetError: the budget is not reachable.
            MethodError: nothing can be gated, or weights are not finite real numbers.
            NothingToPrune: no group is free to go.
        """
        return _Coding(self, problem)

    def decide(self, problem: Problem) -> Decision:
        """Train a copy with coding layers; scores are what these gave before the sigmoid, on average at the end.

        Raises:
            BudgetError: the budget is not reachable.
            MethodError: no data, no task, nothing that can be gated, or training that fails.
            NothingToPrune: no group is free to go.
        """
        return train_and_decide(NAME, self, problem)


class _Coding(Attached):
    """Coding layers at work; the same on all processes, since means and gradients go over all of them."""

    def __init__(self, method: AutoPruner, problem: Problem) -> None:
        super().__init__(problem)
        self._method = method
        names = eligible(problem, method.residual)
        problem.check_weights(names)
        sides = maskable(problem, names, NAME)
        reading = self._gateable(list(sides))
        first = "uniform" if method.allocation == "global" else method.allocation
        self._counts = counts_for(problem, list(reading), first)
        coded = [name for name in reading if self._is_coded(name)]
        self._readers = {reader.path: reader for name in coded for reader in reading[name]}
        self._codes = {name: self._code(name, reading[name][0], sides[name]) for name in coded}
        self._parts = _parts(problem.graph, coded, method.scope)  # the first is being coded
        self._ends: list[int] = []  # how many epochs are over when each part is done; empty = not known yet
        self._began = 0  # epoch at which the first part began
        self._alpha = method.alpha_start
        self._step_count, self._epoch_step, self._epoch_length = 0, 0, _length(problem.data)
        self._scores: dict[str, Tensor] = {}
        self._gone: dict[str, list[int]] = {}
        self._hold: HeldAtZero | None = None
        self._optimizer = self._make_optimizer()
        self._gates = Gates(self.model, list(self._readers.values()), self._gate)

    @property
    def _active(self) -> list[Code]:
        return [self._codes[name] for name in self._parts[0]] if self._parts else []

    def extra_loss(self, moment: Moment) -> Tensor | None:
        """Return the sum of lambda (||v||_1 / C - r)^2 over the codes of this pass."""
        parts = [c.penalty * code_loss(c.value, c.keep) for c in self._active if c.value is not None]
        return functools.reduce(torch.add, parts) if parts else None

    def after_backward(self, moment: Moment) -> None:
        """Average the coding layers' gradients over the processes."""
        readers_ = (place.tensor for code in self._codes.values() for place in code.sides.readers)
        self.check_optimizer(NAME, moment, readers_)
        own = [p for code in self._active for p in (code.layer.weight, code.layer.bias) if p.grad is not None]
        for parameter, gradient in zip(own, averaged_over_processes([_gradient(p) for p in own]), strict=True):
            parameter.grad = gradient

    def after_step(self, moment: Moment) -> None:
        """Train the coding layers, count their codes, and raise alpha; hold what has gone at zero."""
        if self._parts:
            self._begin(moment)
            for group in self._optimizer.param_groups:
                group["lr"] = moment.lr
            self._optimizer.step()
            self._optimizer.zero_grad()
            for code in self._active:
                code.count_()
            self._epoch_step += 1
            if (self._step_count + 1) % self._method.adapt_steps == 0:
                self._adapt(moment)
            self._raise_alpha(moment)
        self._step_count += 1
        self._hold_()

    def after_epoch(self, moment: Moment) -> None:
        """Lift alpha where codes are not binary; end the part whose epochs are over."""
        if not self._parts:
            return
        self._begin(moment)
        self._epoch_length, self._epoch_step = self._epoch_step or self._epoch_length, 0
        if moment.epoch + 1 >= self._ends[0]:
            self._close()
            self._began = moment.epoch + 1
            self._alpha = self._method.alpha_start
            self._hold_()
            return
        for code in self._active:
            code.lift += 0.0 if code.is_binary(0.2) else self._method.lift
        self._raise_alpha(moment, ended=1)

    def standing(self) -> Standing:
        """Return what coding layers gave lately; out is what went with the parts that are done."""
        scores = {n: self._scores[n] if n in self._scores else self._means(n)[2].double().cpu() for n in self._codes}
        kept = {name: self._counts[name] for name in scores}
        if self._method.allocation == "global" and self._codes:
            kept = counts_for(self.problem, list(scores), "global", scores)
        return Standing(scores, kept, {name: len(self._gone.get(name, ())) for name in scores})

    def finish(self) -> Decision:
        """Return the plan of all codes; takes the coding layers off the model.

        Raises:
            MethodError: the model has not been trained for a single step.
        """
        if self._codes and self._step_count == 0:
            raise MethodError(f"{NAME} has seen no step: train the model with what attach() returned, then ask.")
        if self._parts:
            log.warning(
                "%s: training ended after %d steps, while codes of %d layers were being learned or not yet: train for "
                "more epochs, or lower search=%g",
                *(NAME, self._step_count, sum(map(len, self._parts)), self._method.search),
            )
        while self._parts:
            self._close()
        self._hold_()
        self._gates.remove()
        return Decision(Plan.from_removed(self._gone, self.problem.graph.widths), scores=dict(self._scores))

    def state_dict(self) -> dict[str, Any]:
        """Return the coding layers, how far they are, and what has gone."""
        return {
            "method": NAME,
            "settings": settings_of(self._method),
            "codes": {name: code.state() for name, code in self._codes.items()},
            "optimizer": self._optimizer.state_dict(),
            "parts": [list(part) for part in self._parts],
            "ends": list(self._ends),
            "began": self._began,
            "alpha": self._alpha,
            "step_count": self._step_count,
            "epoch": (self._epoch_step, self._epoch_length),
            "scores": dict(self._scores),
            "gone": {name: list(gone) for name, gone in self._gone.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what `state_dict` returned.

        Raises:
            MethodError: it is the state of another method, or of this one on another model.
        """
        own = own_state(state, NAME)
        check_same_settings(NAME, own["settings"], settings_of(self._method))
        if own["codes"].keys() != self._codes.keys():
            raise MethodError(
                f"{NAME} was given codes of {list(own['codes'])[:4]} to go on from, and codes "
                f"{list(self._codes)[:4]}: resume with the model and settings that were saved."
            )
        self._to(device_of(self.model))
        for name, code in self._codes.items():
            code.load(own["codes"][name])
        self._optimizer.load_state_dict(own["optimizer"])
        self._parts, self._ends = [list(part) for part in own["parts"]], list(own["ends"])
        self._began, self._alpha = own["began"], own["alpha"]
        self._step_count, (self._epoch_step, self._epoch_length) = own["step_count"], own["epoch"]
        self._scores, self._gone = dict(own["scores"]), {name: list(gone) for name, gone in own["gone"].items()}
        self._hold = None

    def _gateable(self, names: list[str]) -> dict[str, list[Reader]]:
        """Return the groups that hooks on modules can gate, with their readers."""
        found, why = readers_of(self.problem.graph, names)
        instead = "masks weights, e.g. method='global_dynamic'"
        tell_left_whole(NAME, "gate", why, is_all=not found, instead=instead)
        return found

    def _is_coded(self, name: str) -> bool:
        """Whether a group may lose channels."""
        is_open = self._method.allocation == "global" and self.problem.budget.remove > 0
        return is_open or self._counts[name] < self.problem.graph.groups[name].width

    def _code(self, name: str, reader: Reader, sides: Sides) -> Code:
        weight = parameters_of(self.model, shared=True)[sides.readers[0].tensor]
        dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
        number = list(self.problem.graph.groups).index(name)
        method, width = self._method, self.problem.graph.groups[name].width
        seed = int(np.random.SeedSequence((self.problem.seed, number)).generate_state(1)[0])
        layer = CodingLayer(reader, name, pool=method.pool, spread=method.spread, seed=seed, dtype=dtype)
        return Code(layer, sides, self._counts[name] / width, method.penalty)

    def _make_optimizer(self) -> torch.optim.Optimizer:
        layers = [code.layer for code in self._codes.values()]
        parameters = [each for layer in layers for each in (layer.weight, layer.bias)] or [torch.zeros(())]
        return torch.optim.SGD(
            parameters, lr=0.0, momentum=self._method.momentum, weight_decay=self._method.weight_decay
        )

    def _to(self, device: torch.device) -> None:
        """Bring the coding layers and their momentum to a device."""
        for code in self._codes.values():
            for parameter in (code.layer.weight, code.layer.bias):
                parameter.data = parameter.data.to(device)
                held = self._optimizer.state.get(parameter, {})
                held.update({key: t.to(device) for key, t in held.items() if isinstance(t, Tensor)})

    def _begin(self, moment: Moment) -> None:
        """Deal the epochs of the search out to the parts, once it is known how many there are."""
        if self._ends:
            return
        self._began = moment.epoch
        stop = max(self._began + 1, math.ceil(self._method.search * moment.epoch_count - 1e-9))
        count = min(len(self._parts), stop - self._began)
        if count < len(self._parts):
            log.info("%s: %d parts of the network share %d epochs", NAME, len(self._parts), stop - self._began)
        edges = [round(k * len(self._parts) / count) for k in range(count + 1)]
        self._parts = [[n for part in self._parts[a:b] for n in part] for a, b in itertools.pairwise(edges)]
        self._ends = [self._began + round((k + 1) * (stop - self._began) / count) for k in range(count)]

    def _adapt(self, moment: Moment) -> None:
        is_last = moment.epoch + 1 >= self._ends[0]
        for code in self._active:
            code.adapt_(self._method.adapt, self._method.lift)
            code.lift += self._method.lift if is_last and not code.is_binary(0.1) else 0.0

    def _raise_alpha(self, moment: Moment, ended: int = 0) -> None:
        within = min(1.0, self._epoch_step / self._epoch_length) if self._epoch_length and not ended else 0.0
        progress = (moment.epoch + ended - self._began + within) / (self._ends[0] - self._began)
        self._alpha = self._method.alpha_start + (self._method.alpha_end - self._method.alpha_start) * progress

    def _gate(self, reader: Reader, activation: Tensor) -> Tensor | None:
        """Return what each channel that a module reads is multiplied by; None if nothing is gated there."""
        own = [name for name in reader.places if name in (self._parts[0] if self._parts else ())]
        if not own:
            return None
        coded = [self._codes[name] for name in own if self._codes[name].layer.reader is reader]
        if self.model.training and coded:
            if coded[0].layer.bias.device != activation.device:
                self._to(activation.device)
            mean = reader.mean(activation)
            for code in coded:
                code.see(mean, self._alpha)
        factors = torch.ones(reader.width, dtype=self._codes[own[0]].layer.bias.dtype, device=activation.device)
        for name in own:
            places = reader.places[name].to(activation.device)
            value = self._codes[name].value if self.model.training else self._binary(self._codes[name])
            if value is not None:
                spread = value.to(factors).repeat_interleave(places.shape[1])
                factors = factors.index_copy(0, places.flatten(), spread)
        return factors

    @staticmethod
    def _binary(code: Code) -> Tensor | None:
        found = code.lately()
        return None if found is None else (found[0] > 0.5).to(found)

    def _close(self) -> None:
        """End the first part: what stays is chosen by its codes, which are multiplied into the weights that read."""
        problem, names = self.problem, self._parts.pop(0)
        self._ends = self._ends[1:]
        found = {name: self._means(name) for name in names}
        scores = {name: own[2].double().cpu() for name, own in found.items()}
        allocation = self._method.allocation
        counts = counts_for(problem, names, allocation, scores) if allocation == "global" else self._counts
        plan = plan_from_counts(problem, {name: counts[name] for name in names}, scores)
        parameters = parameters_of(self.model, shared=True)
        for name, own in found.items():
            self._gone[name] = list(plan.removed(name))
            code = own[1].clone()
            code[self._gone[name]] = 0.0
            self._report(name, int((own[0] > 0.5).sum()))
            with torch.no_grad():
                for place in self._codes[name].sides.readers:
                    weight = parameters[place.tensor]
                    rows = place.read(weight)
                    place.write_(weight, rows * code.to(weight).unsqueeze(1))
        self._scores.update(scores)
        self._hold = None

    def _means(self, name: str) -> Tensor:
        """Return what `Code.lately` says of a group; a code that was never made is on."""
        found = self._codes[name].lately()
        return torch.ones(4, self.problem.graph.groups[name].width) if found is None else found

    def _report(self, name: str, on: int) -> None:
        width, gone = self.problem.graph.groups[name].width, len(self._gone[name])
        log.info("%s: %s: the code kept %d of %d channels, the budget keeps %d", NAME, name, on, width, width - gone)
        if not self._codes[name].is_binary(0.1):
            log.warning(
                "%s: the code of %s is not binary: train longer, or raise alpha_end=%g",
                *(NAME, name, self._method.alpha_end),
            )

    def _hold_(self) -> None:
        if self._hold is None:
            plan = Plan.from_removed(self._gone, self.problem.graph.widths)
            self._hold = HeldAtZero(self.model, self.problem.graph, plan)
        self._hold.apply_()


def _gradient(parameter: Tensor) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad


def _length(data: Any) -> int:
    """Return how many batches of the data one process sees; 0 = unknown."""
    distributed = torch.distributed
    several = distributed.is_available() and distributed.is_initialized()
    return (batches_in(data) or 0) // (distributed.get_world_size() if several else 1)


def _parts(graph: ChannelGraph, names: Sequence[str], scope: str) -> list[list[str]]:
    """Split groups into those that are coded at the same time, in the order of the forward pass."""
    if scope == "net":
        return [list(names)] if names else []
    if scope == "layer":
        return [[name] for name in names]
    known = products(graph)

    def size(name: str) -> tuple[int, ...]:
        last = readers(graph, graph.groups[name], known)[-1]
        shape: tuple[int, ...] = last.op.out.shape
        return shape[2:] if last.is_convolution else ()

    return [list(own) for _, own in itertools.groupby(names, size)]
