"""A layer of 4,096 channels: how much memory does it take to choose among them by what the next layer misses?

    python -m benchmarks.wide_layer_memory [--width 4096] [--samples 64] [--out FILE]

ThiNet takes half of the channels between two layers of that width, first of two linear layers, then of a 1x1 and a 3x3
convolution on 6x6 pixels (the second moment of its 36,864 columns would take 10 GiB). Each runs in a process of its
own; `peak_gib` is ru_maxrss of it, from its start to its end, interpreter and libraries included (`imported_gib` is
what these and the network take alone). Two threads.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).with_name("results") / "wide_layer_memory.json"
GOAL_GIB = 4.0
KINDS = ("linear", "conv3x3")


def peak_gib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def measure(kind: str, width: int, samples: int) -> dict[str, Any]:
    """Let ThiNet choose in this process."""
    import torch
    from torch import nn

    from secateur import Budget, trace
    from secateur.methods import Problem, ThiNet
    from secateur.train import ClassificationTask

    torch.set_num_threads(2)
    torch.manual_seed(0)
    if kind == "linear":
        model: nn.Module = nn.Sequential(nn.Linear(256, width), nn.ReLU(), nn.Linear(width, width))
        batches = [torch.randn(samples // 4, 256) for _ in range(4)]
    else:
        model = nn.Sequential(nn.Conv2d(16, width, 1), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1))
        batches = [torch.randn(samples // 4, 16, 6, 6) for _ in range(4)]
    imported = peak_gib()
    problem = Problem(
        model,
        trace(model, batches[0][:1]),
        Budget(0.5, "channels"),
        args=(batches[0][:1],),
        data=[(batch, None) for batch in batches],
        task=ClassificationTask(),
    )
    start = time.perf_counter()
    plan = ThiNet().decide(problem).plan
    return {
        "layer": kind,
        "width": width,
        "samples": samples,
        "removed": plan.removed_count,
        "imported_gib": round(imported, 2),
        "peak_gib": round(peak_gib(), 2),
        "seconds": round(time.perf_counter() - start, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=4096)
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--kind", choices=KINDS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.kind:
        print(json.dumps(measure(options.kind, options.width, options.samples)))
        return
    given = ["--width", str(options.width), "--samples", str(options.samples)]
    rows = []
    for kind in KINDS:
        command = [sys.executable, "-m", "benchmarks.wide_layer_memory", *given, "--kind", kind]
        rows.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
        print(rows[-1], flush=True)
    made = f"python -m benchmarks.wide_layer_memory {' '.join(given)}"
    options.out.write_text(json.dumps({"command": made, "goal_gib": GOAL_GIB, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
