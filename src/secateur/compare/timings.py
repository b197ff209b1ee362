"""What was measured of how long cut networks take, over seeds."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from .analysis import Cell, deviation
from .store import Row


@dataclass(frozen=True)
class Timing:
    """How long one forward pass takes.

    Attributes:
        batch: samples in it.
        ms: median over rounds, mean over seeds.
        spread_ms: standard deviation over seeds; of a single one, half the distance of the quartiles of its rounds.
        speed_up: of the dense network's time over this one's, both taken in turns, mean over seeds; 1 for the former.
        seeds: how many; the dense network is timed anew beside each cut.
        place: device and threads.
    """

    batch: int
    ms: float
    spread_ms: float
    speed_up: float
    seeds: int
    place: str

    @property
    def low_ms(self) -> float:
        """The lower end of the spread, above 0."""
        return max(self.ms - self.spread_ms, self.ms / 100)

    @property
    def high_ms(self) -> float:
        """The upper end of the spread."""
        return self.ms + self.spread_ms

    def __str__(self) -> str:
        return f"{self.ms:.3g} ± {self.spread_ms:.2g} ms"


def timings(rows: Iterable[Row], details: Mapping[str, Mapping[str, Any]]) -> dict[Cell, dict[int, Timing]]:
    """Return for each cut, as the cell right after it, and each dense network: batch -> how long it takes.

    Args:
        rows: of jobs of the kind "latency"; others do not count.
        details: digest -> what the store has of them beside the columns.
    """
    found: dict[Cell, dict[int, list[tuple[Mapping[str, Any], float]]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        cut = Cell(row.model, row.data, row.label, row.method, row.of_what, row.remove, "none")
        for timed in details.get(row.digest, {}).get("latency", ()):
            batch = timed["after"]["batch"]
            found[Cell(row.model, row.data)][batch].append((timed["before"], 1.0))
            found[cut][batch].append((timed["after"], timed["speed_up"]))
    return {
        cell: {batch: _timing(batch, timed) for batch, timed in sorted(batches.items())}
        for cell, batches in found.items()
    }


def _timing(batch: int, timed: list[tuple[Mapping[str, Any], float]]) -> Timing:
    medians = [one["median_ms"] for one, _ in timed]
    first, _ = timed[0]
    threads = f"{first['threads']} thread{'s' if first['threads'] > 1 else ''}"
    return Timing(
        batch,
        statistics.fmean(medians),
        deviation(medians) if len(medians) > 1 else first["iqr_ms"] / 2,
        statistics.fmean(speed_up for _, speed_up in timed),
        len(timed),
        f"{first['device']}, {threads}",
    )
