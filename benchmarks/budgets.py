"""Are budgets met? Ten models, three fractions of MACs and parameters each.

    python -m benchmarks.budgets [--out benchmarks/results/budgets.json]

Every cell is a plan of L1 norm, residual streams included, on the model's closed-form costs, which tests hold equal to
measured ones. ``off`` is what was removed beyond what was asked, in points; a larger fraction must never remove less.
"""

from __future__ import annotations

import argparse
import itertools
import json
from pathlib import Path
from typing import Any

from secateur import Budget, Limits, trace
from secateur.errors import BudgetError
from secateur.methods import L1Filter, Problem

from .graph_speed import RACE, build

REMOVES = (0.3, 0.5, 0.7)
RESULTS = Path(__file__).with_name("results") / "budgets.json"


def rows_of(name: str) -> list[dict[str, Any]]:
    model, x = build(name)
    graph = trace(model, x)
    whole = graph.costs()
    rows = []
    for of in ("macs", "params"):
        for remove in REMOVES:
            row: dict[str, Any] = {"name": name, "of": of, "asked": remove}
            try:
                problem = Problem(model, graph, Budget(remove, of), Limits(), (x,))
                left = graph.costs(L1Filter(residual="prune").decide(problem).plan)
                row["got"] = 1 - left.of(of) / whole.of(of)
                row["off_points"] = 100 * (row["got"] - remove)
            except BudgetError as error:
                row["unreachable"] = str(error)
            rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    from . import _torchvision_support as support

    support.prepare()
    rows = [row for name in RACE for row in rows_of(name)]
    for row in rows:
        print(f"{row['name']:16} {row['of']:7} asked {row['asked']:.0%}", end="  ")
        print(row.get("unreachable") or f"got {row['got']:.2%}  off {row['off_points']:+.3f} points")
    met = [row for row in rows if "got" in row]
    worst = max(abs(row["off_points"]) for row in met)
    grown = all(a["got"] < b["got"] for a, b in itertools.pairwise(met) if (a["name"], a["of"]) == (b["name"], b["of"]))
    print(f"{len(met)} of {len(rows)} reachable; worst {worst:.3f} points off; monotone: {grown}")
    options.out.write_text(json.dumps({"worst_points": worst, "monotone": grown, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
