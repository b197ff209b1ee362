"""Go through a network's single weights front to back, with the activations of what is already pruned.

Shared by the methods that look at what a layer reads: layers are taken in stages, in the order in which they run. A
stage is calibrated on the inputs that it gets once everything before it is pruned, so its choice makes up for theirs.
Nothing is stored but sums over rows, in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol, TypeVar

import torch
from torch import Tensor, nn

from ..errors import MethodError
from ..graph.products import Site
from ..graph.walk import modules_of, parameters_of
from ..recovery.moments import Sampling
from ..surgery.shrink import clone
from ..train.batches import device_of, sample_count
from ..train.watching import Seen, input_batches, kernel_of, products_run, watch, write_kernel_
from ._weight_choice import Scope, check_scope, layer_counts, pattern_mask
from ._weights import Weight, WeightProblem, prunable_weights

TOGETHER = ("layer", "block", "model")
CHUNK = 1 << 23  # numbers of unfolded input that are made at once


class FewSamples(UserWarning):
    """A layer has more inputs than there were rows to calibrate it on."""


class Sums(Protocol):
    """What is summed over the rows that a product reads."""

    def add(self, inputs: Tensor) -> None:
        """Take in (groups, rows, columns), float64."""


S = TypeVar("S", bound=Sums)


@dataclass(frozen=True)
class Place:
    """A part of a parameter that a product takes as its weight: all of it, a slice of a packed one.

    Attributes:
        weight: name of the parameter.
        size: shape of the part as the operation takes it.
        stride: its strides in the parameter's memory.
        offset: where it begins, in numbers from the parameter's first.
        groups: of the product; see `Seen.groups`.
        transposed: of a convolution.
        is_convolution: whether the operation is one.
        is_weight_first: whether the weight is the left factor of a matrix product.
    """

    weight: str
    size: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int
    groups: int
    transposed: bool
    is_convolution: bool
    is_weight_first: bool

    @classmethod
    def of(cls, seen: Seen, parameter: Tensor) -> Place:
        """Find the part that a product reads.

        Raises:
            MethodError: the weight is computed from the parameter, so that no part of it is what the product reads.
        """
        used = seen.weight
        if used.ndim == 3 and not seen.is_convolution and not used.stride(0):
            used = used[0]
        if used.untyped_storage().data_ptr() != parameter.untyped_storage().data_ptr():
            raise MethodError(
                f"the weight that runs is computed from {seen.site.weight!r} (standardised, normalised, cast): zeros "
                "in the parameter would be no zeros there. Protect that layer."
            )
        offset = int(used.storage_offset()) - int(parameter.storage_offset())
        transposed = seen.is_convolution and bool(seen.args[6])
        shape, stride = tuple(used.shape), tuple(used.stride())
        kind = (transposed, seen.is_convolution, seen.is_weight_first)
        return cls(seen.site.weight, shape, stride, offset, seen.groups, *kind)

    def kernel(self, like_parameter: Tensor) -> Tensor:
        """Return this part of a tensor laid out like the parameter, as (groups, outputs, columns)."""
        return kernel_of(self._part(like_parameter), self.groups, **self._layout)

    def write_(self, like_parameter: Tensor, kernel: Tensor) -> None:
        """Write a kernel into this part, in place."""
        write_kernel_(self._part(like_parameter), kernel, **self._layout)

    @property
    def taps(self) -> int:
        """How many places of each input channel one output reads."""
        return torch.Size(self.size[2:]).numel() if self.is_convolution else 1

    @property
    def _layout(self) -> dict[str, bool]:
        kind = {"is_convolution": self.is_convolution, "is_weight_first": self.is_weight_first}
        return {"transposed": self.transposed, **kind}

    def _part(self, like: Tensor) -> Tensor:
        return like.detach().as_strided(self.size, self.stride, like.storage_offset() + self.offset)


def laid_out_like(parameter: Tensor, dtype: torch.dtype, value: float) -> Tensor:
    """Return a new tensor of one value whose memory is laid out like a parameter's."""
    new = torch.empty_strided(parameter.size(), parameter.stride(), dtype=dtype, device=parameter.device)
    return new.fill_(value)


@dataclass
class Calibration:
    """A network on its way to lose single weights.

    Attributes:
        problem: model, data and task.
        method: name, for messages.
        together: which layers are calibrated on the same pass: see `Wanda.together`.
        sampling: which rows are read.
        work: copy of the model; what is pruned is written into it.
        weights: those that can lose something, of the copy, in the model's order.
    """

    problem: WeightProblem
    method: str
    together: str
    sampling: Sampling
    work: nn.Module = field(init=False)
    weights: list[Weight] = field(init=False)

    def __post_init__(self) -> None:
        problem = self.problem
        if problem.data is None or problem.task is None:
            raise MethodError(
                f"{self.method} looks at activations: give data= (some batches; labels are not read) and task=."
            )
        free = problem.weights()
        if problem.pattern is not None:
            for weight in free:
                pattern_mask(weight, torch.zeros(weight.tensor.shape), problem.pattern)
        names = {weight.name for weight in free}
        self.work = clone(problem.model)
        self.weights = [w for w in prunable_weights(self.work, problem.include) if w.name in names]

    def counts(self, scope: Scope) -> dict[str, int]:
        """Return how many weights each parameter loses; with a pattern, how many at most, and 0 where it is skipped.

        Raises:
            BudgetError: more have to go than can.
            UnknownName: the scope names a parameter that there is not.
        """
        pattern = self.problem.pattern
        if pattern is None:
            return layer_counts(self.weights, self.problem.removal_count(self.weights), scope)
        is_whole = {w.name: w.input_count % pattern.of and pattern.uneven == "skip" for w in self.weights}
        return {w.name: 0 if is_whole[w.name] else w.tensor.numel() - w.row_count for w in self.weights}

    def stages(self, counts: Mapping[str, int]) -> Iterator[tuple[list[Weight], list[Site]]]:
        """Yield the weights that are calibrated together, with the products that read them, in the order they run.

        What is to be pruned in one stage has to be written into `work` before the next is asked for. Weights that lose
        nothing are left out.

        Raises:
            MethodError: no product reads one of the weights.
            TrainingError: there is no batch.
        """
        by_name = {weight.name: weight for weight in self.weights if counts[weight.name]}
        if not by_name:
            return
        sites = self._sites(by_name)
        if unread := [name for name in by_name if name not in {site.weight for site in sites}]:
            raise MethodError(
                f"{self.method} asks what a layer reads, and no product of an activation with {unread[0]!r} ran on "
                "the data given: protect it, or use a method that scores weights alone, e.g. magnitude."
            )
        blocks = blocks_of(self.work, list(by_name.values())) if self.together == "block" else {}
        stages: dict[str, list[Site]] = {}
        stage_of: dict[str, str] = {}
        for site in sites:
            own = "" if self.together == "model" else blocks.get(site.weight, site.weight)
            stages.setdefault(stage_of.setdefault(site.weight, own), []).append(site)
        for found in stages.values():
            yield [by_name[name] for name in dict.fromkeys(site.weight for site in found)], found

    def sums(self, sites: Sequence[Site], make: Callable[[], S]) -> dict[str, dict[Place, S]]:
        """Run the data through the network as it stands and return parameter -> part -> what its products read.

        Raises:
            MethodError: an input is not finite (names the layer), or a weight is computed.
            TrainingError: no batch, or a product that a batch does not reach.
        """
        parameters = parameters_of(self.work)
        found: dict[str, dict[Place, S]] = {site.weight: {} for site in sites}
        problem, read_count = self.problem, 0
        assert problem.data is not None
        assert problem.task is not None

        def see(batch: int, samples: int, seen: Seen) -> None:
            place = Place.of(seen, parameters[seen.site.weight])
            sums = found[seen.site.weight].setdefault(place, make())
            for rows in self._rows(batch, samples, seen):
                inputs = seen.inputs(rows).double()
                _check_finite(seen.site, inputs)
                sums.add(inputs)

        with input_batches(problem.data, problem.task, device_of(self.work)) as batches:
            for number, inputs in enumerate(batches):
                samples = sample_count(*inputs)
                watch(self.work, inputs, dict.fromkeys(sites, partial(see, number, samples)))
                read_count += samples
                if self.sampling.max_samples is not None and read_count >= self.sampling.max_samples:
                    break
        return found

    def _rows(self, batch: int, samples: int, seen: Seen) -> Iterator[Tensor | slice]:
        chosen = self.sampling.rows(seen.row_count, samples, batch, seen.site)
        groups, _, columns = seen.kernel().shape
        size = max(1, CHUNK // max(1, groups * columns))
        if isinstance(chosen, Tensor):
            yield from chosen.to(seen.source.device).split(size)
        else:
            yield from (slice(start, start + size) for start in range(0, seen.row_count, size))

    def _sites(self, names: Mapping[str, Weight]) -> list[Site]:
        problem = self.problem
        assert problem.data is not None
        assert problem.task is not None
        with input_batches(problem.data, problem.task, device_of(self.work)) as batches:
            for inputs in batches:
                return products_run(self.work, inputs, names)
        raise AssertionError("input_batches raises where there is no batch")


def blocks_of(model: nn.Module, weights: Sequence[Weight]) -> dict[str, str]:
    """Return parameter -> path of the block that holds it, for the weights that lie in one.

    A block is an element of a list of modules of one class that holds two or more of these weights, a linear layer's
    among them: a transformer's block, a mixer's. Of nested ones the innermost counts.

    >>> from secateur.methods._weights import prunable_weights
    >>> net = nn.Sequential(*(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)) for _ in range(2)))
    >>> blocks_of(net, prunable_weights(net))
    {'0.0.weight': '0', '0.1.weight': '0', '1.0.weight': '1', '1.1.weight': '1'}
    """
    found: dict[str, str] = {}
    for path, module in modules_of(model).items():
        if not isinstance(module, nn.ModuleList | nn.Sequential) or len(module) < 2:
            continue
        if len({type(child) for child in module}) > 1:
            continue
        for name in module._modules:
            block = f"{path}.{name}" if path else name
            own = [w for w in weights if w.name.startswith(f"{block}.") and w.module != block]
            if len(own) > 1 and any(w.tensor.ndim == 2 for w in own):
                found.update((w.name, block) for w in own)
    return found


def check_front_to_back(scope: Scope, together: str, scopes: Sequence[str]) -> None:
    """Raise `MethodError` unless these are settings that a method which goes front to back can follow."""
    check_scope(scope)
    if isinstance(scope, str) and scope not in scopes:
        raise MethodError(
            f"scope={scope!r}: layers are pruned one after the other here, so what one loses is settled before the "
            f"next is scored; expected {' or '.join(map(repr, scopes))}, or {{parameter: fraction to remove}}."
        )
    if together not in TOGETHER:
        raise MethodError(f"together={together!r}: expected 'layer', 'block' or 'model'.")


def _check_finite(site: Site, inputs: Tensor) -> None:
    if not bool(inputs.isfinite().all()):
        raise MethodError(
            f"the inputs of {site.weight.removesuffix('.weight')!r} hold NaN or infinite values on the data given: its "
            "weights cannot be scored by them. Check the data and the weights before this layer."
        )
