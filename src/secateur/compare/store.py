"""Results in one SQLite file: written by one driver, read by anyone, also while it runs.

SQLite in write-ahead mode is the embedded default: a transaction is there or it is not, whatever is killed when.
"""

from __future__ import annotations

import csv
import io
import json
import os
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ExperimentError
from ..files import replacing
from .jobs import Job
from .spec import Experiment

SCHEMA = 2  # 2 has the columns of latency
FILE = "results.sqlite"
DONE, FAILED = "done", "failed"
SHOWN = (  # made when first needed: older versions read a store with it
    "CREATE TABLE IF NOT EXISTS shown (place TEXT NOT NULL, digest TEXT NOT NULL, PRIMARY KEY (place, digest)) "
    "WITHOUT ROWID"
)
AT_ONCE = 10_000  # values in one query; SQLite takes 32,766
COLUMNS = {
    "digest": "TEXT PRIMARY KEY",
    "kind": "TEXT NOT NULL",
    "model": "TEXT NOT NULL",
    "data": "TEXT NOT NULL",
    "method": "TEXT",
    "label": "TEXT",
    "of_what": "TEXT",
    "remove": "REAL",
    "recovery": "TEXT NOT NULL",
    "seed": "INTEGER NOT NULL",
    "status": "TEXT NOT NULL",
    "metric": "REAL",
    "metric_as_cut": "REAL",
    "metric_name": "TEXT",
    "test_count": "INTEGER",
    "higher_is_better": "INTEGER",
    "macs": "INTEGER",
    "params": "INTEGER",
    "bytes": "INTEGER",
    "macs_before": "INTEGER",
    "params_before": "INTEGER",
    "removed": "REAL",
    "verification_error": "REAL",
    "latency_1_ms": "REAL",
    "latency_1_before_ms": "REAL",
    "latency_64_ms": "REAL",
    "latency_64_before_ms": "REAL",
    "epochs": "INTEGER",
    "seconds": "REAL",
    "error": "TEXT",
    "finished": "REAL",
}
DIRECT = (
    "metric",
    "metric_as_cut",
    "test_count",
    "removed",
    "verification_error",
    "epochs",
    "seconds",
)
DETAIL = (
    "history",
    "widths",
    "recipe",
    "resumed_from",
    "shared_with",
    "latency",
    "sensitivity",
    "warnings",
    "machine",
)  # kept as JSON, beside the columns


@dataclass(frozen=True)
class Row:
    """One job with its result, as a mapping of column to value."""

    values: Mapping[str, Any]

    def __getattr__(self, name: str) -> Any:
        try:
            return self.__dict__["values"][name]
        except KeyError:
            raise AttributeError(name) from None


class ResultStore:
    """The results of any number of experiments.

    Raises:
        ExperimentError: the file is of a newer version, is no such store, or cannot be opened or written.
    """

    def __init__(self, folder: str | os.PathLike[str], *, create: bool = False) -> None:
        self.folder = Path(folder)
        self.path = self.folder / FILE
        if not create and not self.path.exists():
            raise ExperimentError(f"{self.folder} holds no results: there is no {FILE}. Run secateur compare first.")
        with self._told("opened"):
            self.folder.mkdir(parents=True, exist_ok=True)
            self._link = sqlite3.connect(self.path, timeout=30)
            self._link.execute("PRAGMA journal_mode=WAL")
            self._link.execute("PRAGMA synchronous=FULL")
            self._prepare()

    def _prepare(self) -> None:
        (found,) = self._link.execute("PRAGMA user_version").fetchone()
        if found > SCHEMA:
            raise ExperimentError(
                f"{self.path} was written by a newer version (schema {found}; this one knows up to {SCHEMA}): upgrade "
                "secateur. Nothing was changed."
            )
        if found == SCHEMA:
            return
        columns = ", ".join(f'"{name}" {kind}' for name, kind in COLUMNS.items())
        with self._link:
            self._link.execute(f"CREATE TABLE IF NOT EXISTS results ({columns})")
            known = {name for _, name, *_ in self._link.execute("PRAGMA table_info(results)")}
            for name in COLUMNS.keys() - known:
                self._link.execute(f'ALTER TABLE results ADD COLUMN "{name}" {COLUMNS[name]}')
            self._link.execute("CREATE TABLE IF NOT EXISTS details (digest TEXT PRIMARY KEY, value TEXT NOT NULL)")
            self._link.execute("CREATE TABLE IF NOT EXISTS jobs (digest TEXT PRIMARY KEY, value TEXT NOT NULL)")
            self._link.execute(
                "CREATE TABLE IF NOT EXISTS experiments (digest TEXT PRIMARY KEY, name TEXT NOT NULL, value TEXT NOT "
                "NULL, created REAL NOT NULL)"
            )
            self._link.execute(
                "CREATE TABLE IF NOT EXISTS parts (experiment TEXT NOT NULL, job TEXT NOT NULL, "
                "PRIMARY KEY (experiment, job)) WITHOUT ROWID"
            )
            self._link.execute(f"PRAGMA user_version = {SCHEMA}")

    @contextmanager
    def _told(self, what: str) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise ExperimentError(
                f"{self.path} cannot be {what} ({error}). What was finished is kept: free space or mend the disk, "
                "and run the same command again."
            ) from error

    def close(self) -> None:
        """Close the file."""
        self._link.close()

    def __enter__(self) -> ResultStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def register(self, experiment: Experiment, jobs: Sequence[Job]) -> None:
        """Note an experiment and its jobs; one that is known already stays as it is."""
        with self._told("written"), self._link:
            text = json.dumps(experiment.model_dump(mode="json"))
            values = (experiment.digest, experiment.name, text, time.time())
            self._link.execute("INSERT OR IGNORE INTO experiments VALUES (?, ?, ?, ?)", values)
            self._link.executemany(
                "INSERT OR IGNORE INTO jobs VALUES (?, ?)", [(j.digest, json.dumps(j.to_json())) for j in jobs]
            )
            self._link.executemany(
                "INSERT OR IGNORE INTO parts VALUES (?, ?)", [(experiment.digest, job.digest) for job in jobs]
            )

    def statuses(self) -> dict[str, str]:
        """Return digest -> "done" or "failed" of every job that came to an end."""
        return dict(self._link.execute("SELECT digest, status FROM results"))

    def record(self, job: Job, result: Mapping[str, Any], task: Any) -> None:
        """Note what a job found; a failure that was noted before gives way."""
        self._write(job, {"status": DONE, **_columns(result), "metric_name": task.name}, task, result)

    def record_failure(self, job: Job, error: str) -> None:
        """Note that a job failed, and how."""
        self._write(job, {"status": FAILED, "error": error}, None, {})

    def _write(self, job: Job, values: dict[str, Any], task: Any, result: Mapping[str, Any]) -> None:
        better = None if task is None else int(task.higher_is_better)
        row = identity(job) | values | {"higher_is_better": better, "finished": time.time()}
        names = ", ".join(f'"{name}"' for name in row)
        marks = ", ".join("?" for _ in row)
        detail = json.dumps({key: result[key] for key in DETAIL if key in result})
        with self._told("written"), self._link:
            self._link.execute(f"INSERT OR REPLACE INTO results ({names}) VALUES ({marks})", tuple(row.values()))
            self._link.execute("INSERT OR REPLACE INTO details VALUES (?, ?)", (job.digest, detail))

    def forget_failures(self, digests: Sequence[str]) -> None:
        """Forget that these jobs failed, so that they are tried again."""
        with self._told("written"), self._link:
            self._link.executemany(
                "DELETE FROM results WHERE digest = ? AND status = ?", [(digest, FAILED) for digest in digests]
            )

    def note_shown(self, digest: str, place: str) -> None:
        """Note that a result was shown in a place."""
        with self._told("written"), self._link:
            self._link.execute(SHOWN)
            self._link.execute("INSERT OR IGNORE INTO shown VALUES (?, ?)", (place, digest))

    def rows(
        self,
        experiment: str | None = None,
        *,
        columns: Sequence[str] = tuple(COLUMNS),
        not_shown_in: str | None = None,
        limit: int | None = None,
        **where: Any,
    ) -> list[Row]:
        """Return results, in the order in which the jobs were registered.

        Args:
            experiment: digest of one, None = of all.
            columns: those that are wanted.
            not_shown_in: leave out what `note_shown` noted of this place; None = nothing.
            limit: at most so many; None = all.
            where: column -> value that it has to have, or a tuple of those that it may have.
        """
        found = self.tuples(experiment, columns=columns, not_shown_in=not_shown_in, limit=limit, **where)
        return [Row(dict(zip(columns, row, strict=True))) for row in found]

    def tuples(
        self,
        experiment: str | None,
        *,
        columns: Sequence[str],
        not_shown_in: str | None = None,
        limit: int | None = None,
        **where: Any,
    ) -> list[tuple[Any, ...]]:
        """Return the same as plain tuples: with a hundred thousand results, rows are what takes the time."""
        self._check(*where, *columns)
        tests, values = self._tests(experiment, where)
        if not_shown_in is not None and self._link.execute("PRAGMA table_info(shown)").fetchone():
            tests.append("r.digest NOT IN (SELECT digest FROM shown WHERE place = ?)")
            values.append(not_shown_in)
        names = ", ".join(f'r."{name}"' for name in columns)
        text = f"SELECT {names} FROM results r WHERE {' AND '.join(tests)} ORDER BY r.rowid LIMIT ?"
        with self._told("read"):
            return self._link.execute(text, (*values, -1 if limit is None else limit)).fetchall()

    def totals(self, experiment: str) -> dict[str, Any]:
        """Return of what is done in an experiment: count, seconds, first seed, metric and its direction."""
        tests, values = self._tests(experiment, {"status": DONE})
        names = ("count", "seconds", "seed", "metric_name", "higher_is_better")
        text = "SELECT COUNT(*), SUM(seconds), MIN(seed), MIN(metric_name), MIN(higher_is_better) FROM results r"
        with self._told("read"):
            found = self._link.execute(f"{text} WHERE {' AND '.join(tests)}", values).fetchone()
        return dict(zip(names, found, strict=True))

    def _check(self, *names: str) -> None:
        if unknown := [name for name in names if name not in COLUMNS]:
            raise ExperimentError(f"no result has a column {unknown[0]!r}; there are: {', '.join(COLUMNS)}.")

    def _tests(self, experiment: str | None, where: Mapping[str, Any]) -> tuple[list[str], list[Any]]:
        """Conditions in SQL and their values; that on the experiment is last, for it takes longest to look up."""
        tests: list[str] = ["1"]
        values: list[Any] = []
        for name, value in where.items():
            one = f'r."{name}" IS ?'
            any_of = value if isinstance(value, tuple) else (value,)
            tests.append(f"({' OR '.join(one for _ in any_of)})")
            values += any_of
        if experiment is not None:
            tests.append("EXISTS (SELECT 1 FROM parts p WHERE p.experiment = ? AND p.job = r.digest)")
            values.append(experiment)
        return tests, values

    def detail(self, digest: str) -> dict[str, Any]:
        """Return what is kept of a job beside the columns: training curve, widths, recipe, warnings, machine."""
        return self.details([digest]).get(digest, {})

    def details(self, digests: Sequence[str]) -> dict[str, dict[str, Any]]:
        """Return the same of several jobs; jobs without any are left out."""
        found: dict[str, dict[str, Any]] = {}
        for start in range(0, len(digests), AT_ONCE):
            own = tuple(digests[start : start + AT_ONCE])
            marks = ", ".join("?" for _ in own)
            rows = self._link.execute(f"SELECT digest, value FROM details WHERE digest IN ({marks})", own)
            found |= {digest: json.loads(value) for digest, value in rows}
        return found

    def experiments(self) -> list[dict[str, Any]]:
        """Return digest, name and time of every experiment, and how many of its jobs are done or failed."""
        text = (
            "SELECT e.digest, e.name, e.created, COUNT(p.job), SUM(r.status IS 'done'), SUM(r.status IS 'failed') "
            "FROM experiments e JOIN parts p ON p.experiment = e.digest LEFT JOIN results r ON r.digest = p.job "
            "GROUP BY e.digest ORDER BY e.created"
        )
        names = ("digest", "name", "created", "jobs", "done", "failed")
        return [dict(zip(names, row, strict=True)) for row in self._link.execute(text)]

    def named(self, name: str | None = None) -> str:
        """Return the digest of the experiment of that name or digest; of several the newest; None = the newest of all.

        Raises:
            ExperimentError: there is none.
        """
        known = self._link.execute("SELECT digest, name FROM experiments ORDER BY created").fetchall()
        found = [digest for digest, title in known if name in (None, title, digest)]
        if not found:
            said = ", ".join(f"{digest} ({title})" for digest, title in known) or "none"
            raise ExperimentError(f"{self.path} has no experiment {name or ''!r}; there are: {said}.")
        return str(found[-1])

    def job_count(self, experiment: str) -> int:
        """Return of how many jobs an experiment is."""
        (found,) = self._link.execute("SELECT COUNT(*) FROM parts WHERE experiment = ?", (experiment,)).fetchone()
        return int(found)

    def values(self, column: str) -> list[Any]:
        """Return the different values of a column, without those that are not known."""
        assert column in COLUMNS
        found = self._link.execute(f'SELECT DISTINCT "{column}" FROM results WHERE "{column}" IS NOT NULL ORDER BY 1')
        return [value for (value,) in found]

    def experiment(self, digest: str) -> Experiment:
        """Return an experiment.

        Raises:
            ExperimentError: there is none of that digest.
        """
        found = self._link.execute("SELECT value FROM experiments WHERE digest = ?", (digest,)).fetchone()
        if found is None:
            known = ", ".join(e["digest"] for e in self.experiments()) or "none"
            raise ExperimentError(f"{self.path} has no experiment {digest!r}; there are: {known}.")
        return Experiment.model_validate_json(found[0])


def identity(job: Job) -> dict[str, Any]:
    """Return the columns that say what a job is, and not what came of it."""
    method, budget = job.method or {}, job.budget or {}
    return {
        "digest": job.digest,
        "kind": job.kind,
        "model": job.model["name"],
        "data": job.model["data"],
        "method": method.get("name"),
        "label": (method.get("label") or method.get("name")) if method else None,
        "of_what": budget.get("of"),
        "remove": budget.get("remove"),
        "recovery": job.recovery or {"cut": "none"}.get(job.kind, job.kind),
        "seed": job.seed,
    }


def _columns(result: Mapping[str, Any]) -> dict[str, Any]:
    costs, before = result["costs"], result.get("costs_before", {})
    return {
        **{name: result.get(name) for name in DIRECT},
        "macs": costs["macs"],
        "params": costs["params"],
        "bytes": costs["bytes"],
        "macs_before": before.get("macs"),
        "params_before": before.get("params"),
        **_latencies(result.get("latency", ())),
    }


def _latencies(timed: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    found = {}
    for one in timed:
        batch = one["after"]["batch"]
        found[f"latency_{batch}_ms"] = one["after"]["median_ms"]
        found[f"latency_{batch}_before_ms"] = one["before"]["median_ms"]
    return found


def export(rows: Sequence[Row], path: str | os.PathLike[str]) -> None:
    """Write results as .csv, .json or .parquet, by the file's ending; an existing file is replaced in one step.

    Raises:
        ExperimentError: another ending, or the file cannot be written.
        MissingExtra: .parquet, and pyarrow is not installed (it comes with the extra "train").
    """
    target = Path(path)
    makers = {".csv": _csv, ".json": _json, ".parquet": _parquet}
    if target.suffix not in makers:
        raise ExperimentError(f"{target} is no .csv, .json or .parquet: name one, its ending says what to write.")
    content = makers[target.suffix]([dict(row.values) for row in rows])
    try:
        with replacing(target) as partial:
            partial.write_bytes(content)
    except OSError as error:
        raise ExperimentError(f"results cannot be written to {target} ({error}). Name another place.") from error


def _csv(rows: Sequence[Mapping[str, Any]]) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(COLUMNS))
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def _json(rows: Sequence[Mapping[str, Any]]) -> bytes:
    return (json.dumps(rows, indent=1) + "\n").encode()


def _parquet(rows: Sequence[Mapping[str, Any]]) -> bytes:
    from ..extras import require

    arrow = require("pyarrow", extra="train", purpose="writing Parquet")
    parquet = require("pyarrow.parquet", extra="train", purpose="writing Parquet")
    content = io.BytesIO()
    parquet.write_table(arrow.table({name: [row[name] for row in rows] for name in COLUMNS}), content)
    return content.getvalue()
