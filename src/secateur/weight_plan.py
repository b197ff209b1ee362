"""A weight plan: which single weights stay. A value that prints, compares and saves as safetensors, a bit a weight.

The channel plan is JSON, for a person to read; the mask of a network of a billion weights is no text to read, so this
one is a tensor file with the masks packed to bits and their shapes beside them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from .errors import PlanError
from .files import replacing
from .graph.walk import parameters_of

FORMAT = 1
KIND = "secateur weight plan"
MASKED = "secateur_masked"  # attribute of a model: names of the parameters that lost single weights


@dataclass(frozen=True, eq=False)
class WeightPlan:
    """Which weights of each parameter stay.

    Attributes:
        kept: parameter name -> boolean mask of the parameter's shape, True = the weight stays. Parameters that are
            absent stay whole.

    Raises:
        PlanError: a mask is no boolean tensor.

    >>> plan = WeightPlan({"fc.weight": torch.tensor([[True, False], [True, True]])})
    >>> plan.removed_count, plan.weight_count
    (1, 4)
    """

    kept: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, mask in self.kept.items():
            if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
                found = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
                raise PlanError(f"the mask of {name!r} is {found}: expected a boolean tensor, True = the weight stays.")
        object.__setattr__(self, "kept", {name: mask.detach().cpu().clone() for name, mask in self.kept.items()})

    @classmethod
    def of_zeros(cls, model: nn.Module, names: Iterable[str]) -> WeightPlan:
        """Return the plan that keeps exactly the weights of these parameters that are not zero.

        Raises:
            PlanError: the model has no such parameter.
        """
        parameters = parameters_of(model)
        wanted = list(names)
        if missing := [name for name in wanted if name not in parameters]:
            raise PlanError(f"the model has no parameter {missing[0]!r}: give names of model.named_parameters().")
        return cls({name: parameters[name].detach() != 0 for name in wanted})

    @classmethod
    def of(cls, model: nn.Module) -> WeightPlan:
        """Return the plan of a model that lost single weights here, or was loaded: what is zero there now stays zero.

        >>> layer = nn.Linear(2, 1)
        >>> plan = WeightPlan({"weight": torch.tensor([[True, False]])})
        >>> plan.apply_(layer)
        >>> WeightPlan.of(layer) == plan
        True
        """
        return cls.of_zeros(model, masked_in(model))

    @property
    def weight_count(self) -> int:
        """Number of weights that the masks are about."""
        return sum(mask.numel() for mask in self.kept.values())

    @property
    def removed_count(self) -> int:
        """Number of weights that go."""
        return sum(mask.numel() - int(mask.count_nonzero()) for mask in self.kept.values())

    @property
    def removed(self) -> float:
        """Fraction of `weight_count` that goes."""
        return self.removed_count / self.weight_count if self.kept else 0.0

    def __iter__(self) -> Iterator[str]:
        return iter(self.kept)

    def __eq__(self, other: object) -> bool:
        """Plans are equal when they remove the same weights; a parameter with a full mask equals one without."""
        if not isinstance(other, WeightPlan):
            return NotImplemented
        own, others = self._essence(), other._essence()
        return own.keys() == others.keys() and all(torch.equal(mask, others[name]) for name, mask in own.items())

    def __hash__(self) -> int:
        return hash(frozenset((name, int(mask.count_nonzero())) for name, mask in self._essence().items()))

    def _essence(self) -> dict[str, Tensor]:
        return {name: mask for name, mask in self.kept.items() if not bool(mask.all())}

    def __str__(self) -> str:
        if not self.removed_count:
            return "WeightPlan: nothing is removed"
        lines = [f"WeightPlan: {self.removed_count:,} of {self.weight_count:,} weights removed ({self.removed:.1%})"]
        for name, mask in self.kept.items():
            left = int(mask.count_nonzero())
            lines.append(f"  {name}: {mask.numel():,} -> {left:,}")
        return "\n".join(lines)

    def check(self, model: nn.Module) -> None:
        """Raise `PlanError` if the plan is of another model: a parameter is missing or has another shape."""
        parameters = parameters_of(model, shared=True)
        for name, mask in self.kept.items():
            if name not in parameters:
                raise PlanError(
                    f"the plan masks {name!r}, and the model has no such parameter: it is of another model."
                )
            if parameters[name].shape != mask.shape:
                raise PlanError(
                    f"the plan masks {name!r} of shape {tuple(mask.shape)}, and the model's is "
                    f"{tuple(parameters[name].shape)}: the plan is of another."
                )

    def apply_(self, model: nn.Module) -> None:
        """Set the weights that go to exactly zero, in place, and note on the model which parameters have lost some.

        Raises:
            PlanError: the plan is of another model; nothing is changed then.
        """
        self.check(model)
        parameters = parameters_of(model, shared=True)
        with torch.no_grad():
            for name, mask in self.kept.items():
                parameters[name].masked_fill_(~mask.to(parameters[name].device), 0.0)
        mark_masked_(model, self._essence())

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the plan, eight weights to a byte; an existing file is replaced in one step."""
        packed = {name: pack(mask) for name, mask in self.kept.items()}
        shapes = json.dumps({name: list(mask.shape) for name, mask in self.kept.items()})
        with replacing(path) as partial:
            save_file(packed, partial, metadata={"kind": KIND, "format": str(FORMAT), "shapes": shapes})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> WeightPlan:
        """Read a plan that `save` wrote.

        Raises:
            PlanError: there is no such file, or it holds no weight plan.
        """
        try:
            with safe_open(os.fspath(path), framework="pt") as file:
                about = file.metadata() or {}
                if about.get("kind") != KIND or about.get("format") != str(FORMAT):
                    raise PlanError(f"{os.fspath(path)!r} is no weight plan of format {FORMAT}; it says {about}.")
                shapes = json.loads(about["shapes"])
                kept = {name: unpack(file.get_tensor(name), shapes[name]) for name in shapes}
        except (OSError, SafetensorError, ValueError, KeyError) as error:
            if isinstance(error, PlanError):
                raise
            raise PlanError(f"no weight plan can be read from {os.fspath(path)!r}: {error}.") from error
        return cls(kept)


def masked_in(model: nn.Module) -> tuple[str, ...]:
    """Return the names of the parameters of a model that lost single weights, as noted on it."""
    noted = model.__dict__.get(MASKED, ())
    parameters = parameters_of(model)
    return tuple(name for name in noted if name in parameters)


def mark_masked_(model: nn.Module, names: Iterable[str]) -> None:
    """Note on a model, in place, that these parameters lost single weights, beside those that did before."""
    first = {id(tensor): name for name, tensor in parameters_of(model).items()}
    shared = parameters_of(model, shared=True)
    found = dict.fromkeys([*masked_in(model), *(first[id(shared[name])] for name in names)])
    if found:
        model.__dict__[MASKED] = tuple(found)


def pack(mask: Tensor) -> Tensor:
    """Return a boolean tensor as bits, first element in the highest bit: uint8 of ceil(n / 8).

    >>> pack(torch.tensor([True, False, True])).tolist()
    [160]
    """
    return torch.from_numpy(np.packbits(mask.detach().cpu().contiguous().numpy().reshape(-1)))


def unpack(bits: Tensor, shape: list[int] | tuple[int, ...]) -> Tensor:
    """Return the boolean tensor of a shape that `pack` turned into bits.

    Raises:
        ValueError: there are not as many bits as the shape takes.
    """
    count = int(np.prod(shape, dtype=np.int64))
    if bits.dtype != torch.uint8 or bits.numel() != -(-count // 8):
        raise ValueError(f"{bits.numel()} bytes of {bits.dtype} are no mask of shape {tuple(shape)}")
    return torch.from_numpy(np.unpackbits(bits.numpy(), count=count).astype(bool)).reshape(tuple(shape))
