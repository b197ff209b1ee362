"""C-SGD: training pulls the filters of a cluster together until they are one filter, and the copies go at no cost.

Source: Ding, Ding, Guo, Han, "Centripetal SGD for Pruning Very Deep Convolutional Networks with Complicated Structure",
CVPR 2019, arXiv:1904.03837, and the authors' repository Centripetal-SGD.

Claim: filters that training has made identical can be cut down to one without any loss, since the next layer's weights
for the copies add up to one weight for the filter that stays; nothing has to be fine-tuned.

Equation: F_j <- F_j + tau dF_j, dF_j = -mean over k in H(j) of dL/dF_k - eta F_j + epsilon (mean over k in H(j) of F_k
- F_j), with F_j filter j, H(j) its cluster, tau the learning rate, eta the weight decay and epsilon the centripetal
strength; afterwards W_next[:, kept] = sum over k in H of W_next[:, k].

Cost: training by `recipe`; per step O(P) time and memory for the P weights that are clustered, a mean per cluster and
no matrix of filters by filters; k-means once, O(n r d) for n filters of d weights in r clusters.

Use it when the network will be trained for long anyway and residual streams are to become narrower too: what training
ends with is what is left after the cut.

Where we differ, and why:

- eta is the weight decay of the optimizer, on every parameter; the authors' code has none on biases and normalisations,
  and twice the learning rate on biases. The pull of these is epsilon * `vector_scale`, as in their code.
- Where training ends before a cluster has closed, what stays is the mean of its filters and statistics, where the
  authors keep the first filter. For closed clusters the two are the same. How far they are from closed is logged.
- In a residual stream the pacesetter's filters are clustered and the others follow, as in the paper: it is the 1x1
  projection into the stream, else the layer that opens it. Channels that several weights make elsewhere (attention
  heads, gated units) are clustered by all of these weights.
- Trimming has to change nothing, so what copies would change stays whole: channels that enter a statistic over
  channels (layer normalisation), that something reads without a weight for each, or with parts that do not train.
- `clusters="imbalanced"` makes the first filters one big cluster; the paper does not say which ones it takes.
- The contraction of a cluster by 1 - tau (eta + epsilon) per step is exact for plain SGD. With momentum clusters
  close too, by another factor; optimizers that scale each weight by itself close them unevenly.
- One run trains for one budget; the paper also goes in several runs of falling widths.
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import MethodError
from ..extras import require
from ..graph.groups import ChannelGraph
from ..graph.walk import parameters_of, state_of
from ..plan import Plan
from ..train.attachment import Moment
from ..train.schedules import Recipe
from ._attached import Attached, train_and_decide
from ._channel_sides import Place, Sides, channel_sides
from ._history import Standing
from ._problem import Decision, Problem
from ._scores import Allocation, counts_for, eligible, projection
from ._settings import check_settings
from ._taking_part import check_optimizer, own_state, tell_left_whole

log = logging.getLogger(__name__)
Array = np.ndarray[Any, Any]
CLUSTERS = ("kmeans", "even", "imbalanced")
CLOSED = 1e-6  # relative deviation, of squares, below which copies are copies; ours

PAPER_RECIPE = Recipe(
    epochs=600,
    lr=0.03,
    momentum=0.9,
    weight_decay=1e-4,
    nesterov=True,
    schedule="step",
    milestones=(1 / 3, 2 / 3),
    batch_size=64,
    source="Ding et al. 2019, arXiv:1904.03837, as in the authors' repository for ResNet-56 on CIFAR-10",
)


def cluster_means(rows: Tensor, cluster: Tensor, sizes: Tensor | None = None) -> Tensor:
    """Replace each row by the mean of its cluster; a row alone stays as it is, bit for bit.

    Args:
        rows: (filters, weights).
        cluster: (filters,) whole numbers from 0, without gaps.
        sizes: (clusters,) filters in each, if you have it.

    Returns:
        (filters, weights).

    >>> cluster_means(torch.tensor([[1.0], [5.0], [3.0]]), torch.tensor([0, 1, 0])).tolist()
    [[2.0], [5.0], [2.0]]
    """
    sizes = torch.bincount(cluster) if sizes is None else sizes
    sums = rows.new_zeros(len(sizes), rows.shape[1]).index_add_(0, cluster, rows)
    return (sums / sizes.to(rows.dtype)[:, None]).index_select(0, cluster)


def centripetal_gradient(
    gradient: Tensor, filters: Tensor, cluster: Tensor, strength: Tensor | float, *, sizes: Tensor | None = None
) -> Tensor:
    """Return the gradient that moves a cluster as one and pulls its filters to their mean.

    It is mean(dL/dF) + epsilon (F - mean(F)); the optimizer adds eta F. A filter alone keeps its own, bit for bit.

    Source: Ding et al. 2019, equation 4.

    Args:
        gradient: (filters, weights) dL/dF.
        filters: (filters, weights) F.
        cluster: (filters,) whole numbers from 0, without gaps.
        strength: epsilon, of all or (weights,).
        sizes: (clusters,) filters in each, if you have it.

    Returns:
        (filters, weights).

    >>> F, cluster = torch.tensor([[1.0], [3.0], [9.0]]), torch.tensor([0, 0, 1])
    >>> centripetal_gradient(torch.tensor([[0.0], [4.0], [7.0]]), F, cluster, 0.5).tolist()
    [[1.5], [2.5], [7.0]]
    """
    sizes = torch.bincount(cluster) if sizes is None else sizes
    pull = filters * strength
    merged = cluster_means(gradient - pull, cluster, sizes) + pull
    is_alone = (sizes == 1)[cluster]
    return torch.where(is_alone[:, None], gradient, merged)


def clustered(rows: Array, count: int, how: str, seed: int) -> Array:
    """Share filters out among clusters, none of them empty.

    Args:
        rows: (filters, weights).
        count: number of clusters, at most that of filters.
        how: "kmeans" of the weights, "even" runs of neighbours, or "imbalanced": one cluster of the first ones.
        seed: of k-means.

    Returns:
        (filters,) cluster of each, numbered in order of their first filters.

    Raises:
        MissingExtra: "kmeans", and scikit-learn is not installed.

    >>> clustered(np.zeros((5, 1)), 2, "even", 0).tolist(), clustered(np.zeros((5, 1)), 3, "imbalanced", 0).tolist()
    ([0, 0, 0, 1, 1], [0, 0, 0, 1, 2])
    >>> clustered(np.array([[0.0], [9.0], [0.1], [9.1]]), 2, "kmeans", 0).tolist()
    [0, 1, 0, 1]
    """
    width = len(rows)
    if how == "even" or count == width:
        return np.arange(width) * count // width if how == "even" else np.arange(width)
    if how == "imbalanced":
        return np.maximum(np.arange(width) - (width - count), 0)
    return _in_order(_none_empty(_kmeans(rows, count, seed), count))


def _kmeans(rows: Array, count: int, seed: int) -> Array:
    distinct, same = np.unique(rows, axis=0, return_inverse=True)
    if len(distinct) <= count:
        return np.asarray(same).ravel()
    cluster = require("sklearn.cluster", extra="train", purpose="centripetal_sgd with clusters='kmeans'")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # fewer clusters than asked for, where rows are nearly alike: see _none_empty
        found: Array = cluster.KMeans(count, n_init=1, random_state=seed % 2**32).fit(rows).labels_
    return found


def _none_empty(cluster: Array, count: int) -> Array:
    """Split the largest clusters until there are enough: filters alike are as good apart."""
    cluster = np.unique(cluster, return_inverse=True)[1].ravel()
    for number in range(int(cluster.max()) + 1, count):
        largest = int(np.bincount(cluster).argmax())
        cluster[np.flatnonzero(cluster == largest)[-1]] = number
    return cluster


def _in_order(cluster: Array) -> Array:
    """Number clusters by their first filters."""
    first = np.unique(cluster, return_index=True)[1]
    return np.argsort(np.argsort(first))[cluster]


@dataclass(frozen=True)
class CentripetalSgd:
    """Train clusters of filters into copies of each other, and keep one of each.

    Attributes:
        clusters: "kmeans" (the paper's best), "even" or "imbalanced".
        strength: epsilon, the pull of each filter to its cluster's mean, > 0; 3e-3 on CIFAR-10, 0.05 on ImageNet.
        vector_scale: times `strength`, the pull of biases and normalisations, > 0.
        allocation: "uniform" (the paper) or {module path: relative fraction}.
        residual: "prune" (the paper), "projection" or "skip": which residual streams become narrower.
        recipe: how to train, where we do.

    Raises:
        MethodError: a setting makes no sense.
    """

    clusters: str = "kmeans"
    strength: float = 3e-3
    vector_scale: float = 0.1
    allocation: Allocation = "uniform"
    residual: str = "prune"
    recipe: Recipe = PAPER_RECIPE

    def __post_init__(self) -> None:
        ranges = {
            "clusters": (self.clusters in CLUSTERS, f"one of {', '.join(CLUSTERS)}"),
            "strength": (0 < self.strength < math.inf, "a number above 0"),
            "vector_scale": (0 < self.vector_scale < math.inf, "a number above 0"),
        }
        check_settings(self, ranges)

    def decide(self, problem: Problem) -> Decision:
        """Train a copy and trim it; the decision's model has every copy's columns summed into the filter that stays.

        Raises:
            BudgetError: the budget is not reachable.
            MethodError: no data, no task, nothing that can be merged, or training left the finite numbers.
            MissingExtra: scikit-learn is not installed.
            NothingToPrune: no group is free to go.
        """
        return train_and_decide("centripetal_sgd", self, problem)

    def attach(self, problem: Problem) -> Attached:
        """Cluster the filters of the model as it is now, and return what merges their gradients.

        Raises:
            BudgetError: the budget is not reachable.
            MethodError: nothing can be merged, or weights are not finite real numbers.
        """
        names = eligible(problem, self.residual)
        problem.check_weights(names)
        merging = _mergeable(problem, names)
        counts = counts_for(problem, list(merging), self.allocation)
        return Centripetal(problem, self, [self._cluster(problem, own, counts[name]) for name, own in merging.items()])

    def _cluster(self, problem: Problem, sides: Sides, count: int) -> Clusters:
        state = state_of(problem.model, shared=True)
        rows = np.concatenate(
            [
                place.read(state[place.tensor].detach()).double().cpu().numpy()
                for place in _pacesetters(problem.graph, sides)
            ],
            axis=1,
        )
        return Clusters(sides, torch.from_numpy(clustered(rows, count, self.clusters, problem.seed)))


def _pacesetters(graph: ChannelGraph, sides: Sides) -> list[Place]:
    """Return the weights that decide over a group's clusters: in a residual stream one, else all that make it."""
    matrices = [place for place in sides.makers if len(graph.shapes[place.tensor]) > 1] or list(sides.makers)
    if not sides.group.is_residual:
        return matrices
    shortcut = projection(graph, sides.group)
    return [place for place in matrices if shortcut is not None and place.tensor == shortcut.tensor] or matrices[:1]


def _mergeable(problem: Problem, names: Sequence[str]) -> dict[str, Sides]:
    """Return the groups whose channels become copies when their makers do, and whose copies one can speak for."""
    trained = {name for name, p in parameters_of(problem.model, shared=True).items() if p.requires_grad}
    found, why = dict[str, Sides](), dict[str, str]()
    for name, sides in channel_sides(problem.model, problem.graph, names).items():
        fixed = [p.tensor for p in sides.makers if p.tensor not in trained and not _is_statistic(p.tensor)]
        if sides.is_in_statistics:
            why[name] = "they enter a statistic over channels"
        elif sides.obstacle or fixed:
            why[name] = sides.obstacle or f"{fixed[0]!r} does not train"
        else:
            found[name] = sides
    instead = "removes channels for their own sake, e.g. method='l1_filter'"
    tell_left_whole("centripetal_sgd", "merge", why, is_all=not found, instead=instead)
    return found


def _is_statistic(name: str) -> bool:
    return name.endswith(("running_mean", "running_var"))


@dataclass(frozen=True, eq=False)
class Clusters:
    """One group and the cluster of each of its channels.

    Attributes:
        sides: what makes and reads the channels.
        cluster: (width,) cluster of each, numbered in order of their first channels.
    """

    sides: Sides
    cluster: Tensor

    @property
    def name(self) -> str:
        """Of the group."""
        return self.sides.group.name

    @property
    def first(self) -> Tensor:
        """(width,) the first channel of each channel's cluster, which stays."""
        order = torch.arange(len(self.cluster)).flip(0)
        return torch.zeros_like(self.cluster).scatter_(0, self.cluster.flip(0), order)[self.cluster]

    @property
    def removed(self) -> list[int]:
        """Channels that go."""
        return (self.first != torch.arange(len(self.cluster))).nonzero().flatten().tolist()

    def close_(self, state: Mapping[str, Tensor]) -> float:
        """Make every cluster's rows their mean, in place; return how far they were, squared, relative to their size."""
        gap = total = 0.0
        for place in self.sides.makers:
            tensor = state[place.tensor]
            rows = place.read(tensor)
            merged = cluster_means(rows, self.cluster.to(rows.device))
            gap += float((rows.double() - merged.double()).square().sum())
            total += float(rows.double().square().sum())
            place.write_(tensor, merged)
        return gap / total if total else 0.0

    def gaps(self, model: nn.Module) -> Tensor:
        """Return (width,) distance of each channel's weights to the mean of its cluster, relative to that mean."""
        state = state_of(model, shared=True)
        gap, size = torch.zeros(2, len(self.cluster), dtype=torch.float64)
        for place in self.sides.makers:
            rows = place.read(state[place.tensor].detach()).double().cpu()
            merged = cluster_means(rows, self.cluster.cpu())
            gap += (rows - merged).square().sum(dim=1)
            size += merged.square().sum(dim=1)
        return torch.sqrt(gap / size.clamp(min=torch.finfo(size.dtype).tiny))

    def sum_columns_(self, state: Mapping[str, Tensor]) -> None:
        """Add the columns that read copies to those that read what stays, in place, and zero them."""
        for place in self.sides.readers:
            tensor = state[place.tensor]
            rows = place.read(tensor)
            summed = torch.zeros_like(rows).index_add_(0, self.first.to(rows.device), rows)
            place.write_(tensor, summed)


class Centripetal(Attached):
    """Merges gradients while a model trains, and trims it in the end.

    On several processes all come to the same clusters, for they start from the same weights and seed, and gradients
    are merged after they are averaged.
    """

    def __init__(self, problem: Problem, method: CentripetalSgd, groups: Sequence[Clusters]) -> None:
        super().__init__(problem)
        self.method = method
        self.groups = {group.name: group for group in groups}
        self._pulls: list[_Pull] | None = None

    def after_backward(self, moment: Moment) -> None:
        """Replace the gradient of every clustered weight."""
        if self._pulls is None:
            self._pulls = self._make_pulls(moment)
        with torch.no_grad():
            for pull in self._pulls:
                pull.apply_()

    def _make_pulls(self, moment: Moment) -> list[_Pull]:
        parameters = parameters_of(self.model, shared=True)
        result = []
        for group in self.groups.values():
            if not group.removed:
                continue
            places = [place for place in group.sides.makers if place.tensor in parameters]
            check_optimizer("centripetal_sgd", moment, [place.tensor for place in places])
            result.append(_Pull.of(places, parameters, group.cluster, self.method))
        return result

    def standing(self) -> Standing:
        """Return how far filters are from their clusters' means, relative to them; out are copies that are closed."""
        gaps = {name: group.gaps(self.model) for name, group in self.groups.items()}
        out = {name: int((gaps[name][group.removed] ** 2 <= CLOSED).sum()) for name, group in self.groups.items()}
        kept = {name: len(group.cluster) - len(group.removed) for name, group in self.groups.items()}
        return Standing(gaps, kept, out)

    def finish(self) -> Decision:
        """Return the plan, and trim the trained model IN PLACE, so that cutting it by the plan is all that is left.

        A trimmed model is as wide as before and, where clusters were closed, computes the same. To ask twice is to ask
        once.
        """
        plan = Plan.from_removed({n: g.removed for n, g in self.groups.items()}, self.problem.graph.widths)
        gaps = trim_(self.model, list(self.groups.values()))
        widest = max(gaps, key=lambda name: gaps[name], default="")
        if widest and gaps[widest] > CLOSED:
            log.warning(
                "centripetal_sgd: clusters are not closed, in %r by %.1e of the weights' squares, so that trimming "
                "changes the network: train longer, or raise strength=%g or the learning rate",
                *(widest, gaps[widest], self.method.strength),
            )
        return Decision(plan, repair="batchnorm")

    def state_dict(self) -> dict[str, Any]:
        """Return the clusters."""
        return {"method": "centripetal_sgd", "clusters": {n: g.cluster.tolist() for n, g in self.groups.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take the clusters up.

        Raises:
            MethodError: the state is of another method or of other groups.
        """
        found = own_state(state, "centripetal_sgd")["clusters"]
        if {n: len(c) for n, c in found.items()} != {n: len(g.cluster) for n, g in self.groups.items()}:
            raise MethodError(
                f"centripetal_sgd was given clusters of {sorted(found)[:4]} to go on from, and this run has "
                f"{sorted(self.groups)[:4]} in other widths or names: attach it to the same model, or start anew."
            )
        self.groups = {n: Clusters(g.sides, torch.tensor(found[n])) for n, g in self.groups.items()}
        self._pulls = None


def trim_(model: nn.Module, groups: Sequence[Clusters]) -> dict[str, float]:
    """Make one filter of each cluster stand for all, IN PLACE: rows become their means, columns move to what stays.

    The model keeps its width and, where clusters were closed, computes what it did.

    Returns:
        Group -> how far its clusters were from closed: squared deviation relative to the squared weights.
    """
    state = {name: tensor.detach() for name, tensor in state_of(model, shared=True).items()}
    gaps = {group.name: group.close_(state) for group in groups if group.removed}
    for group in groups:
        group.sum_columns_(state)
    return gaps


@dataclass(frozen=True, eq=False)
class _Pull:
    """The makers of one group, side by side, so that a step takes a few operations for all of them."""

    parameters: list[nn.Parameter]
    places: list[Place]
    sizes: list[int]  # elements per channel of each maker
    cluster: Tensor
    members: Tensor  # (clusters,) channels in each
    strength: Tensor  # (elements per channel,) over all makers

    @classmethod
    def of(
        cls, places: Sequence[Place], parameters: Mapping[str, nn.Parameter], cluster: Tensor, method: CentripetalSgd
    ) -> _Pull:
        own = [parameters[place.tensor] for place in places]
        device = own[0].device
        sizes = [place.read(p.detach()).shape[1] for place, p in zip(places, own, strict=True)]
        strengths = [method.strength * (method.vector_scale if p.ndim < 2 else 1.0) for p in own]
        strength = torch.tensor(strengths, dtype=own[0].dtype).repeat_interleave(torch.tensor(sizes)).to(device)
        here = [place.to(device) for place in places]
        return cls(own, here, sizes, cluster.to(device), torch.bincount(cluster).to(device), strength)

    def apply_(self) -> None:
        """Merge the gradients, in place."""
        for parameter in self.parameters:
            if parameter.grad is None:  # not used by this batch; the pull goes on
                parameter.grad = torch.zeros_like(parameter)
        grads = [p.grad for p in self.parameters if p.grad is not None]
        gradient = torch.cat([place.read(g) for place, g in zip(self.places, grads, strict=True)], dim=1)
        filters = torch.cat([place.read(p) for place, p in zip(self.places, self.parameters, strict=True)], dim=1)
        merged = centripetal_gradient(gradient, filters, self.cluster, self.strength, sizes=self.members)
        for place, grad, rows in zip(self.places, grads, merged.split(self.sizes, dim=1), strict=True):
            place.write_(grad, rows)
