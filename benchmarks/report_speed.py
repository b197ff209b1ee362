"""How long a store with 100,000 results takes to open, and the report of it to render.

    python -m benchmarks.report_speed [--rounds 3] [--store DIR]

One experiment with made-up results: ten networks, every method that removes channels and the random control, eight
budgets, four ways, thirteen seeds; every job with a training curve, every cut with widths. Each round is a process of
its own, and the best counts: by the clock (the goal is 5 s for the report), and CPU seconds over all threads, which
other work on the machine hardly changes.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import sqlite3
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from secateur.catalogue import CATALOGUE
from secateur.compare.jobs import Job, jobs_of
from secateur.compare.spec import Experiment, made
from secateur.compare.store import DONE, FILE, ResultStore, identity

RESULTS = Path(__file__).with_name("results") / "report_speed.json"
MODELS = ("resnet20", "resnet32", "resnet44", "resnet56", "resnet110", "vgg16_bn", "vgg19_bn", "densenet40", "a", "b")
LEVELS = {"": 0.90, "finetune": 0.93, "scratch_e": 0.925, "scratch_b": 0.93}
WIDTHS = {f"stages.{k // 5}.{k % 5}.conv1": [64, 40] for k in range(15)}


def experiment() -> Experiment:
    channels = [e.name for e in CATALOGUE.values() if e.removes == "channels" and e.family != "control"]
    return made(
        {
            "name": "report speed",
            "models": [{"name": name, "data": "cifar10"} for name in MODELS],
            "methods": [{"name": name} for name in channels],
            "budgets": [{"remove": k / 10, "of": "macs"} for k in range(1, 9)],
            "seeds": list(range(13)),
        }
    )


def fill(folder: Path) -> int:
    """Write a result of every job, all at once; return how many."""
    asked = experiment()
    jobs = jobs_of(asked)
    with ResultStore(folder, create=True) as store:
        store.register(asked, jobs)
    draw = random.Random(0)
    rows = [row(job, draw) for job in jobs]
    history = [[epoch, 2.0 / epoch, 0.1, 1.0] for epoch in range(1, 41)]
    plain = json.dumps({"history": history, "machine": {"python": "3"}})
    cut = json.dumps({"widths": WIDTHS, "machine": {"python": "3"}})
    link = sqlite3.connect(folder / FILE)
    with link:
        names, marks = ", ".join(f'"{name}"' for name in rows[0]), ", ".join("?" for _ in rows[0])
        link.executemany(f"INSERT INTO results ({names}) VALUES ({marks})", [tuple(one.values()) for one in rows])
        details = [(job.digest, cut if job.kind == "cut" else plain) for job in jobs]
        link.executemany("INSERT INTO details VALUES (?, ?)", details)
    link.close()
    return len(jobs)


def row(job: Job, draw: random.Random) -> dict[str, Any]:
    known = identity(job)
    remove = known["remove"]
    left = 1 - (remove or 0)
    return known | {
        "status": DONE,
        "metric": LEVELS[job.recovery] + 0.01 * left + draw.gauss(0, 0.002),
        "metric_as_cut": 0.1 if job.kind == "cut" else None,
        "metric_name": "accuracy",
        "test_count": 10_000,
        "higher_is_better": 1,
        "macs": round(40e6 * left),
        "params": round(270e3 * left),
        "bytes": round(1080e3 * left),
        "macs_before": 40_000_000,
        "params_before": 270_000,
        "removed": remove,
        "verification_error": 1e-15,
        "epochs": 40,
        "seconds": 60.0,
        "finished": 0.0,
    }


def measure(folder: Path) -> dict[str, dict[str, float]]:
    """Time in this process, by the clock and in CPU seconds; the imports first."""
    marks: list[tuple[str, float, float]] = []

    def mark(name: str) -> None:
        marks.append((name, time.perf_counter(), time.process_time()))

    mark("")
    from secateur.report.comparison import gather
    from secateur.report.comparison_page import page_of
    from secateur.report.page import prepare, write_page

    mark("import_s")
    with ResultStore(folder) as store:
        store.statuses()
    mark("open_s")
    prepare()
    findings = gather(folder)
    mark("gather_s")
    page = page_of(findings)
    mark("tables_s")
    write_page(page, folder / "report.html")
    mark("html_s")
    return {"seconds": _spent(marks, 1), "cpu_seconds": _spent(marks, 2)}


def _spent(marks: list[tuple[str, float, float]], clock: Literal[1, 2]) -> dict[str, float]:
    found = {after[0]: after[clock] - before[clock] for before, after in pairwise(marks)}
    return found | {"report_s": sum(found[name] for name in ("gather_s", "tables_s", "html_s"))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--store", type=Path, help="filled if it is not there, and left; else it is a temporary one")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure is not None:
        print(json.dumps(measure(given.measure)))
        return
    with tempfile.TemporaryDirectory() as place:
        folder = given.store or Path(place)
        if not (folder / FILE).exists():
            fill(folder)
        with ResultStore(folder) as filled:
            count = len(filled.statuses())
        command = [sys.executable, "-m", "benchmarks.report_speed", "--measure", str(folder)]
        rounds = [
            json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            for _ in range(given.rounds)
        ]
        best = min(rounds, key=lambda one: one["seconds"]["report_s"])
        size = (folder / "report.html").stat().st_size
        store = (folder / FILE).stat().st_size
    facts = {
        "results": count,
        "store_bytes": store,
        "page_bytes": size,
        **{clock: {name: round(value, 2) for name, value in found.items()} for clock, found in best.items()},
        "rounds": [round(one["seconds"]["report_s"], 2) for one in rounds],
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
    }
    print(json.dumps(facts, indent=1))
    RESULTS.write_text(json.dumps({"command": "python -m benchmarks.report_speed", **facts}, indent=1) + "\n")


if __name__ == "__main__":
    main()
