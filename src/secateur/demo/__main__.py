"""The demo's command line: ``python -m secateur.demo [--out runs/demo]``."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import torch

from ..errors import SecateurError
from ..report.page import write_page
from ..train.progress import ProgressBar
from .experiment import THREADS, Settings, reload_facts, run
from .findings import page_of, short_table, values_of


def main(arguments: list[str] | None = None) -> int:
    """Run the demo; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m secateur.demo", description="A small study from end to end.")
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="folder for the report [runs/demo]")
    parser.add_argument("--quick", action="store_true", help="one epoch each, to see that it works")
    parser.add_argument("--reload", type=Path, help=argparse.SUPPRESS)  # the demo calls itself so, in a new process
    given = parser.parse_args(arguments)
    threads = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    try:
        if given.reload is not None:
            sys.stdout.write(json.dumps(reload_facts(given.reload)))
        else:
            settings = Settings(epochs=2, tuning_epochs=1, timing_s=0.05) if given.quick else Settings()
            sys.stdout.write(_study(given.out, settings))
    except SecateurError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    finally:
        torch.set_num_threads(threads)
    return 0


def _study(folder: Path, settings: Settings) -> str:
    started = time.monotonic()
    folder.mkdir(parents=True, exist_ok=True)
    with ProgressBar("demo", settings.stage_count) as bar:
        found = run(folder, settings, lambda text: bar.advance(title=text))
    seconds = time.monotonic() - started
    write_page(page_of(found, seconds), folder / "report.html")
    (folder / "results.json").write_text(json.dumps(values_of(found, seconds), indent=1), encoding="utf-8")
    return f"{short_table(found)}\n\n{seconds:.0f} s; report: {folder / 'report.html'}\n"


if __name__ == "__main__":
    sys.exit(main())
