"""NISP: every neuron is worth what it passes on to the responses before the classifier.

Source: Yu, Li, Chen, Lai, Morariu, Han, Gao, Lin, Davis, "NISP: Pruning Networks using Neuron Importance Score
Propagation", CVPR 2018, arXiv:1711.05908; the ranking of the final responses is Roffo, Melzi, Cristani, "Infinite
Feature Selection", ICCV 2015.
Claim: pruning all layers so that the ranked responses before the classifier are best rebuilt costs less accuracy than
choosing neurons layer by layer from local statistics.
Equation: s_k = |W_(k+1)|^T s_(k+1): the importance s of layer k's neurons from that of layer k+1's, where neurons that
layer k+1 loses count 0 (eq. 18). A channel's score is the sum over its map. At the top, s_n = row sums of
(I - r A)^-1 - I, with A_ij = alpha * sigma_ij + (1 - alpha) * c_ij joining responses that spread (sigma_ij) and do not
order the samples alike (c_ij), and r = decay / rho(A).
Cost: forward passes over at most `samples` rows of data; O(N^3) time and O(N^2) memory for the N final responses; then
one pass back through the network at the example's size in float64, and one more for every group that several layers
make.
Use it when a whole network is to be thinned at once from a few unlabelled samples and fine-tuned only once.

Where we differ, and why:

- The product of |W| is not taken layer by layer: the network's shadow (|W| for W, no biases, identity for activations,
  averages for maxima) runs as a whole and its vector-Jacobian product gives all scores, so that additions,
  concatenations and reshapes need no rule of their own.
- Batch norm counts as |gamma| / sigma; layer, group and RMS norm as |gamma|, since their sigma is another one for each
  sample. Softmax gives equal shares, so attention averages, and queries and keys are scored with the values of their
  head. Of two activations that are multiplied each is scored as if the other were 1, divisors count as 1, and any
  function of one number counts as the identity if it changes no (or, as GELU and SiLU, hardly) faster than that number.
- The paper has one layer per neuron. Where several layers make a channel (residual streams, depthwise convolutions) its
  score is the sum over them, each taken after the normalisation that follows it; the choice is made where the pass
  first meets the group, and layers further up do not count as pruned yet.
- A final response that never varies on the data has no correlation to be ranked by: it scores half the lowest of the
  others (1 if none varies), not 0, so that what feeds only such responses is still told apart. Several final layers
  (several outputs) are ranked one by one.
- The budget is met exactly with the same fraction of every group unless `allocation` says otherwise. "global" needs
  every score before any choice, so nothing is zeroed on the way; scores are divided by their group's mean, since the
  unit of s grows from layer to layer.
- The paper names neither decay nor alpha; these are Inf-FS's 0.9 and the middle.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..errors import MethodError, NothingToPrune, TrainingError, UnknownName
from ..graph.groups import ChannelGraph
from ..graph.products import Product, Site, products
from ..train.batches import device_of
from ..train.task import Inputs
from ..train.watching import Seen, input_batches, watch
from ._inf_fs import infinite_feature_scores
from ._problem import Decision, Problem
from ._scores import Allocation, counts_for, eligible, lowest, plan_from_counts, plan_from_scores
from ._shadow import Response, Scaled, ShadowNetwork, final_products

log = logging.getLogger(__name__)


def propagated(weight: Tensor, scores: Tensor) -> Tensor:
    """Pass scores from a layer's outputs to its inputs; higher = keep.

    Source: Yu et al. 2018, eq. 18. The whole network's version is `ShadowNetwork.send`.

    Args:
        weight: (out, in).
        scores: (out,), >= 0.

    Returns:
        (in,), >= 0.

    >>> propagated(torch.tensor([[1.0, -2.0], [0.0, 3.0]]), torch.tensor([1.0, 2.0])).tolist()
    [1.0, 8.0]
    """
    return scores @ weight.abs()


def above_zero(scores: Tensor) -> Tensor:
    """Return scores with half the lowest positive one in place of 0, and 1 everywhere if there is none.

    >>> above_zero(torch.tensor([4.0, 0.0, 2.0])).tolist()
    [4.0, 1.0, 2.0]
    """
    positive = scores[scores > 0]
    lowest_positive = positive.min() if len(positive) else torch.tensor(2.0, dtype=scores.dtype)
    return torch.where(scores > 0, scores, lowest_positive / 2)


@dataclass(frozen=True)
class Nisp:
    """Remove the channels that pass least on to the final responses.

    Attributes:
        decay: f of infinite feature selection, 0 < f < 1: how much longer paths between responses count.
        alpha: share of the responses' spread in their ranking, 0 to 1; the rest is for differing from each other.
        samples: largest number of rows (samples, times positions if the final layer sees several) that rank.
        classifier: path of the module whose input is the final response layer; "" = found: the last product before
            each output.
        allocation: "uniform" (the paper), "global", "sensitivity" or {module path: relative fraction}.
        residual: "prune" (the paper's tables cut streams like everything else), "projection" or "skip".

    Raises:
        MethodError: a number is out of its range.
    """

    decay: float = 0.9
    alpha: float = 0.5
    samples: int = 1000
    classifier: str = ""
    allocation: Allocation = "uniform"
    residual: str = "prune"

    def __post_init__(self) -> None:
        if not 0 < self.decay < 1:
            raise MethodError(f"decay={self.decay!r}: expected a number between 0 and 1, e.g. 0.9.")
        if not 0 <= self.alpha <= 1:
            raise MethodError(f"alpha={self.alpha!r}: expected a number from 0 to 1.")
        if isinstance(self.samples, bool) or not isinstance(self.samples, int) or self.samples < 2:
            raise MethodError(f"samples={self.samples!r}: expected a whole number of 2 or more.")

    def decide(self, problem: Problem) -> Decision:
        """Rank the final responses, pass the scores back, choose on the way; reads inputs, not labels.

        Raises:
            BudgetError: the budget is not reachable.
            MethodError: no data, responses that are not finite, or an operation that has no shadow.
            NothingToPrune: no group is free to go, or scores reach none of them.
            TrainingError: the data give no batch.
            UnknownName: the model has no module called `classifier`.
        """
        names = eligible(problem, self.residual)
        problem.check_weights(names)
        finals = self._finals(problem.graph)
        tops = self._ranked(problem, finals)
        shadow = ShadowNetwork.of(problem.model, problem.graph, finals, names)
        whole = _Choice(problem.graph)
        shadow.send(tops, whole)
        reached = [name for name in names if name in whole.found]
        _report(names, reached)
        scores = {name: _relative(whole.found[name]) for name in reached}
        if self.allocation == "global":
            return Decision(plan_from_scores(problem, scores, self.allocation), scores=scores)
        kept = counts_for(problem, reached, self.allocation, scores)
        scores = _interleaved(shadow, tops, kept, whole.made)
        return Decision(plan_from_counts(problem, kept, scores), scores=scores)

    def _finals(self, graph: ChannelGraph) -> list[Product]:
        if self.classifier and self.classifier not in graph.modules:
            raise UnknownName("module", self.classifier, filter(None, graph.modules))
        found = final_products(graph)
        if self.classifier:
            found = [p for p in products(graph) if p.module == self.classifier]
        if not found:
            where = f"classifier={self.classifier!r}" if self.classifier else "the model"
            raise MethodError(
                f"{where} multiplies no activation with a weight, so there is no final response layer: name the module "
                "of a convolution or linear layer with classifier=."
            )
        return found

    def _ranked(self, problem: Problem, finals: Sequence[Product]) -> dict[int, Tensor]:
        """Return the scores at the input of each final product, in its shape on the tape."""
        seen = _responses(problem, finals, self.samples)
        result: dict[int, Tensor] = {}
        known: dict[int, Tensor] = {}
        for product in finals:
            if product.source.number in known:  # one layer that several outputs read is ranked once
                continue
            rows = seen[product.op.index]
            scores = above_zero(infinite_feature_scores(rows, alpha=self.alpha, decay=self.decay))
            if not bool((rows != rows[:1]).any()):
                log.warning("what %r reads is the same for all %d rows: not ranked", product.module, len(rows))
            axis = _feature_axis(product)
            view = [-1 if d == axis else 1 for d in range(len(product.source.shape))]
            known[product.source.number] = scores
            device = device_of(problem.model)
            result[product.op.index] = scores.to(device).view(view).expand(product.source.shape).contiguous()
        return result


@dataclass
class _Choice:
    """What one pass back finds, and what it decides.

    Attributes:
        graph: the channel graph.
        kept: group -> how many channels stay; empty = only look.
        whole: group -> how many responses of it a score reaches; needed to choose.
        chosen: group -> (width,) bool, True = goes; decided in this pass or before.
        scores: group -> its scores when it was decided.
        found: group -> sum of the scores met in this pass.
        made: group -> how many responses that sum is over.
        pending: group that more than one layer makes and that the pass has met first: it is decided after the pass,
            and nothing else until then.
    """

    graph: ChannelGraph
    kept: Mapping[str, int] = field(default_factory=dict)
    whole: Mapping[str, int] = field(default_factory=dict)
    chosen: dict[str, Tensor] = field(default_factory=dict)
    scores: dict[str, Tensor] = field(default_factory=dict)
    found: dict[str, Scaled] = field(default_factory=dict)
    made: dict[str, int] = field(default_factory=dict)
    pending: str = ""

    def __call__(self, response: Response, scores: Scaled) -> Tensor:
        """Note a response's scores; return which of them are zeroed."""
        name = response.group
        nothing = torch.zeros(self.graph.groups[name].width, dtype=torch.bool)
        if name in self.chosen:
            return self.chosen[name]
        self.made[name] = self.made.get(name, 0) + 1
        self.found[name] = self.found[name].plus(scores) if name in self.found else scores
        if name not in self.kept or self.pending:
            return nothing
        if self.whole[name] > 1:
            self.pending = name
            return nothing
        return self.choose(name)

    def choose(self, name: str) -> Tensor:
        """Decide on a group by its scores; return which of its channels go."""
        self.scores[name] = _relative(self.found[name])
        dead = torch.zeros(len(self.scores[name]), dtype=torch.bool)
        dead[lowest(self.scores[name], len(dead) - self.kept[name])] = True
        self.chosen[name] = dead
        return dead


def _interleaved(
    shadow: ShadowNetwork, tops: Mapping[int, Tensor], kept: Mapping[str, int], made: Mapping[str, int]
) -> dict[str, Tensor]:
    """Choose from the last group to the first; what is chosen passes no score on. Returns each group's scores."""
    chosen: dict[str, Tensor] = {}
    scores: dict[str, Tensor] = {}
    while len(chosen) < len(kept):
        choice = _Choice(shadow.graph, kept, made, chosen, scores)
        shadow.send(tops, choice)
        if choice.pending:
            choice.choose(choice.pending)
        else:
            break
    return {name: scores[name] for name in kept}


def _responses(problem: Problem, finals: Sequence[Product], most: int) -> dict[int, Tensor]:
    """Return position on the tape -> (rows, features) of what each final product reads, of at most `most` rows."""
    if problem.data is None or problem.task is None:
        raise MethodError("nisp ranks the final responses on data: give data= (labels are not used) and task=.")
    found: dict[int, list[Tensor]] = {p.op.index: [] for p in finals}
    with input_batches(problem.data, problem.task, device_of(problem.model)) as batches:
        for inputs in batches:
            see = {p.site: (lambda seen, p=p: found[p.op.index].append(_rows(p, seen))) for p in finals}
            _watched(problem, inputs, see)
            if all(sum(map(len, parts)) >= most for parts in found.values()):
                break
    return {position: torch.cat(parts)[:most] for position, parts in found.items()}


def _watched(problem: Problem, inputs: Inputs, see: Mapping[Site, Callable[[Seen], None]]) -> None:
    try:
        watch(problem.model, inputs, see)
    except TrainingError as error:
        raise MethodError(f"nisp: {error}") from error


def _rows(product: Product, seen: Seen) -> Tensor:
    rows = seen.source.movedim(_feature_axis(product), -1).flatten(end_dim=-2).double().cpu()
    if not bool(torch.isfinite(rows).all()):
        raise MethodError(
            f"what {product.module or 'the model'} reads holds NaN or infinite values: nothing can be ranked. Look for "
            "bad values in data= and in the weights."
        )
    return rows


def _feature_axis(product: Product) -> int:
    if product.is_convolution:
        return 1
    return len(product.source.shape) - (2 if product.is_weight_first else 1)


def _relative(found: Scaled) -> Tensor:
    """Return scores divided by their mean; the scale of a layer's scores says nothing."""
    mean = found.scores.mean()
    return found.scores / mean if mean > 0 else found.scores


def _report(names: Sequence[str], reached: Sequence[str]) -> None:
    left = [name for name in names if name not in reached]
    if not reached:
        raise NothingToPrune(
            f"no score reaches any of {', '.join(left[:4])}: they feed the final layer only through a softmax, a "
            "statistic or not at all. Name another layer with classifier=."
        )
    if left:
        log.warning("left whole, since no score reaches them from the final layer: %s", ", ".join(left))
