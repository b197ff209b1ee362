"""The network, the data and the walk that the tests of AMC share."""

from __future__ import annotations

import torch
from torch import nn

from secateur import Budget, trace
from secateur.graph.products import products, readers
from secateur.methods import Problem
from secateur.methods._amc_walk import Walk, layers_of
from secateur.train import ClassificationTask

TASK, DOUBLE = ClassificationTask(), torch.float64
SHORT = {"episodes": 6, "warmup_episodes": 3, "hidden": 16, "batch_size": 8}

# MACs of `chain`: 64 * 27 a for the first convolution, 16 * 9 a b for the second, 16 * 2 b for the last.
FIRST, SECOND, LAST = 64 * 27, 16 * 9, 16 * 2
WHOLE = FIRST * 4 + SECOND * 32 + LAST * 8


def chain(dtype=DOUBLE):
    """Three convolutions on maps of 8, 4 and 4, with 4 and 8 channels in between that may go."""
    torch.manual_seed(0)
    layers = (
        nn.Conv2d(3, 4, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(4, 8, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 2, 1),
    )
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten()).to(dtype).eval()


def batches(count=4, size=6, classes=2, dtype=DOUBLE):
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(count, size, 3, 8, 8, generator=generator, dtype=DOUBLE).to(dtype)
    return [(own, own[:, 0].mean((1, 2)).gt(0).long() % classes) for own in images]


def problem_of(model, remove=0.5, of="macs", **parts):
    example = torch.zeros(1, 3, 8, 8, dtype=next(model.parameters()).dtype)
    parts = {"data": batches(dtype=example.dtype), "task": TASK, **parts}
    return Problem(model, trace(model, example), Budget(remove, of), args=(example,), **parts)


def reading_of(problem):
    every = products(problem.graph)
    found = [(name, readers(problem.graph, group, every)) for name, group in problem.graph.groups.items()]
    return sorted(((n, r) for n, r in found if r), key=lambda item: item[1][0].op.index)


def walk_of(problem, keep_at_least=0.2, **options):
    return Walk(problem, layers_of(problem, reading_of(problem)), keep_at_least=keep_at_least, **options)
