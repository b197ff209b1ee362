"""SSS: a factor on every structure is trained with an accelerated proximal step, and structures at zero go.

Source: Huang, Wang, "Data-Driven Sparse Structure Selection for Deep Neural Networks", ECCV 2018, arXiv:1707.01213,
and the authors' repository TuSimple/sparse-structure-selection.

Claim: a scaling factor on each channel or residual block, trained together with the weights under an L1 penalty by
accelerated proximal gradient, picks the structures of a smaller network in one training, without fine-tuning.

Equation: min (1/N) sum L(y, C(x, W, lambda)) + R(W) + gamma |lambda|_1, y = shortcut + lambda_i F_i(x) for a block.
With eta the learning rate, mu the momentum and lambda the look-ahead point: z = lambda - eta dL/dlambda;
s = sign(z) max(|z| - eta gamma, 0); v <- s - lambda + mu v; lambda <- s + mu v, and at least 0 if `nonnegative`.

Cost: one training run as long as the recipe; a step takes O(P) time for P weights that hold factors, and a copy of them
(the last normalisations of blocks, or all weights that read channels).

Use it when a residual network may be trained anew and latency counts: whole blocks go, which no choice of widths gives.

Where we differ, and why:

- The budget is met exactly: zeros go first, then the smallest factors; the log says how many of those that go had
  reached zero. The paper removes the zeros and takes the budget that comes out.
- Factors are no modules: the model holds them in its own weights. A block's multiplies the gain and shift of its last
  normalisation, or its last weights; a channel's the columns that read it, which is exact behind any activation. Weight
  decay and momentum act on the weights without factors, as if these were parameters beside them. So the trained model
  has absorbed them already.
- ``structures="auto"`` gives factors to residual branches where the network has some that can go, else to channels, as
  the paper does for ResNet and VGG; ``"both"`` ranks both together. Attention and feed-forward branches of transformers
  are branches like others.
- Whole groups of a grouped convolution, which the paper removes from ResNeXt, are channels of a graph that is traced
  with ``conv_groups="whole"``; ``structures="channels"`` or ``"both"`` then gives them factors. The columns that read a
  group hold its factor, and nothing else does. With ReLU behind the normalisation this is the paper's place in front of
  it, as long as the factor is at least 0.
- ``nonnegative=True`` is the authors' code; the paper does not say it. ``weigh_by_cost=True`` gives every structure a
  penalty in proportion to the MACs that it saves, gamma_i = gamma c_i / mean c; the paper has one gamma.
- A first block of a stage can go too: its projection stays.
- Channels of residual streams have no factors, as in the paper; ``residual="prune"`` gives them one each.

Factors are trained on gradients that are reduced, so all ranks of a distributed run come to the same ones.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from ..errors import MethodError, NothingToPrune
from ..train.attachment import Moment
from ..train.schedules import Recipe
from ._attached import Attached, train_and_decide
from ._channel_sides import Sides
from ._filter_masks import maskable
from ._history import Standing
from ._problem import Decision, Problem
from ._scores import eligible
from ._settings import check_settings
from ._structures import Factors, Structures, is_off, plan_of, removable_branches
from ._taking_part import own_state

log = logging.getLogger(__name__)
NAME = "sparse_structure_selection"
STRUCTURES = ("auto", "branches", "channels", "both")
RECIPE = Recipe(
    epochs=240,
    lr=0.1,
    nesterov=True,
    schedule="step",
    milestones=(0.5, 2 / 3),
    batch_size=64,
    source="Huang, Wang 2018: the authors' configuration for CIFAR, lr 0.1 falling at epochs 120 and 160",
)


def apg_step(
    factors: Tensor,
    gradient: Tensor,
    velocity: Tensor,
    *,
    lr: float,
    momentum: float,
    penalty: Tensor | float,
    nonnegative: bool = False,
) -> tuple[Tensor, Tensor]:
    """Take one accelerated proximal step; return the new look-ahead point and velocity.

    Without a penalty it is the step of SGD with Nesterov momentum.

    Source: Huang, Wang 2018, section 3.2, and core/optimizer.py of the authors.

    Args:
        factors: lambda, the look-ahead point.
        gradient: dL/dlambda there.
        velocity: v.
        lr: eta.
        momentum: mu.
        penalty: gamma, for all or for each.
        nonnegative: end at zero where the result is below.

    >>> point, velocity = torch.tensor([1.0, 0.25]), torch.zeros(2)
    >>> apg_step(point, torch.zeros(2), velocity, lr=0.5, momentum=0.0, penalty=1.0)[0].tolist()
    [0.5, 0.0]
    """
    z = factors - lr * gradient
    s = z.sign() * (z.abs() - lr * penalty).clamp_min(0)
    velocity = (s - factors) + momentum * velocity
    moved = s + momentum * velocity
    return (moved.clamp_min(0) if nonnegative else moved), velocity


@dataclass(frozen=True)
class SparseStructureSelection:
    """Train with a penalised factor on every structure, and remove those with the smallest.

    Attributes:
        penalty: gamma, >= 0; the authors' default.
        structures: what has a factor: "branches" (residual branches), "channels", "both", or "auto" (the paper):
            branches where there are some that can go, else channels.
        momentum: mu of the factors, in [0, 1).
        nonnegative: keep factors at 0 or above, as the authors' code does.
        weigh_by_cost: penalise each structure in proportion to the MACs that it saves. Ours.
        residual: "skip" (the paper), "projection" or "prune": which residual streams have factors on their channels.
        recipe: how to train, where we do.

    Raises:
        MethodError: a number is out of range, or a word is not known.
    """

    penalty: float = 0.01
    structures: str = "auto"
    momentum: float = 0.9
    nonnegative: bool = True
    weigh_by_cost: bool = False
    residual: str = "skip"
    recipe: Recipe = RECIPE

    def __post_init__(self) -> None:
        ranges = {
            "penalty": (0 <= self.penalty < math.inf, "a number >= 0, e.g. 0.01"),
            "structures": (self.structures in STRUCTURES, f"one of {', '.join(STRUCTURES)}"),
            "momentum": (0 <= self.momentum < 1, "a number in [0, 1)"),
        }
        check_settings(self, ranges)

    def attach(self, problem: Problem) -> Attached:
        """Return the factors, all 1, as an attachment.

        Raises:
            BudgetError: the budget is not reachable.
            MethodError: nothing can have a factor, or weights are not finite real numbers.
            NothingToPrune: everything is protected.
        """
        return Selection(self, problem)

    def decide(self, problem: Problem) -> Decision:
        """Train a copy with factors and remove the structures with the smallest; it has absorbed those of the others.

        Raises:
            BudgetError: the budget is not reachable; told before training.
            MethodError: no data, no task, nothing that can have a factor, or training that fails.
            NothingToPrune: everything is protected.
        """
        return train_and_decide(NAME, self, problem)


class Selection(Attached):
    """One run.

    Attributes:
        structures: what has a factor.
        factors: (structures,) lambda; the model's weights hold them between steps.
        velocity: (structures,) v.
    """

    def __init__(self, method: SparseStructureSelection, problem: Problem) -> None:
        super().__init__(problem)
        self.method = method
        self.structures = structures_of(problem, method.structures, method.residual)
        self._gates = Factors(problem.model, self.structures)
        first = next(iter(self._gates.parameters.values()))
        dtype = torch.float64 if first.dtype == torch.float64 else torch.float32
        self.factors = torch.ones(self.structures.count, dtype=dtype)
        self.velocity = torch.zeros_like(self.factors)
        weights = torch.ones(self.structures.count, dtype=torch.float64)
        if method.weigh_by_cost:
            saved = self.structures.saved(problem, "macs")
            weights = saved / saved.mean()
        self._penalties = (method.penalty * weights).to(dtype)
        self._step_count = 0
        self._gradient: Tensor | None = None
        plan_of(problem, self.structures, self._scores())  # what cannot be reached is told before training

    def after_backward(self, moment: Moment) -> None:
        """Take the gradient of the factors, and show the optimizer the weights without them."""
        self.check_optimizer(NAME, moment, self._gates.parameters)
        self._here()
        self._gradient = self._gates.take_out_(self.factors)

    def after_step(self, moment: Moment) -> None:
        """Take the factors' own step, and put them back into the weights."""
        if self._gradient is None:
            return
        self._step_count += 1
        self.factors, self.velocity = apg_step(
            self.factors,
            self._gradient,
            self.velocity,
            lr=moment.lr,
            momentum=self.method.momentum,
            penalty=self._penalties,
            nonnegative=self.method.nonnegative,
        )
        self._gradient = None
        self._gates.put_in_(self.factors)

    def after_epoch(self, moment: Moment) -> None:
        """Say in the log how many factors are at zero."""
        zeros = int((self.factors == 0).sum())
        log.info("epoch %d: %d of %d factors are at zero", moment.epoch + 1, zeros, self.structures.count)

    def standing(self) -> Standing:
        """Return the sizes of factors; out are those at zero."""
        scores = self._scores()
        plan = plan_of(self.problem, self.structures, scores)
        channels, branches = self.structures.of_groups(scores), self.structures.of_branches(scores)
        return Standing(
            channels,
            {name: len(plan.kept[name]) for name in channels},
            {name: int((own == 0).sum()) for name, own in channels.items()},
            plan.removed_branches,
            tuple(name for name, size in branches.items() if size == 0),
        )

    def finish(self) -> Decision:
        """Rank the structures by the size of their factors and meet the budget exactly; the model stays as it is.

        Raises:
            BudgetError: the budget is not reachable.
            MethodError: a factor is not finite, or the model has not been trained for a single step.
        """
        if self._step_count == 0 and self.problem.budget.remove > 0:
            raise MethodError(f"{NAME} has seen no step: train the model with what attach() returned, then ask.")
        scores = self._scores()
        if not bool(scores.isfinite().all()):
            raise MethodError(f"{NAME}: {int((~scores.isfinite()).sum())} factors are not finite after training.")
        plan = plan_of(self.problem, self.structures, scores)
        channels = self.structures.of_groups(scores)
        gone = [self.structures.of_branches(scores)[name] for name in plan.removed_branches]
        gone += [float(channels[name][i]) for name in plan for i in plan.removed(name)]
        early = is_off(gone, 0.0)
        if early < len(gone):
            log.warning(
                "%s: training brought %d of the %d factors that go to zero; the largest of them is %.3g. Train longer, "
                "raise penalty=%g, or remove less.",
                *(NAME, early, len(gone), max(gone), self.method.penalty),
            )
        log.info("%s: %d of %d factors are at zero", NAME, is_off(scores, 0.0), len(scores))
        return Decision(plan, scores=channels, repair="batchnorm")

    def state_dict(self) -> dict[str, Any]:
        """Return the factors, their velocity, and the weights without them."""
        return {
            "method": NAME,
            "settings": self._settings(),
            "factors": self.factors.clone(),
            "velocity": self.velocity.clone(),
            "steps": self._step_count,
            "weights": self._gates.bare(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take them up; the model's weights are those that were saved with this state.

        Raises:
            MethodError: the state is of another method, of other settings or of another model.
        """
        own = own_state(state, NAME)
        if own["settings"] != self._settings() or own["factors"].shape != self.factors.shape:
            raise MethodError(
                f"{NAME} was given a state of {len(own['factors'])} factors under {own['settings']} to go on from, and "
                f"has {len(self.factors)} under {self._settings()}: resume with the same settings, or start anew."
            )
        self.factors, self.velocity = own["factors"].clone(), own["velocity"].clone()
        self._step_count = own["steps"]
        self._gates.load(own["weights"])

    def _scores(self) -> Tensor:
        return self.factors.detach().double().cpu().abs()

    def _settings(self) -> dict[str, str]:
        return {
            each.name: repr(getattr(self.method, each.name)) for each in fields(self.method) if each.name != "recipe"
        }

    def _here(self) -> None:
        """Move the factors to the weights' device, once."""
        device = next(iter(self._gates.parameters.values())).device
        if self.factors.device != device:
            self.factors, self.velocity = self.factors.to(device), self.velocity.to(device)
        if self._penalties.device != device:
            self._penalties = self._penalties.to(device)


def structures_of(problem: Problem, kind: str, residual: str) -> Structures:
    """Return what can have a factor.

    Raises:
        MethodError: nothing can, or weights are not finite real numbers.
        NothingToPrune: everything is protected.
    """
    problem.graph.touching(problem.limits.protect)
    branches, why = removable_branches(problem) if kind != "channels" else ({}, {})
    if kind == "branches" and not branches:
        told = "; ".join(f"{name}: {reason}" for name, reason in list(why.items())[:3]) or "it has none"
        if why and all(reason == "it is protected" for reason in why.values()):
            raise NothingToPrune("every residual branch of the model is protected: protect less.")
        raise MethodError(
            f"{NAME} finds no residual branch in the model that it can remove ({told}): use structures='channels'."
        )
    if why:
        log.info("%s: left in: %s", NAME, "; ".join(f"{name} ({reason})" for name, reason in why.items()))
    groups: dict[str, Sides] = {}
    if kind in ("channels", "both") or not branches:
        names = eligible(problem, residual)
        groups = maskable(problem, names, NAME)
    every = {*groups, *problem.graph.groups} if branches else set(groups)
    problem.check_weights(every)
    return Structures(branches, groups)
