"""What an unstructured method is given, and what it returns: single weights in place of channels."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList
from torch.nn.utils.weight_norm import WeightNorm

from ..budget import Budget
from ..errors import BudgetError, MethodError, NothingToPrune, UnknownName
from ..graph.walk import modules_of, parameters_of
from ..train.task import Task
from ..weight_plan import WeightPlan

TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
PRUNED = (nn.Linear, nn.Bilinear, nn.Conv1d, nn.Conv2d, nn.Conv3d, *TRANSPOSED, nn.MultiheadAttention, nn.RNNBase)


@dataclass(frozen=True)
class Pattern:
    """N:M sparsity: of each M consecutive inputs of an output at most N weights stay.

    Attributes:
        keep: N, weights of a block that stay.
        of: M, weights of a block.
        uneven: what happens to a layer whose inputs are no multiple of M: "refuse" it, "skip" it (it stays whole), or
            "pad" it (its last block is taken as if it went on with zeros).

    Raises:
        MethodError: N is not below M, or a value makes no sense.

    >>> Pattern.parse("2:4").remove
    0.5
    """

    keep: int
    of: int
    uneven: str = "refuse"

    def __post_init__(self) -> None:
        if not 0 < self.keep < self.of:
            raise MethodError(
                f"pattern {self.keep}:{self.of}: of each M weights N stay, so 0 < N < M is needed, as in 2:4."
            )
        if self.uneven not in ("refuse", "skip", "pad"):
            raise MethodError(f"uneven={self.uneven!r}: expected 'refuse', 'skip' or 'pad'.")

    @classmethod
    def parse(cls, text: str, uneven: str = "refuse") -> Pattern:
        """Read "N:M".

        Raises:
            MethodError: it is no such text.
        """
        found = re.fullmatch(r"\s*(\d+)\s*:\s*(\d+)\s*", text)
        if found is None:
            raise MethodError(f"pattern={text!r}: expected N:M, as 2:4: of each 4 weights 2 stay.")
        return cls(int(found[1]), int(found[2]), uneven)

    @property
    def remove(self) -> float:
        """Fraction that goes."""
        return 1 - self.keep / self.of

    def __str__(self) -> str:
        return f"{self.keep}:{self.of}"


@dataclass(frozen=True, eq=False)
class Weight:
    """A parameter whose single weights can go.

    Attributes:
        name: of the parameter.
        module: path of the module that holds it.
        tensor: the parameter.
        row_axis: its axis of outputs.
        groups: of a transposed convolution, whose inputs come first; 1 for everything else.
    """

    name: str
    module: str
    tensor: Tensor
    row_axis: int = 0
    groups: int = 1

    def rows(self, values: Tensor) -> Tensor:
        """Return values of the parameter's shape as (outputs, weights of each), the inputs of a tap side by side.

        A convolution's (out, in, kh, kw) comes as (out, kh * kw * in), so that consecutive weights are consecutive
        input channels.
        """
        return self._outputs_first(values).movedim(1, -1).flatten(1)

    def from_rows(self, rows: Tensor) -> Tensor:
        """Return what `rows` gave, in the parameter's shape."""
        first = self._outputs_first(torch.empty(self.tensor.shape, device="meta"))
        inputs, taps = first.shape[1], first.shape[2:]
        values = rows.reshape(first.shape[0], *taps, inputs).movedim(-1, 1)
        if self.groups > 1:
            return values.reshape(self.groups, -1, *values.shape[1:]).movedim(1, 2).reshape(self.tensor.shape)
        return values.movedim(0, self.row_axis)

    @property
    def input_count(self) -> int:
        """Input channels of one output: what N:M blocks run along."""
        return int(self._outputs_first(torch.empty(self.tensor.shape, device="meta")).shape[1])

    @property
    def row_count(self) -> int:
        """Outputs."""
        return self.tensor.shape[self.row_axis] * self.groups

    def _outputs_first(self, values: Tensor) -> Tensor:
        if self.groups > 1:
            split = values.reshape(self.groups, values.shape[0] // self.groups, *values.shape[1:])
            return split.movedim(2, 1).flatten(0, 1)
        return values.movedim(self.row_axis, 0)


@dataclass(frozen=True)
class WeightProblem:
    """A model whose weights to prune, and how far.

    Weights are those of linear layers, convolutions, attention and recurrent layers. Biases, norms and embeddings stay
    unless `include` names them.

    Attributes:
        model: a method reads it and never changes it.
        budget: how much goes: `of` is "weights" (those that can go) or "params" (all of the model's).
        pattern: N:M blocks; then it says how much goes, and the budget has to agree.
        protect: module paths and parameter names whose weights all stay.
        include: names of other parameters of two axes or more that can lose weights; outputs are their first axis.
        args: positional inputs of one example batch.
        kwargs: keyword inputs.
        data: batches for methods that need data; re-iterable.
        task: how to read a batch; needed with `data`.
        seed: makes everything random repeatable.

    Raises:
        BudgetError: the budget is no `Budget`, counts something else, or contradicts the pattern.
    """

    model: nn.Module
    budget: Budget
    pattern: Pattern | None = None
    protect: tuple[str, ...] = ()
    include: tuple[str, ...] = ()
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    data: Iterable[Any] | None = None
    task: Task | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.budget, Budget):
            raise BudgetError(f"budget={self.budget!r}: expected Budget(remove=0.9, of='weights').")
        if self.budget.of not in ("weights", "params"):
            raise BudgetError(
                f"{self.budget}: single weights are counted, of='weights' (those that can go) or of='params' (all of "
                "the model's). For channels or MACs take a method that removes channels."
            )
        if self.pattern is not None and abs(self.budget.remove - self.pattern.remove) > 1e-9:
            raise BudgetError(
                f"pattern {self.pattern} removes {self.pattern.remove:.1%} of the weights and {self.budget} asks for "
                "something else: give one of them."
            )

    def weights(self, *, blank: bool = False) -> list[Weight]:
        """Return the parameters that may lose weights, in the model's order.

        Args:
            blank: whether those on the meta device do, whose shape is all there is.

        Raises:
            NothingToPrune: there is none.
            UnknownName: a protected or included name does not exist.
            MethodError: a weight is not made of finite real numbers.
        """
        found = prunable_weights(self.model, self.include)
        kept = _protected(self.model, self.protect, [w.name for w in found])
        free = [weight for weight in found if weight.name not in kept]
        if not free:
            computed = computed_weights(self.model, self.include)
            raise NothingToPrune(
                f"{len(found)} parameters of the model can lose single weights, and {len(kept)} of them are protected"
                + (f"; {', '.join(computed)} are computed (torch.nn.utils.parametrize)" if computed else "")
                + ": protect less, or name others with include=."
            )
        for weight in free:
            _check_finite(weight, blank=blank)
        return free

    def removal_count(self, weights: Iterable[Weight]) -> int:
        """Return how many weights have to go at least.

        Raises:
            BudgetError: more than there are of them that can go.
        """
        free = sum(weight.tensor.numel() for weight in weights)
        whole = free if self.budget.of == "weights" else sum(p.numel() for p in parameters_of(self.model).values())
        exact = self.budget.remove * whole
        count = int(-(-(exact - 1e-9 * whole) // 1))
        if count > free:
            raise BudgetError(f"{self.budget} are {count:,} weights, and {free:,} can go: at most {free / whole:.1%}.")
        return count


def prunable_weights(model: nn.Module, include: Iterable[str] = ()) -> list[Weight]:
    """Return the weights of linear layers, convolutions, attention and recurrent layers, and those named.

    A weight that is also an embedding's (tied) is left out unless it is named. So are the lengths of old-style
    ``weight_norm`` (of a filter each), and what a parametrization computes its weight from: see `computed_weights`.

    Raises:
        UnknownName: a name in `include` is no parameter.
        MethodError: one of them has fewer than two axes.
    """
    parameters = parameters_of(model)
    names = {id(tensor): name for name, tensor in parameters.items()}
    embeddings = [m for m in modules_of(model).values() if isinstance(m, nn.Embedding | nn.EmbeddingBag)]
    tables = {id(module._parameters.get("weight")) for module in embeddings}  # a look at a computed one may change it
    found: dict[str, Weight] = {}
    for path, module in modules_of(model).items():
        lengths = {f"{h.name}_g" for h in module._forward_pre_hooks.values() if isinstance(h, WeightNorm)}
        for leaf, tensor in module._parameters.items():
            if tensor is None or tensor.dim() < 2 or id(tensor) in tables or not _is_pruned(module) or leaf in lengths:
                continue
            axis, groups = _layout(module)
            found.setdefault(names[id(tensor)], Weight(names[id(tensor)], path, tensor, axis, groups))
    for name in include:
        if name not in parameters:
            raise UnknownName("parameter", name, parameters)
        if parameters[name].dim() < 2:
            raise MethodError(f"include={name!r}: it has {parameters[name].dim()} axis, and outputs need one more.")
        found.setdefault(name, Weight(name, name.rpartition(".")[0], parameters[name]))
    order = {name: position for position, name in enumerate(parameters)}
    return sorted(found.values(), key=lambda weight: order[weight.name])


def computed_weights(model: nn.Module, include: Iterable[str] = ()) -> list[str]:
    """Return the weights of layers that torch.nn.utils.parametrize computes from parameters that nobody named.

    A zero in what they are computed from need not be a zero in the weight.

    >>> computed_weights(nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(2, 3))))
    ['0.weight']
    """
    modules, found = modules_of(model), []
    for path, parts in modules.items():
        owner, _, leaf = path.rpartition("parametrizations.")
        if isinstance(parts, ParametrizationList) and _is_pruned(modules[owner.rstrip(".")]):
            inside = dict(parts.named_parameters(path, recurse=False))
            if any(tensor.dim() > 1 for tensor in inside.values()) and not inside.keys() & set(include):
                found.append(owner + leaf)
    return found


def _is_pruned(module: nn.Module) -> bool:
    return isinstance(module, PRUNED) or _is_transposed_linear(module)


def _is_transposed_linear(module: nn.Module) -> bool:
    """Whether this is the linear layer of GPT-2 in transformers, whose weight is (inputs, outputs)."""
    return type(module).__name__ == "Conv1D" and type(module).__module__ == "transformers.pytorch_utils"


def _layout(module: nn.Module) -> tuple[int, int]:
    if isinstance(module, TRANSPOSED):
        return 1, module.groups
    return (1 if _is_transposed_linear(module) else 0), 1


def _protected(model: nn.Module, protect: Iterable[str], names: list[str]) -> set[str]:
    modules, parameters = modules_of(model, shared=True), parameters_of(model, shared=True)
    first = {id(tensor): name for name, tensor in parameters_of(model).items()}
    kept: set[str] = set()
    for path in protect:
        if path not in modules and path not in parameters:
            raise UnknownName("module or parameter", path, [*filter(None, modules), *names])
        prefix = f"{path}." if path else ""
        kept |= {first[id(t)] for n, t in parameters.items() if n == path or n.startswith(prefix)}
    return kept & set(names)


def _check_finite(weight: Weight, *, blank: bool) -> None:
    tensor = weight.tensor.detach()
    if not tensor.is_floating_point():
        raise MethodError(f"parameter {weight.name!r} is {tensor.dtype}: only real floating-point weights can go.")
    if tensor.device.type == "meta":
        if not blank:
            raise MethodError(
                f"parameter {weight.name!r} is on the meta device and holds no data to score. Load it first."
            )
        return
    if not all(bool(end.isfinite()) for end in torch.aminmax(tensor)):
        raise MethodError(
            f"parameter {weight.name!r} holds NaN or infinite values: nothing can be scored. Repair it first."
        )


@dataclass(frozen=True)
class WeightDecision:
    """What an unstructured method decided.

    Attributes:
        plan: which weights stay.
        model: a copy with new weights if the method trained or re-fitted any; None = the model as it was.
        scores: parameter -> score of each weight, higher = keep, where the method has scores.
    """

    plan: WeightPlan
    model: nn.Module | None = None
    scores: Mapping[str, Tensor] = field(default_factory=dict)


@runtime_checkable
class WeightMethod(Protocol):
    """One paper on single weights: a frozen dataclass of hyper-parameters with the paper's defaults."""

    def choose(self, problem: WeightProblem) -> WeightDecision:
        """Decide which weights stay."""
        ...
