"""Run every entry once, check that it can tell a wrong cut from a right one, and record its size and time.

    python -m benchmarks.zoo_models.check [part of a name ...]

rewrites `measured.json` beside this file (for the entries named, or all). An entry passes if its outputs are finite,
the same in two runs, and not constant, and if none of its parameters is.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import ZooModel, all_models

MEASURED = Path(__file__).with_name("measured.json")


def tensors(value: Any) -> Iterator[Tensor]:
    """Every tensor in a nested output, in order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from tensors(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from tensors(item)


def check(entry: ZooModel) -> dict[str, Any]:
    """Parameters (millions), seconds to build and to run once, and the faults found (none is good)."""
    started = time.perf_counter()
    model, args, kwargs = entry.build()
    built = time.perf_counter()
    with torch.no_grad():
        first = [tensor.clone() for tensor in tensors(model(*args, **kwargs))]
        ran = time.perf_counter()
        second = list(tensors(model(*args, **kwargs)))
    return {
        "parameters_millions": round(sum(p.numel() for p in model.parameters()) / 1e6, 3),
        "build_seconds": round(built - started, 2),
        "forward_seconds": round(ran - built, 3),
        "faults": _faults(model, first, second),
    }


def _faults(model: torch.nn.Module, first: list[Tensor], second: list[Tensor]) -> list[str]:
    found = []
    floating = [tensor for tensor in first if tensor.is_floating_point() and tensor.numel() > 1]
    if not all(torch.isfinite(tensor).all() for tensor in floating):
        found.append("an output is not finite")
    if len(first) != len(second) or not all(map(torch.equal, first, second)):
        found.append("two runs differ")
    if not any(float(tensor.std()) > 1e-4 * float(tensor.abs().max()) for tensor in floating):
        found.append("every output is constant")
    for name, parameter in model.named_parameters():
        if parameter.numel() > 1 and bool((parameter == parameter.flatten()[0]).all()):
            found.append(f"{name} is constant")
    return found


def main() -> None:
    """Check the entries whose name contains one of the arguments, or all."""
    torch.set_num_threads(1)
    logging.getLogger("transformers").setLevel(logging.ERROR)
    measured = json.loads(MEASURED.read_text()) if MEASURED.exists() else {}
    for name, entry in all_models().items():
        if len(sys.argv) > 1 and not any(part in name for part in sys.argv[1:]):
            continue
        try:
            measured[name] = check(entry)
        except Exception as error:  # one entry that does not run must not hide the others
            measured[name] = {"faults": [f"{type(error).__name__}: {error}"]}
        print(name, measured[name], flush=True)
    kept = {name: measured[name] for name in all_models() if name in measured}
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(row)}" for name, row in kept.items())
    MEASURED.write_text(f"{{\n{lines}\n}}\n")


if __name__ == "__main__":
    main()
