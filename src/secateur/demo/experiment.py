"""What the demo does: ResNet-8 on the embedded digits, half of its MACs removed, three ways and three seeds."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..budget import Budget
from ..data import ImageData, digits
from ..errors import StoreError
from ..measure.latency import Comparison, compare
from ..methods import L1Filter
from ..methods.sensitivity import SensitivityCurves, sensitivity
from ..models import ResNet, digits_resnet
from ..prune import PruneResult, prune
from ..recovery.finetune import finetune
from ..store import load, save
from ..surgery.shrink import shrink
from ..train import ClassificationTask, Recipe, evaluate, fit, recipe

TASK = ClassificationTask()
BUDGET = Budget(remove=0.5, of="macs")
METHODS = ("l1_filter", "random")
SCRATCH = "scratch"
STEPS = ("as cut", "batch norm re-estimated", "trained")
FRACTIONS = (0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875)
BATCHES = (1, 64)
THREADS = 1
SEEDS = (0, 1, 2)

Say = Callable[[str], None]


@dataclass(frozen=True)
class Settings:
    """How long the demo is.

    Attributes:
        seeds: one base network each, with its own data order and draws.
        epochs: that a base network is trained.
        tuning_epochs: that a pruned one is fine-tuned.
        timing_s: that each model is timed at each batch size, in seconds.
    """

    seeds: tuple[int, ...] = SEEDS
    epochs: int = 12
    tuning_epochs: int = 4
    timing_s: float = 1.0

    def base(self, seed: int) -> Recipe:
        """Return the recipe of a base network."""
        return recipe("digits").replace(epochs=self.epochs, seed=seed)

    def tuning(self, seed: int) -> Recipe:
        """Return the recipe of every fine-tuning."""
        return self.base(seed).finetuning(self.tuning_epochs)

    def scratch(self, seed: int) -> Recipe:
        """Return the recipe of the small network from scratch: as many epochs as the other two together."""
        return recipe("digits").replace(epochs=self.epochs + self.tuning_epochs, seed=seed)

    @property
    def stage_count(self) -> int:
        """How many times the demo says what it does next."""
        return len(self.seeds) * (2 + len(METHODS)) + 3


@dataclass(frozen=True)
class Outcome:
    """Everything the demo found out.

    Attributes:
        base: test accuracy of the base network of each seed.
        accuracy: (way, step) -> test accuracy of each seed, where a way is a method or "scratch".
        results: method -> what `prune` returned for each seed.
        curves: sensitivity of the first base network, on held-out images.
        comparisons: latency before and after, for each batch size.
        reloaded: accuracy of the first L1 model in a process of its own, from the saved folder.
        is_same: whether its outputs there are the same, bit for bit.
        data: what it was done on.
        settings: how long it was.
    """

    base: list[float]
    accuracy: dict[tuple[str, str], list[float]]
    results: dict[str, list[PruneResult]]
    curves: SensitivityCurves
    comparisons: list[Comparison]
    reloaded: float
    is_same: bool
    data: ImageData
    settings: Settings


def run(folder: Path, settings: Settings, say: Say) -> Outcome:
    """Do it all; the saved model goes to `folder`/small. Every choice is made without the test images.

    Args:
        folder: must exist.
        settings: how long.
        say: told what comes next.

    Raises:
        StoreError: the model cannot be saved, or is not the same in another process.
    """
    data = digits()
    study = _Study(data, data.split_validation(), settings)
    bases = []
    for seed in settings.seeds:
        say(f"training base network {seed + 1} of {len(settings.seeds)}")
        bases.append(study.train(_fresh(seed), settings.base(seed)))
    say("analysing sensitivity")
    curves = study.sensitivity(bases[0])
    small = study.prune_all(bases, say)
    study.from_scratch(say)
    say("saving, and loading in a new process")
    folder_small = folder / "small"
    save(small, folder_small, details=_details(study.results["l1_filter"][0]))
    reloaded, is_same = _reload_elsewhere(folder_small, small)
    say("timing")
    timed = [
        compare(bases[0], small, study.example(batch), threads=THREADS, min_run_time_s=settings.timing_s)
        for batch in BATCHES
    ]
    base = [study.test(model) for model in bases]
    return Outcome(base, study.accuracy, study.results, curves, timed, reloaded, is_same, data, settings)


class _Study:
    """The data, and what has been found so far."""

    def __init__(self, data: ImageData, choosing: ImageData, settings: Settings) -> None:
        self.data, self.choosing, self.settings = data, choosing, settings
        self.accuracy: dict[tuple[str, str], list[float]] = {}
        self.results: dict[str, list[PruneResult]] = {name: [] for name in METHODS}
        self._test = data.loaders(512).test

    def train(self, model: nn.Module, by: Recipe) -> nn.Module:
        loader = self._loader(by.seed, augment=True)
        fit(model, loader, TASK, by, progress=False)
        return model

    def test(self, model: nn.Module) -> float:
        return evaluate(model, self._test, TASK, progress=False)

    def example(self, batch: int) -> torch.Tensor:
        return self.data.normalise(self.data.test_images[:batch])

    def sensitivity(self, model: nn.Module) -> SensitivityCurves:
        return sensitivity(
            model,
            self.example(1),
            data=self.choosing.loaders(512).test,
            task=TASK,
            removes=FRACTIONS,
            scores=L1Filter(residual="prune"),  # residual streams too: the curves show why the paper leaves them whole
            progress=False,
        )

    def prune_all(self, bases: list[nn.Module], say: Say) -> nn.Module:
        """Prune and fine-tune every base network by every method; return the first of the first method."""
        first: nn.Module | None = None
        for seed, model in zip(self.settings.seeds, bases, strict=True):
            for method in METHODS:
                say(f"pruning and fine-tuning: {method}, seed {seed}")
                tuned = self._prune(model, method, seed)
                first = tuned if first is None else first
        assert first is not None
        return first

    def _prune(self, model: nn.Module, method: str, seed: int) -> nn.Module:
        result = prune(
            model,
            self.example(1),
            budget=BUDGET,
            method=method,
            data=self._loader(seed, augment=False),
            task=TASK,
            repair=("batchnorm",),
            seed=seed,
        )
        tuned, _ = finetune(
            result.model, self._loader(seed, augment=True), TASK, self.settings.tuning(seed), progress=False
        )
        cut = shrink(result.decision.model or model, result.graph, result.plan)
        for step, stage in zip(STEPS, (cut, result.model, tuned), strict=True):
            self._note(method, step, stage)
        self.results[method].append(result)
        return tuned

    def from_scratch(self, say: Say) -> None:
        """Train the small network anew, with widths that L1 has left and weights of its own."""
        for seed, result in zip(self.settings.seeds, self.results["l1_filter"], strict=True):
            say(f"training the small network from scratch: seed {seed}")
            removed = {name: len(result.plan.removed(name)) for name in result.graph.groups if name.endswith(".conv1")}
            widths = [result.graph.widths[name] - count for name, count in removed.items()]
            fresh = _fresh(seed, inner_widths=widths)
            self._note(SCRATCH, STEPS[-1], self.train(fresh, self.settings.scratch(seed)))

    def _note(self, way: str, step: str, model: nn.Module) -> None:
        self.accuracy.setdefault((way, step), []).append(self.test(model))

    def _loader(self, seed: int, *, augment: bool) -> Iterable[Any]:
        return self.choosing.loaders(64, seed=seed, augment=augment).train


def _fresh(seed: int, inner_widths: Sequence[int] | None = None) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ResNet(1, in_channels=1, inner_widths=inner_widths)


def _details(result: PruneResult) -> dict[str, Any]:
    check = result.verification
    return {
        "source": "digits_resnet",
        "method": "l1_filter",
        "budget": {"remove": BUDGET.remove, "of": BUDGET.of, "removed": result.removed},
        "verification_error": check.max_relative_error if check else None,
    }


def _reload_elsewhere(folder: Path, small: nn.Module) -> tuple[float, bool]:
    command = [sys.executable, "-m", "secateur.demo", "--reload", str(folder)]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    if found.returncode != 0:
        raise StoreError(f"{folder} does not load in a new process: {found.stderr.strip()[-500:]}")
    told = json.loads(found.stdout)
    return told["accuracy"], told["outputs"] == reload_facts(small)["outputs"]


def reload_facts(source: Path | nn.Module) -> dict[str, Any]:
    """Return the test accuracy of a model, or of one saved in a folder, and a digest of its outputs."""
    model = load(source, model=digits_resnet()) if isinstance(source, Path) else source
    data = digits()
    with torch.no_grad():
        outputs = model.eval()(data.normalise(data.test_images))
    digest = hashlib.sha256(outputs.numpy().tobytes()).hexdigest()
    return {"accuracy": evaluate(model, data.loaders(512).test, TASK, progress=False), "outputs": digest}
