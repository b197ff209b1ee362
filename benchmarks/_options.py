"""What a result file's rows were asked with, so that a file filled by several runs names one command that makes it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any


def options_of(rows: Iterable[Mapping[str, Any]]) -> str:
    """Return `--removes`, `--seeds` and `--methods` with every value that a row has."""
    rows = list(rows)
    removes = " ".join(f"{remove:g}" for remove in sorted({row["remove"] for row in rows}))
    seeds = " ".join(str(seed) for seed in sorted({seed for row in rows for seed in row["seeds"]}))
    return f"--removes {removes} --seeds {seeds} --methods {' '.join(dict.fromkeys(row['method'] for row in rows))}"
