"""Influence functions: how much the loss rests on a channel, as they say how much it rests on a training sample.

Source: Koh, Liang, "Understanding Black-box Predictions via Influence Functions", ICML 2017, arXiv:1703.04730; the
constrained step is Hassibi & Stork 1992 (Optimal Brain Surgeon), for blocks of weights.

Claim: the effect of leaving something out is predicted from gradients and curvature at the trained weights, without
training again.

Equation: with q a channel's weights w_q, g and H the gradient and the Hessian of the loss, E_q the columns of q:
alone I0 = -g_q' w_q + 1/2 w_q' H_qq w_q; with the other weights making up for it I1 = g' d + 1/2 d' H d,
d = -H^-1 E_q [(H^-1)_qq]^-1 w_q. For a layer with H = S x A (S: second moment of output gradients, A: of inputs) and
g = 0, an input channel c costs 1/2 tr(S W_c [(A^-1)_cc]^-1 W_c'), and an output filter j costs
1/2 w_j' A w_j / (S^-1)_jj.

Cost: one pass forward and backward over the data; for each layer of n filters that reads d columns (channels times
kernel positions), 8 (d^2 + n^2) bytes and O(d^3 + n d^2) for the inverse and the scores. form="taylor" takes one
Hessian-vector product per channel and batch, or with curvature="fisher" runs samples one by one.

Use it when there are some hundred labelled samples and little or no training after the cut: the weights that stay are
re-fitted in closed form. form="taylor" tells what single channels are worth to a loss, as long as that loss is smooth
on the way to 0: least so for a network whose loss is close to 0 already.

Where we differ, and why:

- Koh & Liang leave out training samples; here what is forced to zero is a block of weights, which is the same
  first-order argument on another constraint. `data_influence` does theirs.
- q are the weights that read a channel: removing them is removing the channel exactly, with batch normalisation,
  activations, attention and everything else between maker and reader as it is. form="output" takes the filters that
  make it instead, with batch normalisation folded into them, so that gamma and beta go with the filter; what lies
  between is then taken to pass 0 on as 0. A group that no weight reads is scored that way too.
- A channel that several layers read (or, with form="output", make: residual streams, fused query, key and value) costs
  the sum over them; cross terms between layers are ignored, and so is that cutting one layer changes what the next
  reads. form="taylor" keeps the cross terms of one channel, and no term between channels.
- S is made of gradients at the labels given (the empirical Fisher matrix): it has no negative eigenvalues, and falls
  short of the Hessian where samples are fitted well. form="taylor" has the Hessian itself, by Hessian-vector products;
  curvature="fisher" is its cheap stand-in, and ranks filters far worse.
- g is taken as 0 unless `first_order` says otherwise, as at the end of training. On held-out data it is not 0, and
  scores may then fall below 0: the loss is predicted to fall.
- Damping, 0.01 of the mean diagonal, regularises the equations that survivors are solved from, not the cost itself, so
  that a channel which is always zero costs nothing.
- Scores are in units of the loss, but of one channel gone at a time. What many channels of one layer cost together is
  more than their sum, so allocation="global" takes too much of some layers; the default is uniform.
- All channels that go are made up for at once, not one by one, and biases take part, as weights of a constant input.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import MethodError
from ..graph.groups import ChannelGraph
from ..graph.products import products, weight_view
from ..plan import Plan
from ..recovery.moments import Sampling
from ..recovery.refit import intercept_of
from ..surgery.shrink import copy_with
from ._data_influence import ConjugateGradient as ConjugateGradient
from ._data_influence import DataInfluence as DataInfluence
from ._data_influence import Lissa as Lissa
from ._data_influence import RemovalCost as RemovalCost
from ._data_influence import data_influence as data_influence
from ._group_obs import channel_obs_scores as channel_obs_scores
from ._group_obs import channel_obs_update as channel_obs_update
from ._group_obs import filter_obs_scores as filter_obs_scores
from ._group_obs import filter_obs_update as filter_obs_update
from ._influence_layers import Array, Layer, gather, out_lines, reads, wanted_channels
from ._influence_outputs import Gate
from ._influence_taylor import taylor_scores
from ._problem import Decision, Problem
from ._scores import Allocation, eligible, plan_from_scores

log = logging.getLogger(__name__)
FORMS, CURVATURES = ("input", "output", "taylor"), ("fisher", "hessian")


@dataclass(frozen=True)
class Influence:
    """Remove the channels whose absence raises the loss least, as its gradient and curvature predict.

    Attributes:
        form: "input" removes what reads a channel, with the other inputs of each reader making up; "output" removes the
            filter that makes it, with the other filters making up; "taylor" lets nothing make up (I0).
        update: re-fit the weights that stay, in closed form; None = wherever the form has an update ("input" and
            "output").
        first_order: count the gradient of the loss; None = with "taylor" only.
        curvature: "fisher", or "hessian", which goes with "taylor" only; None = "hessian" with "taylor".
        damping: added to the diagonal of second moments where survivors are solved for, as a multiple of its mean.
        sampling: how many samples are read, and which rows (pixels, tokens) of each layer its inputs' moments are taken
            from; the problem's seed is added to its own.
        allocation: "uniform", "global" (scores are in units of the loss) or {module path: relative fraction}.
        residual: "projection", "skip" or "prune": what happens to residual streams; see `L1Filter`.

    Raises:
        MethodError: a setting makes no sense, or would be ignored.
    """

    form: str = "input"
    update: bool | None = None
    first_order: bool | None = None
    curvature: str | None = None
    damping: float = 0.01
    sampling: Sampling = field(default_factory=Sampling)
    allocation: Allocation = "uniform"
    residual: str = "projection"

    def __post_init__(self) -> None:
        if self.form not in FORMS:
            raise MethodError(f"form={self.form!r}: expected one of {', '.join(FORMS)}.")
        if self.curvature not in (None, *CURVATURES):
            raise MethodError(f"curvature={self.curvature!r}: expected one of {', '.join(CURVATURES)}.")
        if self.curvature == "hessian" and self.form != "taylor":
            raise MethodError(f"curvature='hessian' goes with form='taylor'; form={self.form!r} needs a product S x A.")
        if self.update and self.form == "taylor":
            raise MethodError("update=True: form='taylor' lets nothing make up; use form='input' or 'output'.")
        if not 0 <= self.damping < math.inf:
            raise MethodError(f"damping={self.damping!r}: expected a number of 0 or more, e.g. 0.01.")

    def decide(self, problem: Problem) -> Decision:
        """Run the data through once, score and choose; with an update, the model's survivors are re-fitted.

        Raises:
            BudgetError: the budget is not reachable.
            MethodError: data, task or labels are missing, or weights, activations or the loss are not finite.
            NothingToPrune: no group is free to go.
        """
        names = eligible(problem, self.residual)
        problem.check_weights(names)
        wanted, signed = wanted_channels(problem.graph, names), self.first_order is True
        limit = self.sampling.max_samples
        if self.form == "taylor":
            signed = self.first_order is not False
            total = taylor_scores(
                problem, wanted, curvature=self.curvature or "hessian", first_order=signed, limit=limit
            )
            return _decision(problem, names, total, self.allocation)
        layers, unread = self._layers(problem, wanted)
        layers = gather(problem, layers, limit=limit, of_weights=signed)
        gates = [Gate.of(layer, problem.graph, problem.model) for layer in layers if not layer.is_reader]
        readers = [layer for layer in layers if layer.is_reader]
        total = np.zeros(len(wanted))
        for layer in readers:
            layer.read_scores(wanted, damping=self.damping, total=total)
        for gate in gates:
            gate.scores_(total, problem.graph, unread, damping=self.damping, first_order=signed)
        decision = _decision(problem, names, total, self.allocation)
        if self.update is False or not decision.plan.removed_count:
            return decision
        return Decision(decision.plan, self._updated(problem, decision.plan, readers, gates), decision.scores)

    def _layers(self, problem: Problem, wanted: Array) -> tuple[list[Layer], Array]:
        """Return what to look at, and which channels to score by what makes them: with form="input", those not read."""
        every, unread = products(problem.graph), wanted.copy()
        readers = [product for product in every if self.form == "input" and reads(product, wanted)]
        for product in readers:
            for line in product.columns:
                unread[line] = False
        makers = [p for p in every if any(unread[line].any() for line in out_lines(problem.graph, p))]
        sides = [*((product, True) for product in readers), *((product, False) for product in makers)]
        sampling = replace(self.sampling, seed=self.sampling.seed + problem.seed)
        model, graph = problem.model, problem.graph
        return [
            Layer(p, is_reader, sampling, is_reader and intercept_of(model, graph, p) is not None)
            for p, is_reader in sides
        ], unread

    def _updated(self, problem: Problem, plan: Plan, readers: list[Layer], gates: list[Gate]) -> nn.Module:
        """Return a copy of the model in which the weights that stay make up for those that go."""
        graph, alive = problem.graph, problem.graph.alive(plan)
        model = copy_with(problem.model, lambda _, tensor: tensor.detach().clone(memory_format=torch.preserve_format))
        for layer, view, use_count in _shared(model, graph, readers):
            own_bias = layer.product.bias is not None
            place = intercept_of(model, graph, layer.product) if own_bias or use_count == 1 else None
            layer.update_(view, place, alive, damping=self.damping)
        for gate in gates:
            gate.update_(model, graph, alive, damping=self.damping)
        return model


def _shared(model: nn.Module, graph: ChannelGraph, layers: list[Layer]) -> Iterator[tuple[Layer, Tensor, int]]:
    """Yield one layer for each weight, with the moments of all its uses, the weight, and how many uses."""
    found: dict[tuple[int, ...], tuple[Layer, Tensor, int]] = {}
    for layer in layers:
        view = weight_view(model, graph, layer.product)
        if view is None:
            log.info("%s is computed from parameters and stays as it is", layer.product.site.weight)
            continue
        key = view.data_ptr(), *view.shape, *view.stride()
        first, _, count = found.get(key, (None, view, 0))
        found[key] = layer if first is None else first.merged(layer), view, count + 1
    yield from found.values()


def _decision(problem: Problem, names: list[str], total: Array, allocation: Allocation) -> Decision:
    scores = {name: torch.from_numpy(total[problem.graph.groups[name].channels]) for name in names}
    return Decision(plan_from_scores(problem, scores, allocation), scores=scores)
