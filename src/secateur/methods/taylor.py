"""Taylor pruning: channels whose removal changes the loss least, to first order, go.

Source: Molchanov, Mallya, Tyree, Frosio, Kautz, "Importance Estimation for Neural Network Pruning", CVPR 2019,
arXiv:1906.10771, section 3.

Claim: the squared change of the loss on removing a channel is well told by its first-order term, which one backward
pass gives for all channels of all layers at once, on one scale.

Equation: gate form, score(c) = mean over batches of (dL/dz[c])^2 at z[c] = 1, where z[c] multiplies all that channel c
carries: dL/dz[c] = sum over its activations a of a dL/da = sum over its weights w at the gate of w dL/dw. Weight form,
score(c) = mean over batches of the sum over the filter's weights w of (w dL/dw)^2. L is the mean loss of a batch.

Cost: one forward and one backward pass for each batch, at most `batch_count` of them; a copy of the model and one
gradient for each weight that is scored. Half-precision models are copied to float32.

Use it when there are labelled data and layers are to be compared with each other: scores of all layers are in the same
unit, the squared loss. It says little where the loss is at its minimum for every sample, since gradients vanish there.

Where we differ, and why:

- The paper removes 100 channels after every 30 batches and trains on in between, with a small learning rate. That is
  iterative removal, which `secateur.prune_iteratively` does with this method; one call scores once.
- So the gradients are those of one trained network in eval mode (running statistics, no dropout), while the paper takes
  them along the way in training mode. Running statistics of the caller's model cannot be touched this way.
- The running average with momentum 0.9 runs over batches and starts with the first one; in the authors' code batches
  between two removals are averaged evenly and the momentum acts from one removal to the next, where it hardly matters.
  ``momentum=None`` averages all batches evenly.
- A gate stands behind the last normalisations before the layers that read a channel, as in the paper. Where there is
  none on some way, it stands at what is read: through activations that scale (ReLU, pooling) the two agree. Where the
  readers' weights are computed (standardised), it stands behind the layer that makes the channel. No layer is added:
  the gradients of gains and shifts, or of weights, hold those of the gates.
- Channels that several layers make or read (a residual stream, a head) have one gate over all of them: their terms are
  added up before squaring, since all of them go together. Groups where no gate can be placed stay whole.
- Residual streams are treated as in `L1Filter`, so that both cut the same layers; ``residual="prune"`` cuts all.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ..errors import MethodError
from ..graph.groups import ChannelGraph, ChannelGroup, Member
from ..graph.norms import Flow
from ._gates import Gate, gate_of
from ._gradients import Gradients, each_gradient
from ._problem import Decision, Problem
from ._scores import Allocation, eligible, per_channel, plan_from_scores, producers

log = logging.getLogger(__name__)
Score = Callable[[Gradients], Tensor]


def gate_scores(gradients: Tensor) -> Tensor:
    """Score channels by the squared gradients of their gates; higher = keep.

    Source: Molchanov et al. 2019, section 3.2.

    Args:
        gradients: (channels,) dL/dz, where z multiplies the whole channel: its terms are added up before squaring.

    Returns:
        (channels,), >= 0, in the squared unit of the loss.

    >>> gate_scores(torch.tensor([-3.0, 1.0])).tolist()
    [9.0, 1.0]
    """
    return gradients.square()


def weight_scores(weight: Tensor, gradient: Tensor) -> Tensor:
    """Score single weights by their squared first-order effect on the loss; a filter's score is the sum of its own.

    Source: Molchanov et al. 2019, section 3.1, equation 8.

    Args:
        weight: of any shape.
        gradient: dL/dw in the same shape.

    Returns:
        In the same shape and float64, >= 0, in the squared unit of the loss.

    >>> weight_scores(torch.tensor([1.0, 2.0]), torch.tensor([3.0, -1.0])).tolist()
    [9.0, 4.0]
    """
    return (weight.double() * gradient.double()).square()


def averaged(average: Tensor | None, latest: Tensor, momentum: float | None, count: int) -> Tensor:
    """Take one more batch into a running average.

    Args:
        average: of the batches so far; None before the first.
        latest: of this batch.
        momentum: share of the old average, in [0, 1); None = the plain mean of all batches.
        count: how many batches there were before this one.

    >>> averaged(torch.tensor([1.0]), torch.tensor([2.0]), momentum=0.75, count=9).tolist()
    [1.25]
    """
    if average is None:
        return latest
    share = count / (count + 1) if momentum is None else momentum
    return share * average + (1 - share) * latest


@dataclass(frozen=True)
class Taylor:
    """Remove the channels with the smallest first-order effect on the loss.

    Attributes:
        form: "gate" (the paper's best) or "weight".
        momentum: of the running average over batches, in [0, 1); None = the plain mean.
        batch_count: how many batches to read; fewer if the data have fewer.
        allocation: "global" (the paper), "uniform" or {module path: relative fraction}.
        residual: "projection", "skip" or "prune": what happens to residual streams, as in `L1Filter`.

    Raises:
        MethodError: a setting makes no sense.
    """

    form: str = "gate"
    momentum: float | None = 0.9
    batch_count: int = 30
    allocation: Allocation = "global"
    residual: str = "projection"

    def __post_init__(self) -> None:
        if self.form not in ("gate", "weight"):
            raise MethodError(f"form={self.form!r}: expected 'gate' or 'weight'.")
        if self.momentum is not None and not 0 <= self.momentum < 1:
            raise MethodError(f"momentum={self.momentum!r}: expected a number in [0, 1), or None for the plain mean.")
        if not isinstance(self.batch_count, int) or self.batch_count < 1:
            raise MethodError(f"batch_count={self.batch_count!r}: expected a whole number >= 1.")

    def decide(self, problem: Problem) -> Decision:
        """Score and choose; runs batches forward and backward on a copy of the model.

        Raises:
            BudgetError: the budget is not reachable.
            MethodError: no labelled data, no gate can be placed anywhere, or weights, loss or gradients are not finite.
            NothingToPrune: no group is free to go.
        """
        names = eligible(problem, self.residual)
        problem.check_weights(names)
        needed, each = self._gates(problem, names) if self.form == "gate" else self._filters(problem, names)
        if not each:
            raise MethodError(
                f"taylor finds no place for a gate in any of the groups {', '.join(names[:4])}: nothing that makes or "
                "reads their channels can be differentiated. Use a method that reads weights, e.g. method='l1_filter'."
            )
        if len(each) < len(names):
            log.info("no place for a gate, left whole: %s", ", ".join(n for n in names if n not in each))
        scores: dict[str, Tensor] = {}
        counts = dict.fromkeys(each, 0)

        def see(gradients: Gradients) -> None:
            for name, score in each.items():
                scores[name] = averaged(scores.get(name), score(gradients), self.momentum, counts[name])
                counts[name] += 1

        each_gradient(problem, sorted(needed), see, method="taylor", batch_count=self.batch_count)
        return Decision(plan_from_scores(problem, scores, self.allocation), scores=scores)

    def _gates(self, problem: Problem, names: list[str]) -> tuple[set[str], dict[str, Score]]:
        """Return the parameters that are needed, and for each group how to score a batch."""
        graph, flow = problem.graph, Flow(problem.graph)
        placed = {name: gate_of(problem.model, graph, flow, graph.groups[name]) for name in names}
        gates = {name: gate for name, gate in placed.items() if gate is not None}
        needed = {tensor for gate in gates.values() for tensor in gate.names}
        return needed, {name: partial(_gate_scores, graph, gate) for name, gate in gates.items()}

    def _filters(self, problem: Problem, names: list[str]) -> tuple[set[str], dict[str, Score]]:
        """Return the same for the weights that make the channels."""
        graph, parameters = problem.graph, dict(problem.model.named_parameters())
        own = {name: [m for m in producers(graph, graph.groups[name]) if m.tensor in parameters] for name in names}
        needed = {member.tensor for members in own.values() for member in members}
        return needed, {
            name: partial(_filter_scores, graph, graph.groups[name], members)
            for name, members in own.items()
            if members
        }


def _gate_scores(graph: ChannelGraph, gate: Gate, gradients: Gradients) -> Tensor:
    return gate_scores(gate.gradient(graph, gradients))


def _filter_scores(graph: ChannelGraph, group: ChannelGroup, members: list[Member], gradients: Gradients) -> Tensor:
    total = torch.zeros(group.width, dtype=torch.float64)
    for member in members:
        total += per_channel(graph, group, member, weight_scores(*gradients[member.tensor]))
    return total
