"""One-shot methods on handwritten digits: what the choice of channels is worth, and what repair is.

    python -m benchmarks.digits_one_shot [--methods NAME ...] [--removes 0.3 0.5 0.7] [--seeds 0 1 2] [--finetune 2]
        [--out benchmarks/results/digits_one_shot.json]

As `benchmarks.cifar_one_shot`, on a small ResNet and scikit-learn's digits: each seed trains a network of its own for
twelve epochs and draws 512 calibration images. Minutes on one core, where the other takes hours.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from secateur import data, models, trace, train

from .cifar_one_shot import METHODS, RESULTS, TASK, Bench, collect

EPOCHS = 12


def bench(seed: int) -> Bench:
    """Train the network of a seed."""
    digits = data.digits()
    torch.manual_seed(seed)
    model = models.digits_resnet()
    recipe = train.RECIPES["digits"].replace(epochs=EPOCHS, seed=seed)
    train.fit(model, digits.loaders(64, seed=seed).train, TASK, recipe, progress=False)
    model.eval()
    return Bench("digits_resnet", model, trace(model, torch.zeros(1, 1, 8, 8)), digits, samples=512, batch=64)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=METHODS)
    parser.add_argument("--removes", nargs="+", type=float, default=(0.3, 0.5, 0.7))
    parser.add_argument("--seeds", nargs="+", type=int, default=(0, 1, 2))
    parser.add_argument("--finetune", type=int, default=2, help="epochs after the repairs")
    parser.add_argument("--out", type=Path, default=RESULTS.with_name("digits_one_shot.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    head = {
        "command": "python -m benchmarks.digits_one_shot",
        "data": "scikit-learn's digits, 359 test images; last epoch",
        "finetune_epochs": options.finetune,
    }
    for seed in options.seeds:
        collect(head, bench(seed), seed, options)


if __name__ == "__main__":
    main()
