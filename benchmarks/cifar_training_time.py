"""Methods that take part in training, under one schedule for all: what is it worth to prune while training?

    python -m benchmarks.cifar_training_time --data FOLDER [--methods NAME ...] [--epochs 160] [--seeds 0 1 2]
        [--remove 0.5] [--threads 2] [--out benchmarks/results/cifar_training_time.json]
    python -m benchmarks.cifar_training_time --data digits
    python -m benchmarks.cifar_training_time --data FOLDER --checkpoint benchmarks/checkpoints/resnet20 [--epochs 2]

A network (ResNet-20 for CIFAR-10, a small ResNet for digits) loses half of its MACs. A run of every method has the same
number of epochs in all, `--epochs`, from random weights and with the same SGD: an eighth of them at the end, at a tenth
of the rate, fine-tune what is left, and the others are shared out by what the method starts from:

- slimming, ISTA, SFP and SSR train the dense network with the method from the start;
- the others start from a network trained without the method for half of these epochs, and train with it for the rest;
- L1 and random cut a network that was trained for all of these epochs, with no method.

Beside them stand "dense", the whole network trained for `--epochs` epochs, and "scratch:METHOD", the network that the
method left, trained for `--epochs` epochs from random weights. MACs are of one training run's epochs: what a method
saves by a smaller network is not turned into more epochs.

The third form is for machines on which training takes days. Every run starts from one trained network and trains it for
`--epochs` more, at a tenth of the rate: with the method (L1, random and dense: without one), and an eighth of them, one
at least, after the cut. There are no "scratch:" networks: a training as short as this would leave them nowhere.

Methods with the same widths and seed share one scratch run. Settings of methods that the schedule is too short for are
scaled to it, as `settings` here and in the rows says; none was tuned on accuracy. Each seed has its own weights and
data order. Accuracy is of all test images, after the last epoch. Each finished run is written at once, and the same
command goes on where a killed one stopped.
"""

from __future__ import annotations

import argparse
import copy
import functools
import json
import logging
import statistics
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from secateur import Budget, ChannelGraph, Plan, data, models, shrink, trace, train
from secateur.catalogue import CATALOGUE, find
from secateur.files import replacing
from secateur.methods import Problem
from secateur.methods._attached import TrainingMethod
from secateur.recovery.batchnorm import reestimate_batchnorm
from secateur.recovery.finetune import finetune

RESULTS = Path(__file__).parent / "results"
TASK = train.ClassificationTask()
DENSE, SCRATCH = "dense", "scratch"
CONTROLS = ("random", "l1_filter")
FROM_SCRATCH = ("network_slimming", "ista_bn", "soft_filter", "structured_sparsity")
TUNING = 1 / 8  # of the epochs, for fine-tuning
SHORT = 1000  # steps


def settings(method: str, steps: int) -> dict[str, Any]:
    """Return the settings that follow from how many steps are trained with a method; others are the paper's.

    Penalties are per step and the papers' runs have some 60,000 of them, so that they are larger where there are a few
    hundred: enough for a scale that no gradient holds up to reach zero.
    """
    is_short = steps < SHORT
    found: dict[str, dict[str, Any]] = {
        "centripetal_sgd": {"strength": round(min(max(60 / steps, 3e-3), 0.5), 4), "vector_scale": 1.0},
        "depgraph_group_norm": {"penalty": 1e-2} if is_short else {},
        "global_dynamic": {"interval": max(steps // 40, 1), "window": max(steps // 80, 1)},
        "greg": {"growth": 10 / steps, "update_steps": max(steps // 200, 1), "settle_steps": steps // 5},
        "group_fisher": {"interval": max(steps // 200, 1)},
        "ista_bn": {"penalty": 2e-2, "early_penalty": 1e-2} if is_short else {},
        "network_slimming": {"penalty": 1e-2} if is_short else {},
        "sparse_structure_selection": {"penalty": 0.1} if is_short else {},
        "structured_sparsity": {"update_steps": max(steps // 60, 1)},
    }
    return found.get(method, {})


def training_methods() -> list[str]:
    """Names of the catalogue's methods that take part in training."""
    return [name for name, row in CATALOGUE.items() if isinstance(row.make(), TrainingMethod)]


@dataclass(frozen=True)
class Share:
    """How the epochs of one run are shared out: without the method, with it, and for fine-tuning."""

    before: int
    during: int
    tuning: int

    @classmethod
    def of(cls, method: str, epochs: int, *, is_trained: bool = False) -> Share:
        """Share out; at least one epoch for each part that a method has.

        >>> Share.of("soft_filter", 16), Share.of("greg", 16)
        (Share(before=0, during=14, tuning=2), Share(before=7, during=7, tuning=2))
        >>> Share.of("greg", 2, is_trained=True), Share.of("random", 2, is_trained=True)
        (Share(before=0, during=1, tuning=1), Share(before=1, during=0, tuning=1))
        """
        tuning = max(round(TUNING * epochs), 1)
        rest = epochs - tuning
        before = rest if method in CONTROLS else 0 if method in FROM_SCRATCH or is_trained else rest // 2
        return cls(before, rest - before, tuning)


@dataclass(frozen=True, eq=False)
class Bench:
    """A network, its data and one schedule."""

    name: str
    fresh: Callable[[], nn.Module]
    example: Tensor
    images: data.ImageData
    recipe: train.Recipe
    remove: float
    epochs: int
    trained: Mapping[str, Tensor] | None = None

    def share(self, method: str) -> Share:
        return Share.of(method, self.epochs, is_trained=self.trained is not None)

    def loader(self, seed: int) -> Any:
        return self.images.loaders(self.recipe.batch_size or 128, seed=seed, augment=self.name != "digits_resnet").train

    def network(self, seed: int) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = self.fresh()
        if self.trained is not None:
            model.load_state_dict(self.trained)
        return model

    @functools.cached_property
    def graph(self) -> ChannelGraph:
        return trace(self.network(0), self.example)

    def test(self, model: nn.Module) -> float:
        return round(100 * train.evaluate(model, self.images.loaders(500).test, TASK, progress=False), 2)

    def fitted(self, model: nn.Module, seed: int, epochs: int) -> nn.Module:
        """Train in place without a method, by the schedule at this length."""
        if epochs:
            recipe = self.recipe.replace(epochs=epochs, seed=seed)
            train.fit(model, self.loader(seed), TASK, recipe, progress=False)
        return model

    @functools.cache  # noqa: B019  # one bench per process, and few seeds
    def base(self, seed: int, epochs: int) -> nn.Module:
        """Return a network trained without a method; several methods start from the same one."""
        return self.fitted(self.network(seed), seed, epochs)

    def tuned(self, model: nn.Module, seed: int, epochs: int) -> nn.Module:
        recipe = self.recipe.replace(seed=seed)
        recipe = recipe.finetuning(epochs) if self.trained is None else recipe.replace(epochs=epochs)
        return finetune(model, self.loader(seed), TASK, recipe, progress=False)[0]

    def settings(self, method: str) -> dict[str, Any]:
        images = len(self.images.train_labels)
        steps = self.share(method).during * -(-images // (self.recipe.batch_size or 128))
        return {} if method in CONTROLS else settings(method, steps)

    def run(self, method: str, seed: int, plan: Plan | None = None) -> tuple[dict[str, float], Plan | None]:
        """Run one method with one seed; return the accuracies, and the plan that it left.

        Args:
            method: of the catalogue, "dense", or "scratch:" and the name of one of the catalogue.
            seed: of weights, data order and the method.
            plan: what a "scratch:" network is cut by.
        """
        if method == DENSE:
            return {"final": self.test(self.fitted(self.network(seed), seed, self.epochs))}, None
        if method.startswith(SCRATCH):
            assert plan is not None
            small = shrink(self.network(seed + 1000), self.graph, plan)  # its weights are none that anyone chose from
            return {"final": self.test(self.fitted(small, seed, self.epochs))}, None
        return self._prune(method, seed)

    def _prune(self, method: str, seed: int) -> tuple[dict[str, float], Plan]:
        share, loader = self.share(method), self.loader(seed)
        base = copy.deepcopy(self.base(seed, share.before))
        budget = Budget(self.remove, "macs")
        problem = Problem(base, self.graph, budget, args=(self.example,), data=loader, task=TASK, seed=seed)
        own = self.settings(method)
        if method not in CONTROLS:
            lr = self.recipe.lr if method in FROM_SCRATCH or self.trained is not None else self.recipe.lr / 10
            own |= {"recipe": self.recipe.replace(epochs=share.during, lr=lr, seed=seed)}
        decision = find(method).make(**own).decide(problem)
        source = decision.model if decision.model is not None else base
        cut = shrink(source, self.graph, decision.plan)
        repaired = reestimate_batchnorm(copy.deepcopy(cut), loader, TASK, progress=False)
        found = {"cut": self.test(cut), "batchnorm": self.test(repaired)}
        return found | {"final": self.test(self.tuned(repaired, seed, share.tuning))}, decision.plan


def _structure(plan: Plan) -> tuple[dict[str, int], tuple[str, ...]]:
    """Return what decides how large the network that a plan leaves is: widths that shrink, and branches that go."""
    return {name: len(plan.kept[name]) for name in plan if plan.removed(name)}, plan.removed_branches


class Results:
    """A result file, written after each run."""

    def __init__(self, path: Path, head: dict[str, Any]) -> None:
        self.path = path
        found = json.loads(path.read_text()) if path.exists() else {}
        kept = {key: found.get(key) for key in ("data", "remove", "epochs")}
        if found and kept != {key: head[key] for key in kept}:
            raise SystemExit(f"{path} holds runs of {kept}: name another --out, or remove it.")
        self.rows = {row["method"]: row for row in found.get("rows", [])}
        self.head = head

    def has(self, method: str, seed: int) -> bool:
        return seed in self.rows.get(method, {}).get("seeds", ())

    def plan(self, method: str, seed: int) -> Plan:
        row = self.rows[method]
        return Plan.from_json(row["plans"][row["seeds"].index(seed)])

    def alike(self, method: str, seed: int) -> float | None:
        """Return what a finished scratch run with the widths of this one came to; None if there is none."""
        structure = _structure(self.plan(method, seed))
        for name, row in self.rows.items():
            kind, _, other = name.partition(":")
            if kind == SCRATCH and seed in row["seeds"]:
                if _structure(self.plan(other, seed)) == structure:
                    return float(row["accuracy"][row["seeds"].index(seed)])
        return None

    def add(self, method: str, seed: int, found: dict[str, float], plan: Plan | None, facts: dict[str, Any]) -> None:
        row = self.rows.setdefault(method, {"method": method, **facts, "seeds": [], "accuracy": [], "steps": []})
        row["seeds"].append(seed)
        row["accuracy"].append(found["final"])
        row["steps"].append({key: value for key, value in found.items() if key != "final"})
        if plan is not None:
            row.setdefault("plans", []).append(" ".join(plan.to_json().split()))
        row["mean"] = round(statistics.mean(row["accuracy"]), 2)
        row["std"] = round(statistics.stdev(row["accuracy"]), 2) if len(row["accuracy"]) > 1 else 0.0
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(self.path) as partial:
            partial.write_text(json.dumps(self.head | {"rows": list(self.rows.values())}, indent=1) + "\n")


def collect(bench: Bench, results: Results, methods: list[str], seeds: list[int]) -> None:
    """Run what is missing, seed by seed, so that all methods have one before any has two."""
    scratch = [f"{SCRATCH}:{method}" for method in methods if method in CATALOGUE and bench.trained is None]
    for seed in seeds:
        for method in [*methods, *scratch]:
            if results.has(method, seed):
                continue
            start, cpu = time.perf_counter(), time.process_time()
            plan, known = None, None
            if method.startswith(SCRATCH):
                pruned_by = method.partition(":")[2]
                plan, known = results.plan(pruned_by, seed), results.alike(pruned_by, seed)
            found, left = bench.run(method, seed, plan) if known is None else ({"final": known}, None)
            facts = {"settings": bench.settings(method), "share": vars(bench.share(method))}
            results.add(method, seed, found, left, facts if method in CATALOGUE else {})
            print(f"{method:32} seed {seed} {found} {time.perf_counter() - start:.0f} s", end=", ")
            print(f"{time.process_time() - cpu:.0f} s of CPU", flush=True)


def bench_of(place: str, epochs: int | None, remove: float, checkpoint: Path | None) -> Bench:
    """Return the bench on digits, or on the CIFAR-10 of a folder, there from random weights or from a checkpoint."""
    if place == "digits":
        recipe = train.RECIPES["digits"]
        total = epochs or 16
        return Bench(
            "digits_resnet", models.digits_resnet, torch.zeros(1, 1, 8, 8), data.digits(), recipe, remove, total
        )
    recipe = train.RECIPES["cifar"].replace(channels_last=True)
    trained = load_file(checkpoint / "model.safetensors") if checkpoint else None
    if trained is not None:
        recipe = recipe.replace(lr=recipe.lr / 10, warmup_epochs=0)
    return Bench(
        "resnet20",
        functools.partial(models.resolve, "resnet20"),
        torch.zeros(1, 3, 32, 32),
        data.cifar10(place),
        recipe,
        remove,
        epochs or (160 if trained is None else 2),
        trained,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder with the parquet files of CIFAR-10, or: digits")
    parser.add_argument("--methods", nargs="+", default=[DENSE, *CONTROLS, *training_methods()])
    parser.add_argument("--checkpoint", type=Path, default=None, help="folder with a trained ResNet-20")
    parser.add_argument("--epochs", type=int, help="in all, for each run [160; digits: 16; from a checkpoint: 2 more]")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--remove", type=float, default=0.5, help="of the MACs")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    logging.getLogger("secateur").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    is_small = options.data == "digits"
    if is_small and options.checkpoint:
        parser.error("--checkpoint is of a network for CIFAR-10; digits take minutes from random weights.")
    bench = bench_of(options.data, options.epochs, options.remove, options.checkpoint)
    head = {
        "command": f"python -m benchmarks.cifar_training_time --data {'digits' if is_small else 'FOLDER'}"
        + (" --checkpoint benchmarks/checkpoints/resnet20" if options.checkpoint else "")
        + (f" --epochs {options.epochs}" if options.epochs else ""),
        "data": f"{'digits' if is_small else 'CIFAR-10'}, {len(bench.images.test_labels):,} test images; last epoch"
        + (f", {bench.epochs} after a training without a method" if options.checkpoint else ""),
        "model": bench.name,
        "remove": options.remove,
        "of": "macs",
        "epochs": bench.epochs,
    }
    out = options.out or RESULTS / f"{'digits' if is_small else 'cifar'}_training_time.json"
    collect(bench, Results(out, head), options.methods, options.seeds)


if __name__ == "__main__":
    main()
