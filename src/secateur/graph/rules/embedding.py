"""Table look-ups: the width passes, the rows do not."""

from __future__ import annotations

from ..labels import Labels, axes, place
from ..tape import Op, Ref
from ._table import rule
from .indexing import freeze_positions


@rule("embedding", "_embedding_bag", "_embedding_bag_forward_only", "embedding_renorm")
def looked_up(labels: Labels, op: Op) -> None:
    """Rows are looked up by number, so none can go; columns are the channels of the result."""
    table: Ref = op.args[0]
    out: Ref = op.outs()[0]
    freeze_positions(labels, op.refs()[1:])
    result = []
    for layer in labels.get(table):
        varying = axes(layer)
        left = labels.drop(layer, {0}, "rows are looked up by number") if 0 in varying else layer
        if left is not None and 1 in axes(left):
            result.append(place(left.narrow(0, 0, 1).select(0, 0), [len(out.shape) - 1], out.shape))
    labels.set(out, result)
