"""Single weights on CIFAR-10: what the choice of weights is worth, and what was worth more, the mask or the weights.

    python -m benchmarks.cifar_unstructured --data FOLDER [--methods NAME ...] [--removes 0.5 0.8 0.9 0.95]
        [--seeds 0 1 2] [--epochs 60] [--finetune 30] [--work FOLDER] [--device cpu]
        [--out benchmarks/results/cifar_unstructured.json]

    python -m benchmarks.cifar_unstructured --data FOLDER --checkpoint benchmarks/checkpoints/resnet20 [--finetune 1]

The second form starts every seed from one trained network, for machines on which training takes days: a seed draws the
data order and the calibration images, snip scores trained weights, gradual_magnitude removes while it fine-tunes, and
the column `scratch` is left out, as are methods that need a new network. `--finetune 0` leaves that column out too, and
gradual_magnitude with it.

With `--data digits` a small ResNet on scikit-learn's digits, minutes on one core.

Every network sees as many epochs of training in all, `--epochs` and `--finetune` together, by one recipe (cosine from
0.1; to fine-tune, from 0.01), and no biases or norms are removed. Methods that read weights remove them from a network
trained for `--epochs`, which is then fine-tuned with its zeros held. snip, grasp and synflow remove them from a new
network, which is then trained. gradual_magnitude trains a new network and removes while it does. lottery_ticket is the
exception: it trains a network for `--epochs` several times. Accuracy is of all test images after the last epoch, in
these columns:

    none      as the method leaves the network
    finetune  after fine-tuning
    train     after training, of methods that prune a new network
    scratch   the control: the same mask on new weights, trained as long

random_weights is the other control. A seed draws the first weights, the order of the data and the calibration images,
1,024 of those to train on. Each finished row is written at once, and the same command goes on where a killed one
stopped; with `--work` also in the middle of a training (but for lottery_ticket). Beside the results are the published
ones of ResNet-20.
"""

from __future__ import annotations

import argparse
import copy
import functools
import itertools
import json
import statistics
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from benchmarks._options import options_of
from secateur import Budget, HeldZeros, attach, data, models, sparsify, train
from secateur.catalogue import find
from secateur.files import replacing
from secateur.methods._attached_weights import TrainingWeightMethod
from secateur.recovery.finetune import finetune

RESULTS = Path(__file__).parent / "results" / "cifar_unstructured.json"
TASK = train.ClassificationTask()
METHODS = (
    "random_weights",
    "magnitude",
    "gradual_magnitude",
    "lottery_ticket",
    "snip",
    "grasp",
    "synflow",
    "lamp",
    "erk",
)
OF_NEW_NETWORKS = ("snip", "grasp", "synflow")
NOT_OF_TRAINED = ("grasp", "synflow", "lottery_ticket")
SETTINGS: dict[str, dict[str, Any]] = {"lottery_ticket": {"per_round": 0.7, "rewind_epoch": 1}}
PUBLISHED = {
    "model": "resnet20",
    "source": "Lin, Stich, Barba, Dmitriev, Jaggi 2020, Dynamic Model Pruning with Feedback, ICLR 2020, "
    "arXiv:2006.07253: unstructured pruning on CIFAR-10, top-1 in percent, mean of 3 runs of 300 epochs",
    "dense": 92.48,
    "rows": [
        {"method": method, "remove": remove, "accuracy": accuracy}
        for method, accuracies in {
            "snip": (88.50, 84.91),
            "magnitude": (90.18, 86.91),
            "gradual_magnitude": (90.55, 89.21),
        }.items()
        for remove, accuracy in zip((0.9, 0.95), accuracies, strict=True)
    ],
}


@dataclass(frozen=True)
class Bench:
    """A network, its images, and how long it trains."""

    name: str
    build: Callable[[], nn.Module]
    images: data.ImageData
    batch: int
    epochs: int
    finetune_epochs: int
    device: str
    work: Path
    trained: nn.Module | None = None  # in place of training one for each seed

    def new(self, seed: int) -> nn.Module:
        """Return a network with the first weights of a seed."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self.build().to(self.device)

    def recipe(self, seed: int, epochs: int) -> train.Recipe:
        """Return the recipe of all training; `.finetuning` of it fine-tunes."""
        return train.Recipe(epochs, 0.1, warmup_epochs=min(1.0, epochs / 4), channels_last=True, seed=seed)

    def loader(self, seed: int) -> Any:
        return self.images.loaders(self.batch, seed=seed, device=self.device).train

    def calibration(self, seed: int, count: int = 1024) -> list[tuple[Tensor, Tensor]]:
        """Return the training images that a seed draws, in batches."""
        drawn = torch.randperm(len(self.images.train_labels), generator=torch.Generator().manual_seed(seed))[:count]
        pictures = self.images.normalise(self.images.train_images[drawn]).to(self.device)
        labels = self.images.train_labels[drawn].to(self.device)
        return list(zip(pictures.split(self.batch), labels.split(self.batch), strict=True))

    def test(self, model: nn.Module) -> float:
        """Return the accuracy on all test images, in percent."""
        return 100 * train.evaluate(model, self.images.loaders(500, device=self.device).test, TASK, progress=False)

    def fit(self, model: nn.Module, seed: int, key: str, *attachments: train.Attachment, epochs: int = 0) -> nn.Module:
        """Train a model in place, for all epochs unless told otherwise; a killed training goes on."""
        recipe = self.recipe(seed, epochs or self.epochs + self.finetune_epochs)
        kept = {"checkpoint_dir": self._folder(seed, key), "run_id": key, "progress": False}
        train.fit(model, self.loader(seed), TASK, recipe, attachments=attachments, **kept)
        return model

    def _folder(self, seed: int, key: str) -> Path:
        start = self.epochs if self.trained is None else "trained"
        return self.work / f"{self.name}-{start}+{self.finetune_epochs}" / f"{seed}-{key}"

    @functools.lru_cache(maxsize=1)  # noqa: B019 - one bench, one seed at a time
    def dense(self, seed: int) -> nn.Module:
        """Return the trained network of a seed."""
        if self.trained is not None:
            return self.trained
        return self.fit(self.new(seed), seed, "dense", epochs=self.epochs)

    def rows(self, method: str, remove: float, seed: int) -> Iterator[tuple[str, float]]:
        """Remove weights by one method; yield each column's name with its accuracy."""
        key = f"{method}-{remove}-{zlib.crc32(json.dumps(SETTINGS.get(method, {})).encode())}"
        made = find(method).make(**self._settings(method, seed))
        budget = Budget(remove, "weights")
        if isinstance(made, TrainingWeightMethod):
            model = self.new(seed) if self.trained is None else copy.deepcopy(self.trained)
            attached = attach(model, method=made, budget=budget)
            if self.trained is not None:
                yield "finetune", self._finetuned(model, seed, key, attached)
                return
            self.fit(model, seed, key, attached)
            plan = attached.finish().plan
            yield "none", self.test(model)
        elif "training" in find(method).needs:
            result = sparsify(self.new(seed), budget=budget, method=made, data=self.loader(seed), task=TASK, seed=seed)
            plan = result.plan
            yield "none", self.test(result.model)
        else:
            plan = yield from self._one_shot(method, budget, seed, key)
        if self.trained is not None:
            return
        model = self.new(seed + 1000)
        plan.apply_(model)
        yield "scratch", self.test(self.fit(model, seed, f"{key}-scratch", HeldZeros(plan)))

    def _one_shot(self, method: str, budget: Budget, seed: int, key: str) -> Any:
        is_new = method in OF_NEW_NETWORKS and self.trained is None
        source, calibration = self.new(seed) if is_new else self.dense(seed), self.calibration(seed)
        made = find(method).make(**SETTINGS.get(method, {}))
        given = {"data": calibration, "task": TASK} if set(find(method).needs) & {"data", "labels"} else {}
        example = calibration[0][0][:1]
        result = sparsify(copy.deepcopy(source), example, budget=budget, method=made, seed=seed, **given)
        if is_new:
            yield "train", self.test(self.fit(result.model, seed, key, result.hold()))
            return result.plan
        yield "none", self.test(result.model)
        if not self.finetune_epochs:
            return result.plan
        yield "finetune", self._finetuned(result.model, seed, key, result.hold())
        return result.plan

    def _finetuned(self, model: nn.Module, seed: int, key: str, attachment: train.Attachment) -> float:
        recipe = self.recipe(seed, self.epochs).finetuning(self.finetune_epochs)
        kept = {"checkpoint_dir": self._folder(seed, key), "progress": False}
        return self.test(finetune(model, self.loader(seed), TASK, recipe, attachments=[attachment], **kept)[0])

    def _settings(self, method: str, seed: int) -> dict[str, Any]:
        settings = dict(SETTINGS.get(method, {}))
        if "training" in find(method).needs:
            settings["recipe"] = self.recipe(seed, self.epochs)
        return settings


def collect(head: dict[str, Any], bench: Bench, seed: int, options: argparse.Namespace) -> None:
    """Run what a result file lacks of one seed, and write each finished method at once."""
    result = json.loads(options.out.read_text()) if options.out.exists() else {"rows": []}
    if result.get("data", head["data"]) != head["data"]:
        raise SystemExit(f"{options.out} holds rows of another setting ({result['data']}): give another --out.")
    result |= head
    runs = {(row["method"], row["remove"], row["repair"]): row for row in result["rows"]}
    last = "scratch" if bench.trained is None else "finetune" if bench.finetune_epochs else "none"
    for remove, method in itertools.product(options.removes, options.methods):
        if seed in runs.get((method, remove, last), {}).get("seeds", ()):
            continue
        start = time.perf_counter()
        dense = result.setdefault("dense", {}).setdefault(bench.name, {})
        if str(seed) not in dense:
            dense[str(seed)] = round(bench.test(bench.dense(seed)), 2)
        for repair, accuracy in bench.rows(method, remove, seed):
            _add(runs, bench.name, (method, remove, repair), seed, accuracy)
            print(f"{method:20} {remove:.0%} seed {seed} {repair:10} {accuracy:.2f}", flush=True)
        print(f"{time.perf_counter() - start:.0f} s", flush=True)
        result["rows"] = list(runs.values())
        result["command"] = f"{head['command']} {options_of(result['rows'])}"
        with replacing(options.out) as partial:
            partial.write_text(json.dumps(result, indent=1) + "\n")


def _add(runs: dict[Any, Any], model: str, cell: tuple[str, float, str], seed: int, accuracy: float) -> None:
    method, remove, repair = cell
    parts = {"model": model, "method": method, "repair": repair, "remove": remove, "of": "weights"}
    row = runs.setdefault(cell, {**parts, "settings": SETTINGS.get(method, {}), "seeds": [], "accuracy": []})
    if seed not in row["seeds"]:
        row["seeds"].append(seed)
        row["accuracy"].append(round(accuracy, 2))
    row["mean"] = round(statistics.mean(row["accuracy"]), 2)
    row["std"] = round(statistics.stdev(row["accuracy"]), 2) if len(row["accuracy"]) > 1 else 0.0


def table(result: dict[str, Any]) -> str:
    """Return all rows beside what was published, if it was."""
    published = result.get("published", {}).get("rows", [])
    known = {(row["method"], row["remove"]): f"published {row['accuracy']:.2f}" for row in published}
    lines = [
        f"{row['remove']:>5.0%} {row['method']:20} {row['repair']:10} {row['mean']:6.2f} ± {row['std']:.2f}"
        f" ({len(row['seeds'])})  {_beside(row, known)}".rstrip()
        for row in sorted(result["rows"], key=lambda row: (row["remove"], row["method"], row["repair"]))
    ]
    return "\n".join([f"dense {result.get('dense')}", *lines])


def _beside(row: dict[str, Any], known: dict[tuple[str, float], str]) -> str:
    """Return what was published of a row; all of it is of networks that were trained to the end."""
    is_final = row["repair"] in ("finetune", "train") or (row["repair"] == "none" and _trains(row["method"]))
    return known.get((row["method"], row["remove"]), "") if is_final else ""


def _trains(method: str) -> bool:
    return "training" in find(method).needs


def methods_to_run(names: Sequence[str] | None, *, is_trained: bool, is_finetuned: bool) -> tuple[str, ...]:
    """Return the names asked for, or those of `METHODS` that can start from what there is."""
    unfit = (*NOT_OF_TRAINED, *(() if is_finetuned else ("gradual_magnitude",)))
    able = [m for m in METHODS if not (is_trained and m in unfit)]
    if is_trained and (unable := sorted(set(names or ()) - set(able))):
        raise SystemExit(
            f"{', '.join(unable)}: cannot start from a trained network like this; one of {', '.join(able)} can."
        )
    for name in names or ():
        find(name)
    return tuple(names or able)


def bench_of(options: argparse.Namespace, work: Path) -> Bench:
    trained = None
    if options.checkpoint is not None:
        trained = models.resnet20().to(options.device)
        trained.load_state_dict(load_file(options.checkpoint / "model.safetensors"))
        trained.eval()
    length = (options.epochs, options.finetune, options.device, work, trained)
    if options.data == "digits":
        return Bench("digits_resnet", models.digits_resnet, data.digits(), 64, *length)
    return Bench("resnet20", models.resnet20, data.cifar10(options.data), 128, *length)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder with the parquet files of CIFAR-10, or digits")
    parser.add_argument("--methods", nargs="+", help=f"default: {', '.join(METHODS)}")
    parser.add_argument("--removes", nargs="+", type=float, default=(0.5, 0.8, 0.9, 0.95))
    parser.add_argument("--seeds", nargs="+", type=int, default=(0, 1, 2))
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--finetune", type=int, default=30, help="epochs after pruning a trained network")
    parser.add_argument("--checkpoint", type=Path, help="folder with a trained ResNet-20")
    parser.add_argument("--work", type=Path, help="folder for checkpoints, kept")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, help="default: results/cifar_unstructured.json or digits_unstructured.json")
    options = parser.parse_args()
    is_digits, is_trained = options.data == "digits", options.checkpoint is not None
    if is_digits and is_trained:
        parser.error("--checkpoint holds a network for CIFAR-10: leave it out with --data digits.")
    options.methods = methods_to_run(options.methods, is_trained=is_trained, is_finetuned=options.finetune > 0)
    options.out = options.out or RESULTS.with_name(f"{'digits' if is_digits else 'cifar'}_unstructured.json")
    torch.set_num_threads(1 if is_digits else 2)
    with tempfile.TemporaryDirectory() as temporary:
        bench = bench_of(options, options.work or Path(temporary))
        head = {
            "command": f"python -m benchmarks.cifar_unstructured --data {'digits' if is_digits else 'FOLDER'} "
            + ("--checkpoint FOLDER" if is_trained else f"--epochs {options.epochs}")
            + f" --finetune {options.finetune}",
            "data": f"{bench.images.name}, {len(bench.images.test_labels)} test images; last epoch; "
            + (
                f"one trained network, {options.finetune} epochs more after pruning"
                if is_trained
                else f"before pruning after {options.epochs} epochs, else after {options.epochs + options.finetune} in "
                "all (lottery_ticket: more)"
            ),
            "published": {} if is_digits else PUBLISHED,
        }
        for seed in options.seeds:
            collect(head, bench, seed, options)
    print(table(json.loads(options.out.read_text())))


if __name__ == "__main__":
    main()
