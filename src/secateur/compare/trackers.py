"""Results of experiments in TensorBoard, MLflow and trackio: each finished job as a run, with its training curve.

The store remembers what was shown where, so each result is there once, whichever run of the experiment made it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..train.placement import accelerator
from ..train.tracking import Tracking, Tracks, tracked
from .store import DONE, ResultStore, Row

SETTINGS = ("digest", "kind", "model", "data", "method", "label", "of_what", "remove", "recovery", "seed")
COSTS = ("macs", "params", "bytes", "removed", "epochs", "verification_error")


def show(store: ResultStore, tracking: Tracking, experiment: str | None = None) -> int:
    """Write to trackers every finished result that they do not have yet, and return how many there were.

    What a result was asked for is noted as settings of its run.

    Args:
        store: with the results.
        tracking: where; each run gets a name of its own, in the group that is given.
        experiment: digest of one, None = of all.

    Raises:
        ExperimentError: the store cannot be read or written.
        TrainingError: Accelerate is not installed.
    """
    shown = set()
    for name in tracking.trackers:
        place = f"{name} in {Path(tracking.folder).resolve()}"
        for row in store.rows(experiment, status=DONE, not_shown_in=place):
            _show(store, row, replace(tracking, trackers=(name,), run=_name(row), group=tracking.group or tracking.run))
            store.note_shown(row.digest, place)
            shown.add(row.digest)
    return len(shown)


def _show(store: ResultStore, row: Row, tracking: Tracking) -> None:
    settings = {key: value for key in SETTINGS if (value := getattr(row, key)) is not None}
    with accelerator(tracking) as made, tracked(tracking, made, settings) as tracks:
        assert tracks is not None
        _write(tracks, row, store.detail(row.digest))


def _name(row: Row) -> str:
    budget = "" if row.remove is None else f"{row.remove:g}-of-{row.of_what}"
    parts = (row.model, row.label, budget, row.recovery, f"seed-{row.seed}", row.digest[:6])
    return re.sub(r"[^\w.-]", "_", "-".join(part for part in parts if part)).lstrip("._-")


def _write(tracks: Tracks, row: Row, detail: Mapping[str, Any]) -> None:
    epoch = 0
    for index, loss, lr, _ in detail.get("history", ()):
        epoch = index + 1
        tracks.write(epoch, {"train/loss": loss, "train/lr": lr})
    values = {f"cost/{name}": getattr(row, name) for name in COSTS}
    values |= {f"test/{row.metric_name}": row.metric, f"test/{row.metric_name}_as_cut": row.metric_as_cut}
    values |= {f"latency/{name}": value for name, value in row.values.items() if name.startswith("latency")}
    tracks.write(epoch, {name: float(value) for name, value in values.items() if value is not None})
