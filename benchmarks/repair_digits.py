"""What each repair is worth, without any training after the cut.

    python -m benchmarks.repair_digits [--out benchmarks/results/repair_digits.json]

Three small ResNets (seeds 0 to 2) are trained on scikit-learn's digits for six epochs. 30 % and 50 % of their MACs are
removed, by L1 norm and at random, and repaired in four ways. Test accuracy in percent, last epoch.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
from pathlib import Path

import torch

from secateur import Budget, data, models, prune, train

REPAIRS = ((), ("batchnorm",), ("refit",), ("refit", "batchnorm"))
METHODS, REMOVES, SEEDS = ("l1_filter", "random"), (0.3, 0.5), (0, 1, 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/repair_digits.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    digits, task = data.digits(), train.ClassificationTask()
    found: dict[tuple[str, float, tuple[str, ...]], list[float]] = {}
    dense = []
    for seed in SEEDS:
        torch.manual_seed(seed)
        loaders, model = digits.loaders(64, seed=seed), models.digits_resnet()
        recipe = train.Recipe(epochs=6, lr=0.1, batch_size=64, seed=seed)
        train.fit(model, loaders.train, task, recipe, progress=False)
        dense.append(100 * train.evaluate(model, loaders.test, task))
        for method, remove, repair in itertools.product(METHODS, REMOVES, REPAIRS):
            result = prune(
                model,
                torch.zeros(1, 1, 8, 8),
                budget=Budget(remove=remove, of="macs"),
                method=method,
                data=loaders.train,
                task=task,
                repair=repair,
                seed=seed,
            )
            accuracy = 100 * train.evaluate(result.model, loaders.test, task)
            found.setdefault((method, remove, repair), []).append(accuracy)
    rows = [
        {"method": method, "remove": remove, "of": "macs", "repair": repair, "accuracy": values, "mean": _mean(values)}
        for (method, remove, repair), values in found.items()
    ]
    result = {"command": "python -m benchmarks.repair_digits", "dense": dense, "dense_mean": _mean(dense), "rows": rows}
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    for row in rows:
        print(f"{row['method']:10} {row['remove']:.0%}  {'+'.join(row['repair']) or 'none':16} {row['mean']:.1f}")


def _mean(values: list[float]) -> float:
    return round(statistics.mean(values), 2)


if __name__ == "__main__":
    main()
