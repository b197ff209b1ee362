"""Batch-norm scale pruning: channels that their normalisation multiplies by a small factor go.

Source: Liu, Li, Shen, Huang, Yan, Zhang, "Learning Efficient Convolutional Networks through Network Slimming", ICCV
2017, arXiv:1708.06519, section 3; of that paper the criterion alone, without the training that makes factors small.

Claim: the scaling factor of a batch normalisation multiplies a whole channel, so a channel whose factor is near zero
hardly reaches the next layer.

Equation: score(c) = |gamma[c]|, where the normalisation computes gamma[c] (x[c] - mean[c]) / sqrt(var[c] + eps) +
beta[c].

Cost: O(C) time and memory for C channels. No data.

Use it when the network was trained with an L1 penalty on its scaling factors; without one the factors of many networks
say little, and it is a reference to beat.

Where we differ, and why:

- The paper trains with a penalty on the factors first. Here the factors are taken as they are, so this row is the
  criterion alone: it costs nothing and shows what the penalty adds.
- The paper ranks the factors of all layers together; that is ``allocation="global"``. The default takes the same
  fraction of every group, as the other filter methods do, since without the penalty the factors of two layers have
  nothing in common.
- Groups of channels that no normalisation follows have no factor and stay whole, so the others lose more for the same
  budget; where no group has one the method refuses the model. Batch, instance, group and layer norm with
  a gain per channel are taken, RMS norm and others that are computed step by step are not.
- A channel may pass several normalisations (a residual stream, a depthwise convolution). The one right behind the
  layer that makes it decides; of several makers it is the first, and in a residual stream the projection, as in
  `L1Filter`. ``coupled="mean"`` takes the mean over all of them.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import MethodError
from ..graph.groups import ChannelGroup
from ..graph.norms import Flow, Norm
from ..graph.walk import state_of
from ._filters import deciding
from ._problem import Decision, Problem
from ._scores import Allocation, eligible, per_channel, plan_from_scores

log = logging.getLogger(__name__)


def bn_scale_scores(gains: Tensor) -> Tensor:
    """Score each channel by the size of its scaling factors, averaged over normalisations; higher = keep.

    Source: Liu et al. 2017, section 3.

    Args:
        gains: (normalisations, channels) factors, of any sign.

    Returns:
        (channels,), >= 0.

    >>> bn_scale_scores(torch.tensor([[-3.0, 1.0], [1.0, 2.0]])).tolist()
    [2.0, 1.5]
    """
    return gains.abs().mean(dim=0)


@dataclass(frozen=True)
class BnScale:
    """Remove the channels that their normalisation scales least.

    Attributes:
        coupled: "first" reads the normalisation right behind the layer that makes the channels; "mean" averages over
            all that the channels pass.
        allocation: "uniform", "global" (the paper) or {module path: relative fraction}.
        residual: "projection", "skip" or "prune": what happens to residual streams, as in `L1Filter`.

    Raises:
        MethodError: `coupled` is none of the two.
    """

    coupled: str = "first"
    allocation: Allocation = "uniform"
    residual: str = "projection"

    def __post_init__(self) -> None:
        if self.coupled not in ("first", "mean"):
            raise MethodError(f"coupled={self.coupled!r}: expected 'first' or 'mean'.")

    def decide(self, problem: Problem) -> Decision:
        """Score and choose; reads weights only.

        Raises:
            BudgetError: the budget is not reachable, perhaps since groups without a normalisation stay whole.
            MethodError: no group is followed by a normalisation with a gain, or weights are not finite real numbers.
            NothingToPrune: no group is free to go.
        """
        names = eligible(problem, self.residual)
        problem.check_weights(names)
        flow = Flow(problem.graph)
        found = {name: self._norms(problem, flow, problem.graph.groups[name]) for name in names}
        scores = {name: self._scores(problem, name, norms) for name, norms in found.items() if norms}
        if not scores:
            raise MethodError(
                f"bn_scale reads the gain of a normalisation, and none follows any of the {len(names)} groups that may "
                f"lose channels ({', '.join(names[:4])}): use a method that reads weights, e.g. method='l1_filter'."
            )
        if len(scores) < len(names):
            log.info("no normalisation, left whole: %s", ", ".join(n for n in names if n not in scores))
        return Decision(plan_from_scores(problem, scores, self.allocation), scores=scores)

    def _norms(self, problem: Problem, flow: Flow, group: ChannelGroup) -> list[Norm]:
        norms = flow.norms_on(group)
        if self.coupled == "mean":
            return norms
        makers = {member.tensor for member in deciding(problem.graph, group, self.residual)}
        return [norm for norm in norms if makers & flow.weights_behind(group, norm)][:1]

    def _scores(self, problem: Problem, name: str, norms: list[Norm]) -> Tensor:
        graph, group = problem.graph, problem.graph.groups[name]
        tensors = state_of(problem.model, shared=True)
        gains = []
        for norm in norms:
            member = next(m for m in group.members if m.tensor == norm.gain)
            gain = tensors[norm.gain].detach().double()
            gains.append(per_channel(graph, group, member, gain, absolute=True) / member.per_channel)
        return bn_scale_scores(torch.stack(gains))
