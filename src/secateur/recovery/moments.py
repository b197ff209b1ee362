"""Second moments of what a product reads, streamed over batches: all that least squares and channel selection need.

Nothing is stored but the sums, in float64, so memory does not grow with the number of samples:

- `ProductMoments`, for one product: the (columns x columns) second moment of its inputs and the cross moment with its
  targets, from which any re-fit of its weight follows.
- `ChannelMoments`, for one group: the Gram matrix of what each *channel* contributes to the outputs of everything that
  reads it. Its size is (channels x channels), and it is summed block by block, so wide layers fit too.

Inputs may come from an already pruned prefix and targets from the original network (the asymmetric form).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import MethodError
from ..graph.groups import ChannelGraph, ChannelGroup
from ..graph.products import Product, Site
from ..train.batches import device_of, sample_count
from ..train.task import Inputs, Task
from ..train.watching import Seen, Sum, drawn_rows, input_batches, watch

BLOCK = 1024  # columns of a second moment that are formed at once


@dataclass(frozen=True)
class Sampling:
    """Where moments are taken.

    Attributes:
        rows_per_sample: outputs (positions) drawn at random from each sample of a layer; None = all of them.
        max_samples: how many samples of the data are read at most, in whole batches; None = all.
        seed: makes the draw repeatable, and the same for every network that is compared.

    Raises:
        MethodError: a number below 1.
    """

    rows_per_sample: int | None = 64
    max_samples: int | None = 512
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("rows_per_sample", "max_samples"):
            count = getattr(self, name)
            if count is not None and (isinstance(count, bool) or not isinstance(count, int) or count < 1):
                raise MethodError(f"{name}={count!r}: expected a whole number >= 1, or None for all.")

    def rows(self, row_count: int, samples: int, batch: int, site: Site) -> Tensor | slice:
        """Rows to take of one product in one batch: the same for the same batch, whatever the network's widths."""
        wanted = None if self.rows_per_sample is None else self.rows_per_sample * samples
        drawn = drawn_rows(row_count, wanted, self.seed, batch, *site.weight.encode(), site.use)
        return slice(None) if drawn is None else drawn


Rows = Callable[[Seen], Tensor | slice]
Pair = Callable[[Site, Tensor, Tensor, Tensor], None]
"""Called with a site and, for the drawn rows: inputs (groups, rows, columns), outputs (groups, rows, outputs) without
bias, both float64, and the kernel (groups, outputs, columns) that reads these inputs, as it is."""


def stream(
    model: nn.Module,
    sites: Iterable[Site],
    data: Iterable[Any],
    task: Task,
    sampling: Sampling,
    take: Pair,
    *,
    target: nn.Module | None = None,
    restores_sums: bool = False,
) -> None:
    """Run a model over all batches and pass on what these products read and should give.

    Args:
        model: whose inputs are read; nothing of it changes.
        sites: which products.
        data: batches; only the inputs that `task` takes from them are used.
        task: how to read a batch.
        sampling: which rows.
        take: called once for each site and batch.
        target: whose outputs are the targets; None = `model` itself.
        restores_sums: where a result is added to a shortcut, the target makes up for what the shortcut lost (He et al.
            2017, section 3.3: Y1 - Y1' + Y2); not for a weight with several of the products, since the shortcut of one
            may come from another and change with it.

    Raises:
        MethodError: an input or output is not finite; names the layer.
        TrainingError: no batch, or a product that a batch does not reach.
    """
    wanted, read_count = list(sites), 0
    uses = Counter(site.weight for site in wanted)
    summed = [site for site in wanted if restores_sums and target is not None and uses[site.weight] == 1]
    with input_batches(data, task, device_of(model)) as batches:
        for number, inputs in enumerate(batches):
            samples = sample_count(*inputs)
            rows = partial(_rows, sampling, samples, number)
            own = _Batch(model, inputs, wanted, rows, has_inputs=True, summed=summed)
            theirs = own if target is None else _Batch(target, inputs, wanted, rows, summed=summed)
            for site in own.inputs:
                given = theirs.outputs[site]
                if site in own.sums and site in theirs.sums:
                    given = given + own.lost(site, theirs)
                _check_finite(site, own.inputs[site], given)
                take(site, own.inputs[site], given, own.kernels[site])
            read_count += samples
            if sampling.max_samples is not None and read_count >= sampling.max_samples:
                return


class _Batch:
    """What chosen products read and give on one batch, at the drawn rows, in float64."""

    def __init__(
        self,
        model: nn.Module,
        inputs: Inputs,
        sites: list[Site],
        rows: Rows,
        *,
        has_inputs: bool = False,
        summed: Sequence[Site] = (),
    ) -> None:
        self.inputs: dict[Site, Tensor] = {}
        self.outputs: dict[Site, Tensor] = {}
        self.kernels: dict[Site, Tensor] = {}
        self.sums: dict[Site, tuple[Tensor, Tensor | None]] = {}  # shortcut at the rows, scale before it
        places: dict[Site, Callable[[Tensor], Tensor]] = {}

        def see(seen: Seen) -> None:
            chosen, site = rows(seen), seen.site
            places[site] = partial(seen.at, rows=chosen)
            self.outputs[site] = seen.outputs(chosen).double()
            if has_inputs:
                self.inputs[site], self.kernels[site] = seen.inputs(chosen).double(), seen.kernel()

        def see_sum(site: Site, found: Sum) -> None:
            scale = None if found.scale is None else found.scale.double()
            self.sums[site] = places[site](found.shortcut).double(), scale

        watch(model, inputs, dict.fromkeys(sites, see), {site: partial(see_sum, site) for site in summed})

    def lost(self, site: Site, original: _Batch) -> Tensor | float:
        """Return what the shortcut beside a product's result lost, in the units of that result; 0 if it was cut too."""
        (before, scale), (now, _) = original.sums[site], self.sums[site]
        if before.shape != now.shape:
            return 0.0
        if scale is None:
            return before - now
        scale = scale.view(before.shape[0], 1, -1)
        return torch.where(scale == 0, 0.0, (before - now) / torch.where(scale == 0, 1.0, scale))


def _rows(sampling: Sampling, samples: int, batch: int, seen: Seen) -> Tensor | slice:
    rows = sampling.rows(seen.row_count, samples, batch, seen.site)
    return rows.to(seen.source.device) if isinstance(rows, Tensor) else rows


def _check_finite(site: Site, *tensors: Tensor) -> None:
    if not all(bool(tensor.isfinite().all()) for tensor in tensors):
        raise MethodError(
            f"the inputs or outputs of {site.weight.removesuffix('.weight')!r} hold NaN or infinite values on the "
            "data given: nothing can be fitted to them. Check the data and the weights before this layer."
        )


# -- one product ----------------------------------------------------------------------------------------------------


@dataclass
class ProductMoments:
    """Sums over rows of one product. D columns (input channels x taps), O outputs, both per group of the product.

    Attributes:
        rows: number of rows.
        second: (groups, D, D) sum of x x^T.
        cross: (groups, D, O) sum of x y^T.
        inputs: (groups, D) sum of x.
        targets: (groups, O) sum of y.
        target_square: (groups, O) sum of y^2.
    """

    rows: int = 0
    second: Tensor = field(default_factory=lambda: torch.zeros(()))
    cross: Tensor = field(default_factory=lambda: torch.zeros(()))
    inputs: Tensor = field(default_factory=lambda: torch.zeros(()))
    targets: Tensor = field(default_factory=lambda: torch.zeros(()))
    target_square: Tensor = field(default_factory=lambda: torch.zeros(()))

    def add(self, inputs: Tensor, targets: Tensor) -> None:
        """Take in (groups, rows, D) inputs and (groups, rows, O) targets, float64."""
        self.rows += inputs.shape[1]
        turned = inputs.transpose(1, 2)
        self.second = self.second + turned @ inputs
        self.cross = self.cross + turned @ targets
        self.inputs = self.inputs + inputs.sum(dim=1)
        self.targets = self.targets + targets.sum(dim=1)
        self.target_square = self.target_square + targets.square().sum(dim=1)

    def centred(self) -> tuple[Tensor, Tensor]:
        """Return second and cross moments about the means, still as sums."""
        second = self.second - self.inputs[:, :, None] * self.inputs[:, None, :] / self.rows
        return second, self.cross - self.inputs[:, :, None] * self.targets[:, None, :] / self.rows

    def restricted(self, columns: Tensor) -> ProductMoments:
        """Return the moments of (groups, n) of the columns: what only these inputs would have given."""
        index = columns.to(self.second.device)
        block = torch.arange(len(index), device=index.device)[:, None]
        second = self.second[block[..., None], index[:, :, None], index[:, None, :]]
        cross, inputs = self.cross[block, index], self.inputs[block, index]
        return ProductMoments(self.rows, second, cross, inputs, self.targets, self.target_square)

    def error(self, kernel: Tensor, bias: Tensor) -> float:
        """Return the sum of squared errors of a (groups, O, D) kernel and (groups, O) bias on these rows."""
        kernel = kernel.to(self.second)
        bias = bias.to(self.second)
        made = torch.einsum("god,gde,goe->go", kernel, self.second, kernel)
        met = torch.einsum("god,gdo->go", kernel, self.cross)
        drift = (kernel @ self.inputs[..., None])[..., 0]
        total = self.target_square + made - 2 * met + 2 * bias * (drift - self.targets) + self.rows * bias.square()
        return float(total.sum().clamp(min=0))


def product_moments(
    model: nn.Module,
    sites: Iterable[Site],
    data: Iterable[Any],
    task: Task,
    sampling: Sampling | None = None,
    *,
    target: nn.Module | None = None,
    columns: Mapping[Site, Tensor] | None = None,
    restores_sums: bool = False,
) -> dict[Site, ProductMoments]:
    """Return the moments of what each product reads, and of its targets (its outputs, without bias).

    Args:
        model: whose inputs are read.
        sites: which products.
        data: batches.
        task: how to read a batch.
        sampling: which rows; None = the default.
        target: whose outputs are the targets; None = `model` itself.
        columns: site -> (groups, n) indices of the columns to take; all of those not named.
        restores_sums: see `stream`.

    Raises:
        MethodError: an input or output is not finite.
        TrainingError: no batch, or a product that a batch does not reach.
    """
    found: dict[Site, ProductMoments] = {site: ProductMoments() for site in sites}

    def take(site: Site, inputs: Tensor, targets: Tensor, _kernel: Tensor) -> None:
        if columns is not None and site in columns:
            chosen = columns[site].to(inputs.device)
            inputs = inputs.gather(2, chosen[:, None, :].expand(-1, inputs.shape[1], -1))
        found[site].add(inputs, targets)

    stream(model, found, data, task, sampling or Sampling(), take, target=target, restores_sums=restores_sums)
    return found


# -- the channels of one group --------------------------------------------------------------------------------------


@dataclass
class ChannelMoments:
    """How the channels of a group add up to the outputs of what reads them.

    With z_c the contribution of channel c to the outputs (its columns times their weights) and y the outputs without
    bias, all stacked over rows and outputs:

    Attributes:
        gram: (width, width) sum of z_a z_b.
        target: (width,) sum of z_c y.
        target_square: sum of y^2.
        rows: number of rows.
    """

    gram: Tensor
    target: Tensor
    target_square: float = 0.0
    rows: int = 0

    @classmethod
    def empty(cls, width: int) -> ChannelMoments:
        """Return moments of nothing."""
        return cls(torch.zeros(width, width, dtype=torch.float64), torch.zeros(width, dtype=torch.float64))

    def add(self, gram: Tensor, target: Tensor, target_square: float, rows: int) -> None:
        """Take in more rows."""
        self.gram = self.gram + gram.cpu()
        self.target = self.target + target.cpu()
        self.target_square += target_square
        self.rows += rows

    def relative(self) -> ChannelMoments:
        """Return the moments per unit of the target's energy, so that several readers weigh the same."""
        scale = self.target_square or 1.0
        return ChannelMoments(self.gram / scale, self.target / scale, 1.0 if self.target_square else 0.0, self.rows)


def channel_gram(inputs: Tensor, kernel: Tensor, channel: Tensor, width: int, *, block: int = BLOCK) -> Tensor:
    """Return (width, width) the Gram matrix of the channels' contributions, summed over rows and outputs.

    The second moment of the columns is formed block by block and folded at once, so memory is
    block^2 + width^2, not columns^2.

    Args:
        inputs: (groups, rows, D), float64.
        kernel: (groups, outputs, D); made float64 block by block.
        channel: (groups, D) which channel each column belongs to; -1 = none.
        width: number of channels.
        block: columns at once.

    >>> x, w = torch.tensor([[[1.0, 2.0]]]), torch.tensor([[[3.0, 1.0]]])
    >>> channel_gram(x, w, torch.tensor([[0, 1]]), 2).tolist()
    [[9.0, 6.0], [6.0, 4.0]]
    """
    total = torch.zeros(width, width, dtype=inputs.dtype, device=inputs.device)
    for x, w, own in zip(inputs, kernel, channel.to(inputs.device), strict=True):
        parts = (own >= 0).nonzero().flatten().split(block)
        folds = [own[part].unique(return_inverse=True) for part in parts]
        for i, (one, (rows, row)) in enumerate(zip(parts, folds, strict=True)):
            for j, (other, (columns, column)) in enumerate(zip(parts[: i + 1], folds, strict=False)):
                product = x[:, one].T @ x[:, other]
                product *= w[:, one].T.to(x) @ w[:, other].to(x)
                by_row = product.new_zeros(len(rows), len(other)).index_add_(0, row, product)
                folded = product.new_zeros(len(rows), len(columns)).index_add_(1, column, by_row)
                total[rows[:, None], columns] += folded
                if i != j:
                    total[columns[:, None], rows] += folded.T
    return total


def channel_targets(
    inputs: Tensor, targets: Tensor, kernel: Tensor, channel: Tensor, width: int, *, block: int = BLOCK
) -> Tensor:
    """Return (width,) how much each channel's contributions agree with the targets, summed over rows and outputs.

    Args:
        inputs: (groups, rows, D), float64.
        targets: (groups, rows, outputs), float64.
        kernel: (groups, outputs, D).
        channel: (groups, D) which channel each column belongs to; -1 = none.
        width: number of channels.
        block: columns at once.
    """
    total = inputs.new_zeros(width)
    for x, y, w, own in zip(inputs, targets, kernel, channel.to(inputs.device), strict=True):
        for part in (own >= 0).nonzero().flatten().split(block):
            met = ((x[:, part].T @ y) * w[:, part].T.to(x)).sum(dim=1)
            total.index_add_(0, own[part], met)
    return total


def channel_sums(values: Tensor, channel: Tensor, width: int) -> Tensor:
    """Return (..., width) sums of (..., D) values over the columns of each channel; columns of none are left out."""
    slots = channel.where(channel >= 0, width).to(values.device)
    total = torch.zeros(*values.shape[:-1], width + 1, dtype=values.dtype, device=values.device)
    return total.index_add_(-1, slots, values)[..., :width]


def column_channels(product: Product, graph: ChannelGraph, group: ChannelGroup) -> Tensor:
    """Return (groups, D) which channel of a group each column of a product belongs to; -1 = none.

    Columns are ordered as in `Seen.kernel`: the taps of one input channel are neighbours.
    """
    channels = torch.from_numpy(np.ascontiguousarray(product.channels_of(graph, group)))
    return channels.repeat_interleave(taps_of(product), dim=1)


def taps_of(product: Product) -> int:
    """Return how many places of each input channel one output reads: the kernel's size; 1 for a matrix product."""
    return int(np.prod(product.weight.shape[2:])) if product.is_convolution else 1
