"""`secateur groups`: which channels live and die together."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from ._options import Classes, ConvGroups, InputShape, Json, Model, Verbose, shape
from ._session import session

if TYPE_CHECKING:
    from ..graph import ChannelGraph

Explain = Annotated[
    tuple[str, str] | None,
    typer.Option("--explain", help="Say through which operations two layers share channels.", metavar="LAYER LAYER"),
]
Strict = Annotated[bool, typer.Option("--strict", help="Fail on an operation without a rule.")]


def groups(
    model: Model,
    explain: Explain = None,
    input_shape: InputShape = None,
    classes: Classes = None,
    conv_groups: ConvGroups = "narrow",
    strict: Strict = False,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Print which channels of a model live and die together, and what the model costs. Weights do not matter."""
    with session(as_json=as_json, verbose=verbose, quiet=False) as run:
        from ..graph import trace
        from ..source import Source

        source = Source(model, shape=shape(input_shape), class_count=classes)
        built = source.model()
        graph = trace(built, source.example(built), strict=strict, conv_groups=conv_groups)
        if explain is None:
            run.result(str(graph), _facts(model, graph))
        else:
            text = graph.explain(*explain)
            run.result(text, {"model": model, "layers": list(explain), "explanation": text})


def _facts(model: str, graph: ChannelGraph) -> dict[str, Any]:
    costs = graph.costs()
    return {
        "model": model,
        "channels": costs.channels,
        "macs": costs.macs,
        "params": costs.params,
        "bytes": costs.bytes,
        "groups": [
            {
                "name": group.name,
                "width": group.width,
                "is_residual": group.is_residual,
                "runs_along": list(dict.fromkeys(member.label for member in group.members)),
            }
            for group in graph.groups.values()
        ],
        "without_a_rule": [{"operation": op, "module": module} for op, module in graph.unknown],
    }
