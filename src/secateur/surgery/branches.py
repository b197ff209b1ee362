"""Take residual branches out of a model: what then stands where their modules were.

The code that runs a branch stays as it is, so its modules are replaced by ones that compute nothing. Those inside the
branch hand on a tensor without channels: it has no elements, costs nothing, and carries the sizes of the batch and of
the map. The one whose result is added makes zeros of the right shape from these sizes.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from ..errors import SurgeryError
from ..graph.branch_parts import Part, sizes_after
from ..graph.groups import ChannelGraph
from ..graph.tape import replay
from ..graph.walk import modules_of
from ..plan import Plan
from .record import AttributeChange

log = logging.getLogger(__name__)
KIND = "NoBranch"


class NoBranch(nn.Module):
    """Stands where a module of a removed residual branch was, and computes nothing.

    It holds no parameters. Plain settings of the module that it replaces (such as ``batch_first``) can still be read,
    and the parameters that this one had are None.

    Args:
        axis: where channels lie, counted from the end; -3 for images.
        width: channels of the zeros that it returns; 0 = a tensor without channels, in the sizes that it was given.
        steps: windows (kernel, stride, padding, dilation), one for each axis behind the channels, by which sizes change
            from the branch's input to its result.
        place: where the tensor stands among the results; 0 for a bare tensor.
        result_count: how many results it returns, the others None; 0 = a bare tensor.

    >>> import torch
    >>> NoBranch(axis=-3, width=4, steps=[[(3, 2, 1, 1), (3, 2, 1, 1)]])(torch.ones(2, 0, 8, 8)).shape
    torch.Size([2, 4, 4, 4])
    """

    def __init__(
        self,
        *,
        axis: int,
        width: int = 0,
        steps: Sequence[Sequence[Sequence[int]]] = (),
        place: int = 0,
        result_count: int = 0,
    ) -> None:
        super().__init__()
        self.axis, self.width, self.place, self.result_count = axis, width, place, result_count
        self.steps = tuple(tuple((int(k), int(s), int(p), int(d)) for k, s, p, d in windows) for windows in steps)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return zeros, or a tensor without channels, shaped by the first tensor that it is given."""
        given = next(value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
        shape = list(given.shape)
        if self.steps:
            shape[self.axis + 1 :] = sizes_after(shape[self.axis + 1 :], self.steps)
        shape[self.axis] = self.width
        result = given.new_zeros(shape)
        if not self.result_count:
            return result
        return tuple(result if k == self.place else None for k in range(self.result_count))

    def extra_repr(self) -> str:
        """Say what it returns."""
        return f"zeros of {self.width} channels" if self.width else "no channels"

    def settings(self) -> dict[str, Any]:
        """Return what makes it again, as plain data."""
        names = ("axis", "width", "steps", "place", "result_count")
        return {"kind": KIND, **{name: getattr(self, name) for name in names}}


def branch_settings(
    model: nn.Module, graph: ChannelGraph, plan: Plan, after: Sequence[Sequence[tuple[int, ...]]]
) -> dict[str, dict[str, Any]]:
    """Return module path -> settings of its `NoBranch`, for every module of the branches that a plan removes.

    Args:
        model: the model.
        graph: its channel graph.
        plan: what goes.
        after: shapes of each operation's results after the cut.

    Raises:
        SurgeryError: a module's result is of a kind that cannot be replaced.
    """
    branches = sorted((graph.branches[name] for name in plan.removed_branches), key=lambda b: len(b.ops))
    parts = {part.module: part for branch in branches for part in branch.parts}
    outermost = {path: part for path, part in parts.items() if not any(path.startswith(f"{p}.") for p in parts)}
    returned = _results(model, graph, outermost)
    return {path: _settings(graph, part, after, returned.get(path)) for path, part in outermost.items()}


def _settings(
    graph: ChannelGraph, part: Part, after: Sequence[Sequence[tuple[int, ...]]], found: Any
) -> dict[str, Any]:
    width, place, count = 0, 0, 0
    if isinstance(found, (tuple, list)):
        own = [k for k, value in enumerate(found) if isinstance(value, Tensor)]
        place, count = (own or [0])[0], len(found)
    elif not isinstance(found, Tensor):
        raise SurgeryError(
            f"module {part.module!r} of a residual branch returns {type(found).__name__}, and only a tensor, or a "
            "tuple of which one is a tensor, can be replaced: leave its branch in."
        )
    if part.result is not None:
        index, number = part.result
        made = [ref.number for ref in graph.tape.ops[index].outs()]
        shapes = after[index]
        width = shapes[min(made.index(number), len(shapes) - 1)][part.axis]
    return NoBranch(axis=part.axis, width=width, steps=part.steps, place=place, result_count=count).settings()


def _results(model: nn.Module, graph: ChannelGraph, paths: Iterable[str]) -> dict[str, Any]:
    """Return what modules return, from one pass on tensors like those of the tape."""
    known = modules_of(model)
    wanted = {id(known[path]): path for path in paths}
    found: dict[str, Any] = {}

    def look(module: nn.Module, _args: Any, result: Any) -> None:
        if id(module) in wanted:
            found.setdefault(wanted[id(module)], result)

    handle = nn.modules.module.register_module_forward_hook(look)
    try:
        replay(model, *graph.example, carrier=graph.tape.carrier)
    finally:
        handle.remove()
    return found


def swap_branch_module_(small: nn.Module, path: str, settings: Mapping[str, Any]) -> None:
    """Replace a module of a removed branch, in place, wherever it is used."""
    layer = small.get_submodule(path)
    new = NoBranch(**{key: value for key, value in settings.items() if key != "kind"})
    new.train(layer.training)
    for name, value in vars(layer).items():
        if type(value) in (bool, int, float, str) and name not in vars(new):
            new.__dict__[name] = value
    for name in layer._parameters:
        new.register_parameter(name, None)
    for parent in modules_of(small).values():
        for leaf, child in parent._modules.items():
            if child is layer:
                parent._modules[leaf] = new


def without_shortcuts_(small: nn.Module, removed: Iterable[str]) -> list[AttributeChange]:
    """Tell each ``nn.TransformerEncoderLayer`` that lost a branch not to take its fused path, in place.

    That path reads the weights of all its modules.
    """
    changes = []
    paths = tuple(removed)
    for path, module in modules_of(small).items():
        holds = any(inner.startswith(f"{path}." if path else "") for inner in paths)
        before = getattr(module, "activation_relu_or_gelu", 0)
        if isinstance(module, nn.TransformerEncoderLayer) and holds and before:
            module.activation_relu_or_gelu = 0
            changes.append(AttributeChange(path, "activation_relu_or_gelu", before, 0))
    return changes


def narrow_zeros_(
    small: nn.Module, graph: ChannelGraph, after: Sequence[Sequence[tuple[int, ...]]]
) -> list[AttributeChange]:
    """Let zeros that stand for a branch removed earlier follow the width of what they are added to, in place."""
    changes = []
    modules = modules_of(small)
    waiting: dict[int, str] = {}  # tensor of zeros -> the module that makes it
    for op, shapes in zip(graph.tape.ops, after, strict=True):
        layer = modules.get(op.module)
        if isinstance(layer, NoBranch) and layer.width and op.name == "new_zeros":
            waiting[op.outs()[0].number] = op.module
            continue
        for ref in op.refs():
            path = waiting.pop(ref.number, None)
            zeros = modules.get(path) if path is not None else None
            if not isinstance(zeros, NoBranch) or path is None or ref.shape != op.outs()[0].shape:
                continue
            before, width = zeros.width, shapes[0][zeros.axis]
            if width != before:
                zeros.width = width
                changes.append(AttributeChange(path, "width", before, width))
    return changes
