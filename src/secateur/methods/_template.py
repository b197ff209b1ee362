"""Template of a method: copy this file, rename it after the paper, and replace what is said and done here.

This docstring opens with one line on what goes and has six parts, in this order; a page of the documentation is made
from them. The method below is a real one, so that everything here runs: channels with a small p-norm go.

Source: He, Kang, Dong, Fu, Yang, "Soft Filter Pruning for Accelerating Deep Convolutional Neural Networks", IJCAI
2018, arXiv:1808.06866; only its criterion, the p-norm of a filter.

Claim: filters with a small p-norm weigh least in what a layer puts out, so they can go first.

Equation: score(j) = (sum over weights w of filter j of |w|^p)^(1/p).

Cost: O(P) time for P parameters. No data.

Use it when you write a method of your own and need something to start from.

Where we differ, and why:

- The paper zeroes filters after each epoch and lets them grow back; here they are chosen once, which is what a template
  can show in one page.
- Channels that several weights make are scored by the norm over all of them; the paper has one filter per channel.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import MethodError
from ._problem import Decision, Problem
from ._scores import Allocation, per_channel, plan_from_scores, producers

# 1. The maths comes first: pure functions of tensors, one per equation, which tests can feed numbers made by hand.


def norm_scores(power_sums: Tensor, power: float) -> Tensor:
    """Turn sums of absolute weights to a power into p-norms; higher = keep.

    Source: He et al. 2018, section 3.2.

    Args:
        power_sums: (channels,) sum of |weight|^power over all weights of a channel.
        power: p of the norm, > 0.

    Returns:
        (channels,), >= 0, in the unit of the weights.

    >>> norm_scores(torch.tensor([25.0, 4.0]), power=2).tolist()
    [5.0, 2.0]
    """
    return power_sums ** (1 / power)


# 2. Then the class: a frozen dataclass of hyper-parameters with the paper's defaults, checked when it is made.


@dataclass(frozen=True)
class Template:
    """Remove the channels with the smallest p-norm.

    Attributes:
        power: p of the norm, > 0; the paper uses 2.
        allocation: "uniform" (the paper), "global" or {module path: relative fraction}.

    Raises:
        MethodError: `power` is not a number above 0.
    """

    power: float = 2.0
    allocation: Allocation = "uniform"

    def __post_init__(self) -> None:
        # What was asked, what was expected. A comparison with NaN is False, so this refuses NaN too.
        if not 0 < self.power < math.inf:
            raise MethodError(f"power={self.power!r}: expected a number above 0, e.g. 2 for the Euclidean norm.")

    def decide(self, problem: Problem) -> Decision:
        """Score and choose; reads weights only.

        Raises:
            BudgetError: the budget is not reachable.
            MethodError: weights are not finite real numbers.
            NothingToPrune: no group is free to go.
        """
        # `free_groups` leaves out what the user protects. A method with rules of its own narrows the list further,
        # as `eligible` in _scores.py does for residual streams.
        names = problem.free_groups()
        problem.check_weights(names)
        scores = {name: self._score(problem, name) for name in names}
        # The plan follows from the scores: exactly as many as the budget says, whatever ties there are, and never a
        # whole group. With the scores in the decision a user can see why a channel went.
        return Decision(plan_from_scores(problem, scores, self.allocation), scores=scores)

    # 3. Helpers last. What a second method needs too moves to a file that starts with an underscore.

    def _score(self, problem: Problem, name: str) -> Tensor:
        graph = problem.graph
        group = graph.groups[name]
        total = torch.zeros(group.width, dtype=torch.float64)
        # A group is not one layer: its channels may be made by several weights, and one channel may take several
        # places of each (the rows of an attention head). `per_channel` adds up whatever belongs to each channel.
        for member in producers(graph, group):
            weight = problem.model.get_parameter(member.tensor)
            total += per_channel(graph, group, member, weight.detach().double().abs() ** self.power)
        return norm_scores(total, self.power)


# 4. Last of all, one row in catalogue.py: name, class, family, paper, what it reads besides weights, one line. A
#    promise of the contract suite that the paper's idea cannot keep is waived there, and the reference then says so.
