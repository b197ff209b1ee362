"""One-shot methods on CIFAR-10: what the choice of channels is worth, and what repair is.

    python -m benchmarks.cifar_one_shot --data FOLDER [--methods NAME ...] [--removes 0.3 0.5 0.7] [--seeds 0 1 2]
        [--finetune 5] [--threads 2] [--out benchmarks/results/cifar_one_shot.json]

The committed ResNet-20 (benchmarks/checkpoints/resnet20, made by the command in its README) is cut to 30, 50 and 70 %
fewer MACs. Every method removes the same number of channels from each layer (the same fraction of the inner channels of
every block), so that only the choice of channels differs. A seed draws the calibration images, 1,024 training images in
batches of 128. Accuracy is of all 10,000 test images, as cut, after batch-norm re-estimation, after the same
least-squares re-fit, after both, and after `--finetune` epochs. Each finished row is written at once, and the same
command goes on where a killed one stopped. cfp, dcp and aofp train while they prune, on the calibration images, for
less long than their papers do (`settings` of their rows). thinet:omp and thinet:backward are ThiNet's journal version
and backward elimination, both of which re-fit while they choose. `--checkpoint` names the folder that `secateur train`
wrote of another network; name another `--out` with it.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from benchmarks._options import options_of
from secateur import Budget, ChannelGraph, Plan, data, models, shrink, trace, train
from secateur.catalogue import find
from secateur.files import replacing
from secateur.methods import Decision, L1Filter, Problem
from secateur.recovery.batchnorm import reestimate_batchnorm
from secateur.recovery.finetune import finetune
from secateur.recovery.refit import refit

FOLDER = Path(__file__).parent
CHECKPOINT = FOLDER / "checkpoints" / "resnet20"
RESULTS = FOLDER / "results" / "cifar_one_shot.json"
TASK = train.ClassificationTask()
BRIEF: dict[str, dict[str, Any]] = {  # the papers train for days; here a few passes over the calibration images
    "aofp": {"iters_per_half": 32, "warmup": 32, "epochs": 150},
    "cfp": {},
    "dcp": {"stage_epochs": 2, "stage_lr": 0.01, "channels_per_step": 2},
}
PEERS = ("torch-pruning:group_norm", "torch-pruning:group_taylor")
METHODS = (
    "random",
    "l1_filter",
    "l2_filter",
    "fpgm",
    "bn_scale",
    "taylor",
    "hrank",
    "thinet",
    "thinet:omp",
    "thinet:backward",
    "lasso_channels",
    "nisp",
    "influence",
    "cfp",
    "dcp",
    "aofp",
    *PEERS,
)


@dataclass(frozen=True)
class Bench:
    """The network, its graph, the images, and how many of them calibrate."""

    name: str
    model: nn.Module
    graph: ChannelGraph
    images: data.ImageData
    samples: int = 1024
    batch: int = 128

    def calibration(self, seed: int) -> list[tuple[Tensor, Tensor]]:
        """Return the training images that a seed draws, in batches."""
        drawn = torch.randperm(len(self.images.train_labels), generator=torch.Generator().manual_seed(seed))
        drawn = drawn[: self.samples]
        pictures = self.images.normalise(self.images.train_images[drawn])
        return list(zip(pictures.split(self.batch), self.images.train_labels[drawn].split(self.batch), strict=True))

    def test(self, model: nn.Module) -> float:
        """Return the accuracy on all test images, in percent."""
        return 100 * train.evaluate(model, self.images.loaders(500).test, TASK, progress=False)

    def rows(self, method: str, remove: float, seed: int, epochs: int) -> dict[str, float]:
        """Prune by one method and return the accuracy after each repair."""
        calibration = self.calibration(seed)
        problem = Problem(
            self.model,
            self.graph,
            Budget(remove=remove, of="macs"),
            args=(calibration[0][0][:1],),
            data=calibration,
            task=TASK,
            seed=seed,
        )
        decision = decide(method, problem)
        source = decision.model if decision.model is not None else self.model
        fitted = refit(source, self.graph, decision.plan, calibration, TASK, target=self.model, progress=False)
        cut, repaired = (shrink(whole, self.graph, decision.plan) for whole in (source, fitted))
        both = reestimate_batchnorm(repaired, calibration, TASK, progress=False)
        found = {
            "none": self.test(cut),
            "batchnorm": self.test(reestimate_batchnorm(cut, calibration, TASK, progress=False)),
            "refit": self.test(repaired),
            "refit+batchnorm": self.test(both),
        }
        if epochs:
            loader = self.images.loaders(self.batch, seed=seed).train
            recipe = train.Recipe(epochs, 0.01, weight_decay=5e-4, channels_last=True, seed=seed)
            found["finetune"] = self.test(finetune(both, loader, TASK, recipe, progress=False)[0])
        return found


def decide(method: str, problem: Problem) -> Decision:
    """Decide by a method of ours with the paper's settings, or by a criterion of the peer on the same widths."""
    if method in PEERS:
        return peer(method, problem)
    name, _, selection = method.partition(":")
    entry = find(name)
    settings = dict(BRIEF.get(name, {})) | ({"selection": selection} if selection else {})
    own = set(vars(entry.make())) if hasattr(entry.make(), "__dict__") else set()
    settings |= {key: value for key, value in (("allocation", "uniform"), ("residual", "skip")) if key in own}
    return entry.make(**settings).decide(problem)


def peer(method: str, problem: Problem) -> Decision:
    """Rank the channels of each group by a criterion of torch-pruning; remove as many of each as everybody else."""
    import torch_pruning as tp

    counts = L1Filter(residual="skip").decide(problem).plan
    model = problem.model
    taylor = method.endswith("taylor")
    importance = tp.importance.GroupTaylorImportance() if taylor else tp.importance.GroupMagnitudeImportance(p=2)
    dependencies = tp.DependencyGraph().build_dependency(model, example_inputs=problem.args[0])
    if taylor:
        for images, labels in problem.data or ():
            TASK.loss(model(images), (images, labels)).backward()
    removed = {}
    for name in counts:
        layer = model.get_submodule(name)
        every = list(range(counts.widths[name]))
        group = dependencies.get_pruning_group(layer, tp.prune_conv_out_channels, idxs=every)
        scores = importance(group)
        removed[name] = scores.argsort()[: len(counts.removed(name))].tolist()
    model.zero_grad(set_to_none=True)
    return Decision(Plan.from_removed(removed, counts.widths))


def collect(head: dict[str, Any], bench: Bench, seed: int, options: argparse.Namespace) -> None:
    """Run what a result file lacks of one seed, and write each finished row at once."""
    result = json.loads(options.out.read_text()) if options.out.exists() else {"rows": []}
    if others := {row["model"] for row in result["rows"]} - {bench.name}:
        raise SystemExit(f"{options.out} holds rows of {', '.join(others)}: name another --out for {bench.name}.")
    result |= head
    dense = result.setdefault("dense", {}).setdefault(bench.name, {})
    dense[str(seed)] = round(bench.test(bench.model), 2)
    runs = {(row["method"], row["remove"], row["repair"]): row for row in result["rows"]}
    last = "finetune" if options.finetune else "refit+batchnorm"
    for remove, method in itertools.product(options.removes, options.methods):
        if seed in runs.get((method, remove, last), {}).get("seeds", ()):
            continue
        start = time.perf_counter()
        for repair, accuracy in bench.rows(method, remove, seed, options.finetune).items():
            row = runs.setdefault((method, remove, repair), _row(bench.name, method, remove, repair))
            if seed not in row["seeds"]:
                row["seeds"].append(seed)
                row["accuracy"].append(round(accuracy, 2))
            row["mean"] = round(statistics.mean(row["accuracy"]), 2)
            row["std"] = round(statistics.stdev(row["accuracy"]), 2) if len(row["accuracy"]) > 1 else 0.0
            print(f"{method:28} {remove:.0%} seed {seed} {repair:16} {accuracy:.2f}", flush=True)
        print(f"{time.perf_counter() - start:.0f} s", flush=True)
        result["rows"] = list(runs.values())
        result["command"] = f"{head['command']} {options_of(result['rows'])}"
        with replacing(options.out) as partial:
            partial.write_text(json.dumps(result, indent=1) + "\n")


def _row(model: str, method: str, remove: float, repair: str) -> dict[str, Any]:
    return {
        "model": model,
        "method": method,
        "repair": repair,
        "remove": remove,
        "of": "macs",
        "settings": BRIEF.get(method, {}),
        "seeds": [],
        "accuracy": [],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder with the parquet files of CIFAR-10")
    parser.add_argument("--checkpoint", type=Path, default=CHECKPOINT)
    parser.add_argument("--methods", nargs="+", default=METHODS)
    parser.add_argument("--removes", nargs="+", type=float, default=(0.3, 0.5, 0.7))
    parser.add_argument("--seeds", nargs="+", type=int, default=(0, 1, 2))
    parser.add_argument("--finetune", type=int, default=0, help="epochs after the repairs")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    made_of = json.loads((options.checkpoint / "train.json").read_text())["model"]
    model = models.resolve(made_of)
    model.load_state_dict(load_file(options.checkpoint / "model.safetensors"))
    model.eval()
    images, name = data.cifar10(options.data), made_of.rpartition(":")[2]
    head = {
        "command": "python -m benchmarks.cifar_one_shot --data FOLDER"
        + (f" --checkpoint {options.checkpoint.name}" if options.checkpoint != CHECKPOINT else "")
        + (f" --finetune {options.finetune}" if options.finetune else ""),
        "data": "CIFAR-10 (JPEG), 10,000 test images; last epoch",
        "finetune_epochs": options.finetune,
    }
    for seed in options.seeds:
        collect(head, Bench(name, model, trace(model, torch.zeros(1, 3, 32, 32)), images), seed, options)


if __name__ == "__main__":
    main()
