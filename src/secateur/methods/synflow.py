"""SynFlow: weights on strong paths through the network stay, found without data, in many small rounds.

Source: Tanaka, Kunin, Yamins, Ganguli, "Pruning neural networks without any data by iteratively conserving synaptic
flow", NeurIPS 2020, arXiv:2006.05467, section 6 and algorithm 1.

Claim: a score that is conserved from layer to layer, taken anew after each small step, never empties a layer while
others have weights to spare, and needs no data.

Equation: score(theta) = |theta dR/dtheta|, R = 1' (prod over layers l of |theta_l|) 1: the sum of the strengths of all
paths from inputs to outputs. Round k of n leaves the density rho^(k/n), rho the density asked for.

Cost: n rounds (100) of one forward and one backward pass over the example in float64; besides, the graph of one pass
and the activations of the example, of which one sample is enough. No data.

Use it when a network is to be trained sparse from the beginning, extremely so (below 2 % kept), where other
criteria empty a layer. On trained weights it ranks paths by strength and knows nothing of the task.

Where we differ, and why:

- R is the paper's formula: biases and shifts start no path, means are 0, and activation functions let everything pass.
  The authors' code keeps |bias| and runs ReLU, which is the same for weights as they are first drawn. Batch norms scale
  by |gamma| / sqrt(running variance + eps).
- The paper treats networks of convolutions, linear layers and ReLU. What is beyond is followed so that flow is still
  conserved: layer and group norms scale by |gamma|; softmax averages; of a product of two activations (gates,
  attention, recurrent cells) half of the flow goes over each factor, weighed by the other's values; what an
  activation is divided by is no path. Operations without such a rule are refused by name.
- Inputs are ones. Whole numbers cannot be: a token is a 1 in a vector of zeros, and ones for that vector make an
  embedding the sum of |its rows|, whatever the tokens of the example are. Whole numbers used in other ways start
  no path.
- Weights that are exactly zero, and those that went in earlier rounds, go before any other; their score is -1.
- With a pattern, every layer loses the same part and none can be emptied: weights are scored once.
- Where budgets leave no path at all, the scores of the last round with one are used.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from ..budget import WEIGHTS, Budget
from ..errors import MethodError
from ._flow import SynapticFlow
from ._settings import check_settings
from ._weight_choice import LayerKeptAlive, Scope, check_scope, choose, zeros_lowest
from ._weights import Weight, WeightDecision, WeightProblem

log = logging.getLogger(__name__)


def removed_by_round(count: int, total: int, rounds: int) -> list[int]:
    """Return how many weights are gone after each round: densities fall exponentially to what is asked.

    Source: Tanaka et al. 2020, algorithm 1.

    Args:
        count: weights that go in the end.
        total: weights there are.
        rounds: n.

    >>> removed_by_round(90, 100, 4)
    [44, 68, 82, 90]
    """
    density = 1 - count / total
    return [round(total * (1 - density ** (k / rounds))) for k in range(1, rounds)] + [count]


@dataclass(frozen=True)
class Synflow:
    """Remove the weights on the weakest paths, round by round.

    Attributes:
        rounds: n; 1 scores once, which empties layers at high budgets.
        scope: what is ranked together: "global" (the paper), "layer", "row", or {parameter: relative fraction to
            remove}.
    """

    rounds: int = 100
    scope: Scope = "global"

    def __post_init__(self) -> None:
        check_scope(self.scope)
        check_settings(self, {"rounds": (type(self.rounds) is int and self.rounds > 0, "a whole number >= 1")})

    def choose(self, problem: WeightProblem) -> WeightDecision:
        """Score and choose, in rounds, by `args` and `kwargs` of the problem.

        Raises:
            BudgetError: the budget is not reachable.
            MethodError: there is no example, an operation has no rule, weights are not finite real numbers, or every
                path has the strength 0.
            NothingToPrune: no weight is free to go.
        """
        weights = problem.weights()
        count = 0 if problem.pattern is not None else problem.removal_count(weights)
        flow = SynapticFlow(problem.model, problem.args, problem.kwargs)
        total = sum(weight.tensor.numel() for weight in weights)
        steps = removed_by_round(count, total, self.rounds if count else 1)
        kept: dict[str, Tensor] = {}
        scores = _scores(flow, weights, kept)
        if scores is None:
            raise MethodError(
                "synflow: every path from the inputs to the outputs has the strength 0: nothing can be ranked."
            )
        for gone in steps[:-1]:
            budget = Budget(min(gone, total - 1) / total, WEIGHTS)
            with warnings.catch_warnings():  # the last round says the same
                warnings.simplefilter("ignore", LayerKeptAlive)
                kept = dict(choose(replace(problem, budget=budget), weights, scores, self.scope).kept)
            found = _scores(flow, weights, kept)
            if found is None:
                log.warning("no path is left at %d of %d weights removed: scored no further", gone, total)
                break
            scores = found
        return WeightDecision(choose(problem, weights, scores, self.scope), scores=scores)


def _scores(flow: SynapticFlow, weights: Sequence[Weight], kept: dict[str, Tensor]) -> dict[str, Tensor] | None:
    found, strength = flow.scores([weight.name for weight in weights], kept)
    if strength == 0:
        return None
    alive = {w.name: w.tensor.detach() * kept[w.name].to(w.tensor.device) if kept else w.tensor for w in weights}
    return {name: zeros_lowest(alive[name], scores) for name, scores in found.items()}
