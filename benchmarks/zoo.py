"""Prune every model of the zoo at random and prove the result.

    python -m benchmarks.zoo [--only PART ...] [--jobs 2] [--timeout 300] [--out benchmarks/results/zoo.json]

For each model: record it, build its channel graph, leave whole what its own code cannot narrow, remove 40 % of every
other group at random, cut, and verify in float64 against the masked model. The outcome is "exact" (largest relative
error at most 1e-9), "raised" (an error of ours instead of a result), "refused" (cut, found inexact by the verification,
and so not returned by ``prune``) or "whole" (nothing of it can be cut). The frozen share is the share of the parameters
that lie in tensors none of whose axes can be cut.
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import random
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from secateur import ChannelGraph, Plan, shrink, trace, verify
from secateur.errors import SecateurError
from secateur.surgery.feasible import feasible

from .zoo_models import ZooModel, all_models

REMOVE = 0.4
RESULTS = Path(__file__).with_name("results") / "zoo.json"


def random_plan(graph: ChannelGraph, remove: float = REMOVE, seed: int = 0) -> Plan:
    """Remove this share of every group, rounded, at least one channel and never all."""
    draw = random.Random(seed)
    removed = {
        name: draw.sample(range(group.width), max(1, min(group.width - 1, round(group.width * remove))))
        for name, group in graph.groups.items()
    }
    return Plan.from_removed(removed, graph.widths)


def frozen_share(graph: ChannelGraph) -> float:
    """Share of the parameters in tensors that no group runs along."""
    free = {member.tensor for group in graph.groups.values() for member in group.members}
    total = left = 0
    for name, (is_parameter, _) in graph.sizes_of_elements.items():
        if is_parameter:
            count = torch.Size(graph.shapes[name]).numel()
            total += count
            left += 0 if name in free else count
    return left / total if total else 1.0


def run(entry: ZooModel) -> dict[str, Any]:
    """One model's row."""
    row: dict[str, Any] = {"name": entry.name, "family": entry.family, "kind": entry.kind}
    model, args, kwargs = entry.build()
    started = time.perf_counter()
    try:
        graph = trace(model, args, kwargs)
        row["graph_s"] = round(time.perf_counter() - started, 2)
        row.update(carrier=graph.tape.carrier, ops=len(graph.tape.ops), unknown=sorted({op for op, _ in graph.unknown}))
        graph = feasible(model, graph)
        row.update(groups=len(graph.groups), rigid=len(graph.rigid), frozen_share=round(frozen_share(graph), 4))
        row["why"] = sorted(set(graph.rigid.values()))[:3]
        if not graph.groups:
            return {**row, "outcome": "whole"}
        plan = random_plan(graph)
        small = shrink(model, graph, plan)
        row["cut_s"] = round(time.perf_counter() - started, 2)
        found = verify(model, small, plan, args, kwargs)
    except SecateurError as error:
        return {**row, "outcome": "raised", "error": f"{type(error).__name__}: {error}"[:600]}
    row.update(error=found.max_relative_error, statistics=found.statistics)
    return {**row, "outcome": "exact" if found.is_exact else "refused"}


def _child(name: str, pipe: Any) -> None:
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    try:
        pipe.send(run(all_models()[name]))
    except (
        Exception
    ) as error:  # an error that is not ours is a failure of the benchmark's promise, and is shown as such
        pipe.send({"name": name, "outcome": "CRASHED", "error": f"{type(error).__name__}: {error}"[:600]})


def run_apart(name: str, timeout_s: float) -> dict[str, Any]:
    """One model in a process of its own."""
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe()
    child = context.Process(target=_child, args=(name, there))
    started = time.perf_counter()
    child.start()
    there.close()
    try:
        row = here.recv() if here.poll(timeout_s) else {"name": name, "outcome": "timed out"}
    except EOFError:
        row = {"name": name, "outcome": "CRASHED", "error": "the process died"}
    child.kill()
    child.join()
    return {**row, "total_s": round(time.perf_counter() - started, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=[""], help="parts of names; all without")
    parser.add_argument("--every", type=int, default=1, help="take each n-th model only")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--timeout", type=float, default=300)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    from . import _torchvision_support as support

    support.prepare()
    import timm
    import torchvision
    import transformers

    print(f"torch {torch.__version__}, torchvision {torchvision.__version__}, timm {timm.__version__}, ", end="")
    print(f"transformers {transformers.__version__}, {options.jobs} processes of one thread")
    names = [n for n in all_models() if any(part in n for part in options.only)][:: options.every]
    rows = []
    with ThreadPoolExecutor(options.jobs) as pool:
        for row in pool.map(lambda name: run_apart(name, options.timeout), names):
            rows.append(row)
            print(
                f"{row['outcome']:9} {row['name']:48} {row.get('frozen_share', '')!s:7} {row['total_s']:6} s  ", end=""
            )
            print(str(row.get("error", ""))[:150] if row["outcome"] != "exact" else f"{row['error']:.0e}", flush=True)
            options.out.write_text(json.dumps(rows, indent=1))
    for outcome in sorted({row["outcome"] for row in rows}):
        print(outcome, sum(row["outcome"] == outcome for row in rows), "of", len(rows))


if __name__ == "__main__":
    main()
