"""What scheduling adds to the work of an experiment, and how long a large store takes to open.

    python -m benchmarks.scheduling [--jobs 2] [--results 100000] [--only grid store]

"grid": the experiment of `make demo`, run by as many processes of one thread each. `own_s` is what the jobs took by
themselves, those left out that were given the network of another. `overhead` is the wall time by that, shared out, less
1; the goal is 0.02. It consists of `start` (until the first worker is ready, of the same unit), `idle_at_the_end`
(processes without a job because none is left), and `between` (all else: jobs that wait for others, handing out, writing
down).

"store": that many results are opened, as each start of a command does, counted by status, and read. Medians of five.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from secateur.compare.jobs import Job, jobs_of
from secateur.compare.local import LocalWorkers
from secateur.compare.run import Answer, run
from secateur.compare.spec import read_experiment
from secateur.compare.store import DONE, ResultStore

RESULTS = Path(__file__).with_name("results") / "scheduling.json"
DEMO = Path(__file__).parents[1] / "demo" / "digits.toml"
GOAL, GOAL_OPEN_S = 0.02, 1.0
ROUNDS = 5


class Watched(LocalWorkers):
    """Notes when a job is handed out or comes back, and when the first worker is ready."""

    def watch(self) -> Watched:
        self.began, self.ready_s = time.perf_counter(), 0.0
        self.moments: list[tuple[float, int]] = []
        return self

    def submit(self, job: Job) -> None:
        self.moments.append((time.perf_counter() - self.began, 1))
        super().submit(job)

    def answers(self, timeout_s: float) -> list[Answer]:
        found = super().answers(timeout_s)
        now = time.perf_counter() - self.began
        if not self.ready_s and self.process_ids:
            self.ready_s = now
        self.moments += [(now, -1)] * len(found)
        return found

    def idle_at_the_end_s(self) -> float:
        """Seconds of processes without a job, after the last one was handed out."""
        end = self.moments[-1][0]
        last = max(i for i, (_, change) in enumerate(self.moments) if change == 1)
        return sum(end - moment for moment, _ in self.moments[last + 1 :])


def of_grid(options: argparse.Namespace) -> dict[str, Any]:
    experiment = read_experiment(DEMO)
    with tempfile.TemporaryDirectory() as folder:
        workers = Watched(Path(folder), options.jobs, threads=1).watch()
        summary = run(experiment, folder, workers, progress=False)
        assert summary.is_complete, summary.failed
        with ResultStore(folder) as store:
            rows = store.rows()
            own = [row.seconds for row in rows if store.detail(row.digest).get("shared_with") is None]
    own_s, shared_s = sum(own), sum(own) / options.jobs
    end = workers.idle_at_the_end_s() / options.jobs / shared_s
    overhead, start = summary.seconds / shared_s - 1, workers.ready_s / shared_s
    return {
        "jobs": len(rows),
        "jobs_with_work": len(own),
        "processes": options.jobs,
        "wall_s": summary.seconds,
        "own_s": own_s,
        "overhead": overhead,
        "start": start,
        "idle_at_the_end": end,
        "between": overhead - start - end,
        "meets_the_goal": overhead <= GOAL,
    }


def of_store(options: argparse.Namespace) -> dict[str, Any]:
    count = options.results
    with tempfile.TemporaryDirectory() as folder:
        _fill(folder, count)
        opened_s = _median(lambda: ResultStore(folder).close())
        with ResultStore(folder) as store:
            assert len(store.statuses()) == count
            counted_s = _median(store.statuses)
            read_s = _median(store.rows)
    return {
        "results": count,
        "open_s": opened_s,
        "statuses_s": counted_s,
        "rows_s": read_s,
        "meets_the_goal": opened_s < GOAL_OPEN_S,
    }


def _fill(folder: str, count: int) -> None:
    """Write made-up results of the usual columns, with details of the usual length."""
    detail = json.dumps({"history": [[epoch, 1.0 / (epoch + 1), 0.1, 1.5] for epoch in range(40)]})
    job = jobs_of(read_experiment(DEMO))[-1]
    columns = ("digest", "kind", "model", "data", "method", "label", "of_what", "remove", "recovery", "seed", "status")
    columns += ("metric", "macs", "params", "epochs", "seconds")
    fixed = ("recover", job.model["name"], job.model["data"], "l1_filter", "l1_filter", "macs", 0.5, "finetune")
    with ResultStore(folder, create=True) as store, store._link as link:
        link.executemany(
            f"INSERT INTO results ({', '.join(columns)}) VALUES ({', '.join('?' for _ in columns)})",
            ((f"{i:016x}", *fixed, i, DONE, 0.9, 10**6, 10**5, 40, 60.0) for i in range(count)),
        )
        link.executemany("INSERT INTO details VALUES (?, ?)", ((f"{i:016x}", detail) for i in range(count)))


def _median(what: Callable[[], Any]) -> float:
    taken = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        what()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


ROWS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {"grid": of_grid, "store": of_store}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--results", type=int, default=100_000)
    parser.add_argument("--only", nargs="*", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    found: dict[str, Any] = {
        "command": f"python -m benchmarks.scheduling --jobs {options.jobs} --results {options.results}",
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    for name in options.only:
        row = {k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in ROWS[name](options).items()}
        print(name, row, flush=True)
        found[name] = row
    options.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
