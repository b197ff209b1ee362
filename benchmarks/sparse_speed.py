"""What zeros are worth in time: zeros % x form of execution, each against the dense model in the same run.

Beside each row stands the structured cut that leaves as many parameters as the zeros do: channels of the dense model
removed by `prune`. Weights are random, since no kernel's time depends on their values, only on where the zeros are.

    python -m benchmarks.sparse_speed --threads 1 --seconds 1 --batch 32

A multilayer perceptron of large products is the best case of sparse kernels; a ResNet-20 is the usual case, whose
convolutions have no sparse kernels in torch at all.
"""

from __future__ import annotations

import argparse
import json
import platform
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import secateur as sc
from secateur.errors import BudgetError
from secateur.measure.execution import FORMS, executions
from secateur.measure.latency import compare
from secateur.models import resnet20

RESULTS = Path(__file__).with_name("results") / "sparse_speed.json"
ZEROS = (0.5, 0.8, 0.9, 0.95, 0.99)
CUT = "channels cut to as many parameters"


def perceptron() -> nn.Module:
    """Two products of 1024 x 1024 and a small one."""
    return nn.Sequential(nn.Linear(1024, 1024), nn.ReLU(), nn.Linear(1024, 1024), nn.ReLU(), nn.Linear(1024, 16))


def networks(batch: int) -> dict[str, tuple[nn.Module, Tensor]]:
    """Return name -> model and input, the same each time."""
    torch.manual_seed(0)
    return {
        "perceptron": (perceptron().eval(), torch.randn(batch, 1024)),
        "resnet20": (resnet20().eval(), torch.randn(batch, 3, 32, 32)),
    }


def row(model: nn.Module, images: Tensor, zeros: float, pattern: str | None, run: dict[str, Any]) -> dict[str, Any]:
    """Time one model at one share of zeros, and its structured twin."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        by_row = sc.methods.Magnitude(scope="row")
        budget = None if pattern else sc.Budget(zeros, "weights")
        options = {"pattern": sc.methods.Pattern.parse(pattern, "skip")} if pattern else {"method": by_row}
        sparse = sc.sparsify(model, budget=budget, **options)
    found = executions(model, sparse.model, images, **run)
    share = sparse.plan.removed_count / sparse.param_count
    return {
        "zeros": zeros,
        "pattern": pattern,
        "zeros_of_all_parameters": share,
        "forms": {r.form: {"times_as_fast": r.speed_up, "note": r.note} for r in found.rows},
        "milliseconds": {r.form: r.latency.median_ms for r in found.rows if r.latency is not None},
        "in_words": found.in_words,
        "cut": _structured(model, images, share, run),
    }


def _structured(model: nn.Module, images: Tensor, share: float, run: dict[str, Any]) -> dict[str, Any]:
    """Time the cut that leaves as many parameters; where channels cannot go so far, say how far they can."""
    try:
        cut = sc.prune(model, images[:1], budget=sc.Budget(share, "params"), method="l1_filter")
    except BudgetError as error:
        return {"times_as_fast": None, "note": str(error)}
    timing = compare(model, cut.model, images, **run)
    return {
        "removed_of_parameters": cut.removed,
        "removed_of_macs": 1 - cut.after.of("macs") / cut.before.of("macs"),
        "times_as_fast": timing.speed_up,
        "latency": asdict(timing.after),
    }


def table(name: str, rows: list[dict[str, Any]]) -> str:
    """Return rows as Markdown: times as fast as the dense model of the same run."""
    heads = ["share of zeros", "zeros", *FORMS, CUT]
    lines = [f"### {name}", "", f"| {' | '.join(heads)} |", f"|{' --- |' * len(heads)}"]
    for found in rows:
        cells = [found["pattern"] or f"{found['zeros']:.0%}"]
        speeds = [found["forms"][form]["times_as_fast"] for form in ("zeros", *FORMS)]
        cells += ["-" if s is None else f"{s:.2f}" for s in [*speeds, found["cut"]["times_as_fast"]]]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Time, print the tables and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=1.0, help="time each form so long")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--half", action="store_true", help="float16, which 2:4 on a GPU asks for")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    kind = torch.float16 if options.half else torch.float32
    run = {"threads": options.threads, "min_run_time_s": options.seconds}
    found: dict[str, list[dict[str, Any]]] = {}
    for name, (model, images) in networks(options.batch).items():
        placed, given = model.to(options.device, kind), images.to(options.device, kind)
        shares = [(zeros, None) for zeros in ZEROS] + [(0.5, "2:4")]
        found[name] = [row(placed, given, zeros, pattern, run) for zeros, pattern in shares]
        print(table(name, found[name]), flush=True)
        print("\n".join(r["in_words"] for r in found[name]), flush=True)
    about = {
        "torch": torch.__version__,
        "machine": platform.processor() or platform.machine(),
        "device": options.device,
    }
    if options.device.startswith("cuda"):
        about["machine"] = torch.cuda.get_device_name()
    settings = {"threads": options.threads, "seconds": options.seconds, "batch": options.batch, "half": options.half}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps({**about, **settings, "rows": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
