"""Re-fit what reads removed channels, by least squares: the repair that every choice of channels deserves.

A cut takes inputs away from the layers that read them. What is left can often stand in for what is gone: for each of
these layers, front to back, the weight of its remaining inputs (and its bias) is solved so that its outputs are as
before, on a few batches without labels. It works after any method.

Source: the reconstruction steps of He, Zhang, Sun 2017, "Channel Pruning for Accelerating Very Deep Neural Networks",
arXiv:1707.06168, section 3.2, and Luo, Wu, Lin 2017, "ThiNet", arXiv:1707.06342, section 3.2.3.

Where we differ: the solution is pulled towards the weights as they were, not towards zero, so that directions on which
the data say nothing stay as trained; the intercept goes into the bias, or into the running mean of a batch
normalisation that follows directly.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import MethodError, SurgeryError
from ..graph.groups import ChannelGraph
from ..graph.products import Product, products, weight_view
from ..graph.tape import Ref
from ..graph.walk import state_of
from ..plan import Plan
from ..surgery.mask import mask
from ..surgery.shrink import shrink
from ..train.progress import ProgressBar
from ..train.task import Task
from ..train.watching import kernel_of, write_kernel_
from .moments import ProductMoments, Sampling, product_moments, taps_of

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Refit:
    """How consumers are re-fitted.

    Attributes:
        ridge: pull towards the weights as they were, relative to the mean diagonal of the inputs' second moment.
        is_asymmetric: inputs come from the pruned network, so that later layers make up for what earlier ones lost
            (False: from the original one, as if nothing before had been cut).
        sampling: which samples are read, and which outputs of each layer are fitted.
        restores_sums: where a result is added to a shortcut, it makes up for what the shortcut lost (He et al. 2017,
            section 3.3). Nothing is lost there, and this changes nothing, unless `is_asymmetric`.
        max_bytes: largest second moment of one layer; larger layers are left as they are, with a warning in the log.

    Raises:
        MethodError: a number that makes no sense.
    """

    ridge: float = 1e-3
    is_asymmetric: bool = True
    sampling: Sampling = field(default_factory=Sampling)
    restores_sums: bool = True
    max_bytes: int = 2 << 30

    def __post_init__(self) -> None:
        if not 0 <= self.ridge < float("inf"):
            raise MethodError(f"ridge={self.ridge!r}: expected a number >= 0, relative to the inputs' second moment.")


def fitted_kernel(
    moments: ProductMoments, kernel: Tensor, *, ridge: float, has_intercept: bool
) -> tuple[Tensor, Tensor]:
    """Solve for the kernel that best gives the targets from these inputs.

    Minimises ``sum |y - W x - b|^2 + ridge * m * |W - kernel|^2`` with m the mean diagonal of the second moment.

    Args:
        moments: of the inputs that are left, and of the targets without bias.
        kernel: (groups, outputs, columns) weights of these inputs as they were.
        ridge: relative strength of the pull towards `kernel`.
        has_intercept: solve for b too; else it is 0.

    Returns:
        (groups, outputs, columns) kernel and (groups, outputs) intercept, float64.
    """
    kernel = kernel.double()
    second, cross = moments.centred() if has_intercept else (moments.second, moments.cross)
    columns = second.shape[-1]
    pull = ridge * second.diagonal(dim1=1, dim2=2).mean(dim=1)
    floor = torch.finfo(second.dtype).eps * columns * second.diagonal(dim1=1, dim2=2).amax(dim=1)
    system = second + torch.diag_embed((pull + floor + 1e-300)[:, None].expand(-1, columns))
    rest = cross - second @ kernel.transpose(1, 2)
    fitted = kernel + torch.linalg.solve(system, rest).transpose(1, 2)
    if not has_intercept:
        return fitted, torch.zeros_like(moments.targets)
    return fitted, (moments.targets - (fitted @ moments.inputs[..., None])[..., 0]) / moments.rows


def refit(
    model: nn.Module,
    graph: ChannelGraph,
    plan: Plan,
    data: Iterable[Any],
    task: Task,
    *,
    how: Refit | None = None,
    target: nn.Module | None = None,
    progress: bool | None = None,
) -> nn.Module:
    """Return a full-width copy of the model whose consumers of removed channels make do with the others.

    Cutting the copy by the same plan gives the repaired small network. Layers whose weight is computed from parameters
    (weight normalisation) or too large are left as they are.

    Args:
        model: full width, with the weights to start from; nothing of it changes.
        graph: its channel graph.
        plan: which channels go.
        data: batches, re-iterable; labels are not read. A few hundred samples do.
        task: how to read a batch.
        how: ridge, sampling and the like.
        target: full-width network whose outputs are restored; None = `model`.
        progress: True or False to force the progress bar; None = where there is a terminal.

    Raises:
        MethodError: activations are not finite.
        TrainingError: no batch, or a layer that a batch does not reach.

    >>> from secateur.graph import trace
    >>> from secateur.train.task import ClassificationTask
    >>> _ = torch.manual_seed(0)
    >>> net, x = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1)), torch.randn(8, 3)
    >>> _ = net[0].weight.data[1].copy_(net[0].weight.data[0]), net[0].bias.data.zero_()  # twins
    >>> plan = Plan.from_removed({"0": [1]}, {"0": 2})
    >>> repaired = refit(net, trace(net, x), plan, [(x, None)], ClassificationTask(), how=Refit(ridge=0))
    >>> small = shrink(repaired, trace(net, x), plan)
    >>> bool(torch.allclose(small(x), net(x), atol=1e-5))
    True
    """
    run = Refitting(copy.deepcopy(model), graph, plan, data, task, how or Refit(), model if target is None else target)
    waiting = [found for found in run.consumers() if run.fits(found[0][0])]
    with ProgressBar("re-fitting", len(waiting), visible=progress) as bar:
        for uses, view in waiting:
            run.refit_(uses, view)
            bar.advance()
    return run.work


@dataclass(frozen=True)
class Refitting:
    """A network whose consumers are re-fitted one after another; `refit` goes through all of them."""

    work: nn.Module  # full width; its weights are replaced layer by layer
    graph: ChannelGraph
    plan: Plan
    data: Iterable[Any]
    task: Task
    how: Refit
    target: nn.Module

    def consumers(self) -> list[tuple[list[Product], Tensor]]:
        """Return products that lose columns, front to back, uses of one weight together, with what to write into."""
        alive = self.graph.alive(self.plan)
        found: dict[Any, tuple[list[Product], Tensor]] = {}
        for product in products(self.graph):
            columns = product.alive_columns(alive)
            if product.reads_one or columns.all() or not columns.any(axis=1).all():
                continue
            view = weight_view(self.work, self.graph, product)
            if view is None:
                log.info("not re-fitted: the weight of %s is computed from other parameters", product.module)
                continue
            found.setdefault((view.data_ptr(), tuple(view.shape)), ([], view))[0].append(product)
        return list(found.values())

    def fits(self, product: Product) -> bool:
        """Whether the second moment of a layer's remaining inputs is not too large."""
        kept = kept_columns(product, self.graph, self.plan)
        needed = 8 * product.groups * kept.shape[1] ** 2
        if needed > self.how.max_bytes:
            log.warning(
                "not re-fitted: %s has %d columns left, whose second moment takes %.1f GiB (max_bytes=%d)",
                *(product.module, kept.shape[1], needed / 2**30, self.how.max_bytes),
            )
        return needed <= self.how.max_bytes

    def refit_(self, uses: list[Product], view: Tensor) -> None:
        """Solve for one weight and write it into `work`.

        The intercept is of the target's outputs, so it counts from the target's bias: `work` may have one already.
        """
        product = uses[0]
        kept = kept_columns(product, self.graph, self.plan)
        moments = self.moments(uses, kept)
        kernel = kernel_of(view, product.groups, **product.layout).clone()
        index = kept[:, None, :].expand(-1, kernel.shape[1], -1).to(kernel.device)
        place = intercept_of(self.work, self.graph, product) if len(uses) == 1 else None
        old = kernel.gather(2, index)
        new, intercept = fitted_kernel(moments, old, ridge=self.how.ridge, has_intercept=place is not None)
        with torch.no_grad():
            write_kernel_(view, kernel.scatter(2, index, new.to(kernel)), **product.layout)
            if place is not None:
                before = intercept_of(self.target, self.graph, product)
                assert before is not None
                place[0].copy_(before[0].to(place[0]) + place[1] * intercept.flatten().to(place[0]))

    def moments(self, uses: list[Product], kept: Tensor) -> ProductMoments:
        """Return the moments of a weight's remaining inputs, over all its uses."""
        sites = [product.site for product in uses]
        columns = dict.fromkeys(sites, kept)
        source, target = self.target, None
        if self.how.is_asymmetric:
            small = pruned_prefix(self.work, self.graph, self.plan)
            is_cut = small is not None and sites[0].weight in state_of(small, shared=True)
            source = small if small is not None and is_cut else mask(self.work, self.graph, self.plan)
            target, columns = self.target, {} if is_cut else columns
        found = product_moments(
            source,
            sites,
            self.data,
            self.task,
            self.how.sampling,
            target=target,
            columns=columns,
            restores_sums=self.how.restores_sums,
        )
        total = added(found.values())
        if total.rows < kept.shape[1]:
            log.warning("%s: %d rows for %d columns; the ridge decides", uses[0].module, total.rows, kept.shape[1])
        return total


def kept_columns(product: Product, graph: ChannelGraph, plan: Plan) -> Tensor:
    """Return (groups, n) indices of the columns of a product that a plan keeps, taps of one channel side by side."""
    alive = torch.from_numpy(product.alive_columns(graph.alive(plan))).repeat_interleave(taps_of(product), dim=1)
    counts = alive.sum(dim=1)
    if len(set(counts.tolist())) > 1:
        raise SurgeryError(f"{product.module}: its groups would keep different numbers of inputs: {counts.tolist()}.")
    return alive.nonzero()[:, 1].view(len(alive), -1)


def pruned_prefix(work: nn.Module, graph: ChannelGraph, plan: Plan) -> nn.Module | None:
    """Return the model cut by a plan; None where its code cannot express the cut."""
    try:
        return shrink(work, graph, plan)
    except SurgeryError as error:
        log.debug("the pruned network is run masked: %s", error)
        return None


def added(moments: Iterable[ProductMoments]) -> ProductMoments:
    """Return the sums over several uses of one weight."""
    first, *rest = [m for m in moments if m.rows]
    for other in rest:
        first.rows += other.rows
        for name in ("second", "cross", "inputs", "targets", "target_square"):
            setattr(first, name, getattr(first, name) + getattr(other, name))
    return first


def intercept_of(model: nn.Module, graph: ChannelGraph, product: Product) -> tuple[Tensor, int] | None:
    """Return where a constant can be added to a product's outputs: a parameter or statistic, and +1 or -1.

    Its own bias; or the running mean of the batch normalisation that takes its result as it is, by which it is lowered.
    None if there is neither.
    """
    state = state_of(model, shared=True)
    if product.bias is not None and state[product.bias].ndim == 1:
        return state[product.bias].detach(), 1
    out = product.op.out.number
    following = [op for op in graph.tape.ops[product.op.index + 1 :] if any(ref.number == out for ref in op.refs())]
    if len(following) != 1 or "batch_norm" not in following[0].name:
        return None
    mean = following[0].args[3]
    name = graph.tape.state.get(mean.number) if isinstance(mean, Ref) else None
    return (state[name], -1) if name is not None and following[0].args[0].number == out else None
