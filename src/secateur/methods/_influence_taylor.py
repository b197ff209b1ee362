"""What a channel costs when nothing makes up for it: the loss to second order along the ray that removes it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import MethodError
from ..graph.products import Product, Site, products, weight_view
from ..recovery.moments import taps_of
from ..surgery.shrink import copy_with
from ..train.batches import sample_count
from ..train.watching import Seen, kernel_of, write_kernel_
from ._curvature import twice_differentiable
from ._influence_layers import Array, blocks_along, reads
from ._problem import Problem
from ._pull_back import Pulled, batches, differentiable_copy, loss_of, pull_back, singles


def fisher_taylor_scores(products_per_sample: Tensor, *, first_order: bool = True) -> Tensor:
    """Return -mean(t) + 1/2 mean(t^2) for t = g_n' w_q, sample by sample; higher = keep.

    Args:
        products_per_sample: (samples, channels) t.
        first_order: count the first term.

    >>> fisher_taylor_scores(torch.tensor([[1.0, 0.0], [-1.0, 2.0]])).tolist()
    [0.5, 0.0]
    """
    second = products_per_sample.square().mean(dim=0) / 2
    return second - products_per_sample.mean(dim=0) if first_order else second


def taylor_scores(
    problem: Problem, wanted: Array, *, curvature: str, first_order: bool, limit: int | None = None
) -> Array:
    """Return -g'w + 1/2 w'Hw for the weights that read each channel, by channel number.

    Args:
        problem: model, data and task.
        wanted: bool over channel numbers.
        curvature: "fisher" or "hessian".
        first_order: count the first term.
        limit: how many samples are read at most, in whole batches; None = all.

    Raises:
        MethodError: data are missing, something is not finite, or a weight whose Hessian is asked for is computed.
    """
    readers = [product for product in products(problem.graph) if reads(product, wanted)]
    if curvature == "hessian":
        return _by_hessian(problem, wanted, readers, first_order=first_order, limit=limit)
    return _by_samples(problem, wanted, readers, first_order=first_order, limit=limit)


def _by_samples(
    problem: Problem, wanted: Array, readers: list[Product], *, first_order: bool, limit: int | None
) -> Array:
    model, of = differentiable_copy(problem.model), {p.site: p for p in readers}
    found: list[Array] = []
    with batches(problem.data, problem.task, model, "influence", seed=problem.seed) as data:
        for batch in data:
            assert problem.task is not None
            if limit is not None and len(found) >= limit:
                break
            for one in singles(batch, sample_count(*problem.task.to_inputs(batch))):
                rows: dict[Site, tuple[Tensor, Tensor]] = {}

                def see(seen: Seen, rows: dict[Site, tuple[Tensor, Tensor]] = rows) -> None:
                    rows[seen.site] = seen.inputs().clone(), seen.kernel()

                pulled = pull_back(model, one, problem.task, see=dict.fromkeys(of, see))
                found.append(_along(wanted, of, rows, pulled))
    return fisher_taylor_scores(torch.from_numpy(np.stack(found)), first_order=first_order).numpy()


def _along(
    wanted: Array, of: dict[Site, Product], rows: dict[Site, tuple[Tensor, Tensor]], pulled: dict[Site, Pulled]
) -> Array:
    """Return g'w of one sample for each channel: inputs times what is pulled back to them, summed over positions."""
    total = np.zeros(len(wanted))
    for site, back in pulled.items():
        inputs, kernel = rows[site]
        found = (inputs * (back.at_output.outputs() @ kernel)).double().sum(dim=1).cpu()
        if not bool(found.isfinite().all()):
            raise MethodError(
                f"{of[site].module or site.weight}: the gradient holds NaN or infinite values: check the data, and "
                "look for a root, a logarithm or a division at 0 behind it."
            )
        for g, own in enumerate(found):
            for channels, index in _columns(of[site], g, wanted):
                np.add.at(total, channels, own[index].sum(dim=1).numpy())
    return total


def _columns(product: Product, g: int, wanted: Array) -> Iterator[tuple[Array, Tensor]]:
    for line in product.columns:
        yield from blocks_along(line[g], wanted, taps_of(product))


def _by_hessian(
    problem: Problem, wanted: Array, readers: list[Product], *, first_order: bool, limit: int | None
) -> Array:
    model = differentiable_copy(problem.model)
    blank = copy_with(problem.model, lambda _, tensor: torch.zeros_like(tensor))
    rays = _Rays(problem, model, blank, wanted, readers)
    total, size = np.zeros(len(wanted)), 0
    with (
        batches(problem.data, problem.task, model, "influence", seed=problem.seed) as data,
        twice_differentiable(model),
    ):
        for batch in data:
            assert problem.task is not None
            loss, count = loss_of(model, batch, problem.task)
            slopes = torch.autograd.grad(loss, rays.parameters, create_graph=True, materialize_grads=True)
            for channel in rays.channels:
                ray = rays.of(channel)
                first = torch.stack([(slope * v).sum() for slope, v in zip(slopes, ray, strict=True)]).sum()
                bent = torch.autograd.grad(first, rays.parameters, retain_graph=True, materialize_grads=True)
                second = sum(float((b * v).sum()) for b, v in zip(bent, ray, strict=True))
                total[channel] += count * (second / 2 - (float(first.detach()) if first_order else 0.0))
            size += count
            if limit is not None and size >= limit:
                break
    return total / size


class _Rays:
    """For each channel, the weights that read it, with all others at zero."""

    def __init__(
        self, problem: Problem, model: nn.Module, blank: nn.Module, wanted: Array, readers: list[Product]
    ) -> None:
        views = [(p, weight_view(model, problem.graph, p), weight_view(blank, problem.graph, p)) for p in readers]
        if computed := [p.site.weight for p, own, _ in views if own is None]:
            raise MethodError(
                f"the weight made of {computed[0]!r} is computed: curvature='hessian' needs parameters, "
                "use curvature='fisher'."
            )
        names = sorted({p.site.weight for p in readers})
        self.parameters = [model.get_parameter(name) for name in names]
        self._blank = [blank.get_parameter(name).data for name in names]
        self._parts: dict[int, list[tuple[Product, Tensor, Tensor, int, Tensor]]] = {}
        for product, own, target in views:
            assert own is not None
            assert target is not None
            kernel = kernel_of(own, product.groups, **product.layout)
            for g in range(len(kernel)):
                for channels, index in _columns(product, g, wanted):
                    for channel, places in zip(channels.tolist(), index, strict=True):
                        self._parts.setdefault(channel, []).append((product, kernel, target, g, places))
        self.channels = sorted(self._parts)

    def of(self, channel: int) -> list[Tensor]:
        """Return the ray of one channel, in the order of `parameters`."""
        for tensor in self._blank:
            tensor.zero_()
        for product, kernel, target, g, places in self._parts[channel]:
            layout = product.layout
            changed = kernel_of(target, product.groups, **layout).clone()
            changed[g][:, places] = kernel[g][:, places].to(changed)
            write_kernel_(target, changed, **layout)
        return [tensor.clone() for tensor in self._blank]
