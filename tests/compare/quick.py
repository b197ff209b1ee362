"""Real jobs that take fractions of a second: a network of four filters, and thirty-two images in two classes."""

from __future__ import annotations

import numpy as np
from PIL import Image

from secateur.compare.spec import made

NETWORK = '''
import os
from pathlib import Path

import torch
from torch import nn


class Net(nn.Sequential):
    """Notes each training batch in a file: one line each, with the process that trained on it."""

    def forward(self, x):
        if self.training and x.shape[0] > 1:
            with open(Path(__file__).with_name("batches"), "a") as file:
                file.write(f"{os.getpid()}\\n")
        return super().forward(x)


def make():
    return Net(
        nn.Conv2d(3, 4, 8, stride=8, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 4, 3, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 2),
    )
'''


def quick(folder, *, norms=True, **changes):
    """Write network and images to a folder, and return an experiment on them."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "network.py").write_text(NETWORK if norms else NETWORK.replace("nn.BatchNorm2d(4),", ""))
    random = np.random.default_rng(0)
    for label, shade in (("dark", 60), ("light", 190)):
        (folder / "images" / label).mkdir(parents=True, exist_ok=True)
        for i in range(16):
            pixels = random.integers(shade - 60, shade + 60, (64, 64, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "images" / label / f"{i}.png")
    raw = {
        "name": "quick",
        "models": [
            {
                "name": f"{folder / 'network.py'}:make",
                "data": f"folder:{folder / 'images'}",
                "recipe": "digits",
                "changes": {"epochs": 3, "warmup_epochs": 0, "batch_size": 8},
                "finetune_epochs": 2,
            }
        ],
        "methods": [{"name": "l1_filter"}],
        "budgets": [{"remove": 0.5, "of": "channels"}],
        "recoveries": ["finetune"],
        "seeds": [0],
        "hold_out": 0.25,
    }
    return made({**raw, **changes})


def batches(folder):
    """Return, for each training batch so far, the process that trained on it."""
    path = folder / "batches"
    return [int(line) for line in path.read_text().split()] if path.exists() else []
