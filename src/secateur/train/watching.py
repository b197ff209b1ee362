"""Run a model and see what chosen products read and give, on any architecture.

The operations themselves are watched, below modules: it does not matter whether a weight belongs to a ``Linear``, is
used through ``torch.nn.functional``, or is a slice of a packed one. The model runs in eval mode without gradients, only
as far as needed, and is as before afterwards, also after an exception.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ..errors import TrainingError
from ..graph.products import CONVOLUTION, Site, Uses, factors_of
from ..graph.tape import op_name, plain_kernels, set_training, state_names, tensors, untouched
from .batches import explained, to_device
from .randomness import same_loader_after, same_randomness_after
from .task import Inputs, Task


@dataclass(frozen=True, eq=False)
class Seen:
    """One product while the model runs: what it read, with which weight, and what it gave.

    To be used while the pass goes on: what comes later may write into the same memory.

    Rows are the places where it computes an output: one for each position of each sample.

    Attributes:
        site: which product.
        args: the operation's own arguments.
        source: what it read.
        weight: the weight as the operation takes it.
        out: what it gave, with bias.
        is_convolution: a convolution, of any rank.
        is_weight_first: the weight is the left factor of a matrix product.
    """

    site: Site
    args: Sequence[Any]
    source: Tensor
    weight: Tensor
    out: Tensor
    is_convolution: bool
    is_weight_first: bool

    @property
    def groups(self) -> int:
        """Number of blocks that read channels of their own."""
        if self.is_convolution:
            return int(self.args[8])
        return self.weight.shape[0] if self.weight.ndim == 3 and self.weight.stride(0) else 1

    @property
    def row_count(self) -> int:
        """Number of rows."""
        if self.is_convolution:
            return self.out.shape[0] * self.out[0, 0].numel()
        rows = self._matrix(self.out)
        return rows.shape[1]

    def kernel(self) -> Tensor:
        """Return the weight as (groups, outputs per group, columns); a channel's taps are neighbouring columns."""
        layout = {"is_convolution": self.is_convolution, "is_weight_first": self.is_weight_first}
        return kernel_of(self.weight, self.groups, transposed=self._transposed, **layout)

    def outputs(self, rows: Tensor | slice = slice(None)) -> Tensor:
        """Return (groups, rows, outputs per group) what it gave at these rows, without bias."""
        found = self.at(self.out, rows)
        if self.bias is None:
            return found
        if self.is_convolution:
            return found - self.bias.view(self.groups, 1, -1)
        return found - self.at(self.bias.expand_as(self.out), rows)

    def at(self, result: Tensor, rows: Tensor | slice = slice(None)) -> Tensor:
        """Return (groups, rows, outputs per group) of something in the shape of the result, at these rows."""
        if not self.is_convolution:
            return self._matrix(result)[:, rows]
        flat = result.flatten(start_dim=2).transpose(1, 2).reshape(-1, result.shape[1])[rows]
        return flat.view(len(flat), self.groups, -1).transpose(0, 1)

    @property
    def bias(self) -> Tensor | None:
        """What the operation adds to the product, if it does."""
        if self.is_convolution:
            found = self.args[2]
        else:
            found = self.args[0] if len(self.args) > 2 else None
        return found.detach() if isinstance(found, Tensor) else None

    def inputs(self, rows: Tensor | slice = slice(None)) -> Tensor:
        """Return (groups, rows, columns) what it read at these rows: zeros where a kernel reaches beyond the edge."""
        if not self.is_convolution:
            return self._matrix(self.source)[:, rows]
        number = torch.arange(self.row_count, device=self.source.device)[rows]
        area = self.out[0, 0].numel()
        where, is_inside = self._taps(number % area)
        flat = self.source.flatten(start_dim=2)
        found = flat[(number // area)[:, None], :, where].masked_fill(~is_inside[..., None], 0.0)  # (rows, taps, chan.)
        count, taps, _ = found.shape
        return found.view(count, taps, self.groups, -1).permute(2, 0, 3, 1).reshape(self.groups, count, -1)

    @property
    def _transposed(self) -> bool:
        return self.is_convolution and bool(self.args[6])

    def _matrix(self, factor: Tensor) -> Tensor:
        """Return a factor or result as (groups, rows, columns)."""
        found = factor.transpose(-1, -2) if self.is_weight_first else factor
        if self.groups == 1:
            return found.reshape(1, -1, found.shape[-1])
        return found

    def _taps(self, position: Tensor) -> tuple[Tensor, Tensor]:
        """Return (rows, taps) which place of the input each tap reads at these positions, and whether it is inside."""
        size, outer, inner = self.weight.shape[2:], self.out.shape[2:], self.source.shape[2:]
        rank = len(size)
        stride, padding, dilation = (_as_list(self.args[k], rank) for k in (3, 4, 5))
        place = torch.unravel_index(position, tuple(outer))
        tap = torch.unravel_index(torch.arange(size.numel(), device=position.device), tuple(size))
        where = torch.zeros(len(position), size.numel(), dtype=torch.long, device=position.device)
        is_inside = torch.ones_like(where, dtype=torch.bool)
        for d in range(rank):
            if self._transposed:
                scaled = place[d][:, None] + padding[d] - tap[d] * dilation[d]
                line, fits = scaled // stride[d], scaled % stride[d] == 0
                is_inside &= fits
            else:
                line = place[d][:, None] * stride[d] - padding[d] + tap[d] * dilation[d]
            is_inside &= (line >= 0) & (line < inner[d])
            where = where * inner[d] + line.clamp(0, inner[d] - 1)
        return where, is_inside


def kernel_of(weight: Tensor, groups: int, *, transposed: bool, is_convolution: bool, is_weight_first: bool) -> Tensor:
    """Return a weight, as its operation takes it, as (groups, outputs per group, columns); a view where it can be."""
    if is_convolution:
        blocks: Tensor = weight.unflatten(0, (groups, -1))
        return (blocks.transpose(1, 2) if transposed else blocks).flatten(start_dim=3).flatten(start_dim=2)
    matrix = weight if is_weight_first else weight.transpose(-1, -2)
    if matrix.ndim == 3:
        return matrix if groups > 1 else matrix[:1]
    return matrix[None]


def write_kernel_(
    weight: Tensor, kernel: Tensor, *, transposed: bool, is_convolution: bool, is_weight_first: bool
) -> None:
    """Write a (groups, outputs per group, columns) kernel into a weight as its operation takes it, in place."""
    groups = len(kernel)
    if is_convolution:
        own = weight.unflatten(0, (groups, -1))
        own = own.transpose(1, 2) if transposed else own
        own.copy_(kernel.reshape(own.shape))
        return
    own = weight if is_weight_first else weight.transpose(-1, -2)
    own.copy_(kernel if own.ndim == 3 else kernel[0])


def _as_list(value: Sequence[int], rank: int) -> list[int]:
    return [*value] * rank if len(value) == 1 else [*value]


class _Enough(BaseException):
    """Ends a forward pass once everything was seen; never leaves this file."""


See = Mapping[Site, Callable[[Seen], None]]
SeeSum = Mapping[Site, Callable[["Sum"], None]]


@dataclass(frozen=True, eq=False)
class Sum:
    """What is added to the result of a product, after at most a batch normalisation: the shortcut of a residual block.

    Attributes:
        shortcut: the other operand, in the shape of the product's result.
        scale: (outputs,) what the batch normalisation in between multiplies by; None = there is none.
    """

    shortcut: Tensor
    scale: Tensor | None


class ProductWatch(TorchDispatchMode):
    """Recognises products of an activation with a weight as they run."""

    def __init__(self, names: dict[int, str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.uses: Uses[int] = Uses(names)
        self.held: list[Tensor] = []  # tensors that are known by identity must outlive the pass

    def seen(self, func: Any, args: Any, kwargs: Any, out: Any, wanted: Container[Site]) -> Seen | None:
        """Take an operation into account; return it if it is one of the wanted products."""
        name = op_name(func)
        factors = factors_of(name, args)
        site = self.uses.site((id(factors[0]), id(factors[1]))) if factors is not None else None
        if site is None or factors is None:
            results = tensors(out)
            self.uses.follow([id(t) for t in tensors((args, kwargs))], [id(t) for t in results])
            self.held += [t for t in results if id(t) in self.uses.names]
            return None
        if site[0] not in wanted:
            return None
        source, weight = (factor.detach() for factor in (factors[::-1] if site[1] else factors))
        return Seen(site[0], args, source, weight, out.detach(), name == CONVOLUTION, site[1])


class _Watch(ProductWatch):
    def __init__(self, names: dict[int, str], see: See, see_sum: SeeSum) -> None:
        super().__init__(names)
        self.see, self.see_sum, self.left = see, see_sum, set(see)
        self.tails: dict[int, tuple[Site, Tensor, Tensor | None]] = {}  # what became of a result on its way to a sum

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func.namespace == "prim":
            return out
        found = self.seen(func, args, kwargs, out, self.left)
        if found is not None:
            self.left.discard(found.site)
            self.see[found.site](found)
            if found.site in self.see_sum:
                self._follow(out, (found.site, out, None))
        if self.tails:
            self._pass_on(op_name(func), args, out)
        if not self.left and not self.tails:
            raise _Enough
        return out

    def _follow(self, result: Tensor, tail: tuple[Site, Tensor, Tensor | None]) -> None:
        self.tails[id(result)] = tail
        self.held.append(result)

    def _pass_on(self, name: str, args: Any, out: Any) -> None:
        """Follow results of products through views and one batch normalisation to the sum that they enter."""
        found = [k for k, value in enumerate(args) if isinstance(value, Tensor) and id(value) in self.tails]
        if not found or (isinstance(out, Tensor) and id(out) in self.tails):
            return
        site, result, scale = self.tails.pop(id(args[found[0]]))
        if name == "add" and len(found) == 1 and isinstance(other := args[1 - found[0]], Tensor):
            if other.numel() == result.numel():
                self.see_sum[site](Sum(other.detach().reshape(result.shape), scale))
        elif name in ("view", "_unsafe_view", "reshape", "unsqueeze", "squeeze"):
            self._follow(out, (site, result, scale))
        elif "batch_norm" in name and scale is None and found == [0]:
            self._follow(out[0], (site, result, _scale_of(args)))


def _scale_of(args: Any) -> Tensor:
    """Return what a batch normalisation in eval mode multiplies by, from its arguments."""
    weight, variance, epsilon = args[1], args[4], args[-1]
    scale: Tensor = (variance + epsilon).rsqrt().detach()
    return scale if weight is None else scale * weight.detach()


def watch(model: nn.Module, inputs: Inputs, see: See, see_sum: SeeSum | None = None) -> None:
    """Run a model in eval mode and call a function for each of these products as it happens.

    The pass ends after the last of them.

    Args:
        model: runs where it is; nothing of it changes.
        inputs: positional and keyword inputs, on the model's device.
        see: site -> what to call.
        see_sum: site -> what to call when the product's result is added to something; not called where it is not.

    Raises:
        TrainingError: the pass came to its end without one of them.

    >>> from secateur.graph import trace
    >>> net = nn.Linear(2, 1)
    >>> watch(net, ((torch.eye(2),), {}), {Site("weight"): lambda seen: print(seen.inputs().tolist())})
    [[[1.0, 0.0], [0.0, 1.0]]]
    """
    if not see:
        return
    mode = _Watch(state_names(model), see, see_sum or {})
    with contextlib.suppress(_Enough):
        _run(model, inputs, mode)
    used = {site.weight for site in mode.see.keys() - mode.left}  # a recurrent layer may use its weight less often
    if unused := sorted(site for site in mode.left if site.weight not in used):
        missing = unused[0]
        raise TrainingError(
            f"the model did not use {missing.weight!r} (use {missing.use}) on this batch, though it did on the example "
            "input: its control flow follows the data. Protect that layer, or give data that take the same way."
        )


def products_run(model: nn.Module, inputs: Inputs, weights: Container[str]) -> list[Site]:
    """Run a model in eval mode and return every product with one of these weights, in the order in which they happen.

    Args:
        model: runs where it is; nothing of it changes.
        inputs: positional and keyword inputs, on the model's device.
        weights: names of parameters.

    >>> net = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    >>> products_run(net, ((torch.eye(2),), {}), ["0.weight", "1.weight"])
    [Site(weight='0.weight', use=0), Site(weight='1.weight', use=0)]
    """
    mode = _List(state_names(model), weights)
    _run(model, inputs, mode)
    return mode.found


class _List(ProductWatch):
    """Writes down which products with some weights happen."""

    def __init__(self, names: dict[int, str], weights: Container[str]) -> None:
        super().__init__(names)
        self.weights = weights
        self.found: list[Site] = []

    def __contains__(self, site: object) -> bool:
        return isinstance(site, Site) and site.weight in self.weights

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func.namespace != "prim" and (seen := self.seen(func, args, kwargs, out, self)) is not None:
            self.found.append(seen.site)
        return out


def _run(model: nn.Module, inputs: Inputs, mode: ProductWatch) -> None:
    args, kwargs = inputs
    is_recurrent = any(isinstance(module, nn.RNNBase) for module in model.modules())
    kernels = plain_kernels() if is_recurrent else _no_fused_attention()
    with untouched(model), torch.no_grad(), kernels:
        set_training(model, False)
        with mode, explained():
            model(*args, **kwargs)


@contextlib.contextmanager
def _no_fused_attention() -> Iterator[None]:
    fastpath = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fastpath)


@contextlib.contextmanager
def input_batches(data: Iterable[Any], task: Task, device: torch.device) -> Iterator[Iterator[Inputs]]:
    """Give what to call the model with, batch by batch; random numbers and the loader are as before after the block.

    Raises:
        TrainingError: there is no batch, or the task cannot read one.

    >>> from secateur.train.task import ClassificationTask
    >>> with input_batches([(torch.zeros(2, 3), torch.zeros(2))], ClassificationTask(), torch.device("cpu")) as batches:
    ...     [args[0].shape for args, kwargs in batches]
    [torch.Size([2, 3])]
    """
    with same_randomness_after(device), same_loader_after(data):
        yield _inputs(data, task, device)


def _inputs(data: Iterable[Any], task: Task, device: torch.device) -> Iterator[Inputs]:
    count = 0
    for batch in data:
        count += 1
        with explained():
            inputs = task.to_inputs(to_device(batch, device))
        yield inputs
    if not count:
        raise TrainingError("data= gave no batch; a generator can be read once only, pass a list or a loader.")


def drawn_rows(row_count: int, wanted: int | None, *seed: int) -> Tensor | None:
    """Draw row numbers without replacement, the same for the same seed; None = all rows.

    >>> drawn_rows(4, 2, 0, 1).tolist() == drawn_rows(4, 2, 0, 1).tolist()
    True
    """
    if wanted is None or wanted >= row_count:
        return None
    mixed = int(np.random.SeedSequence(seed).generate_state(1, np.uint64)[0] >> np.uint64(1))
    return torch.randperm(row_count, generator=torch.Generator().manual_seed(mixed))[:wanted].sort().values
