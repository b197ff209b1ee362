"""LASSO with an exact number of variables, from second moments alone."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..extras import require

Array = np.ndarray[Any, Any]


def lasso_support(gram: Tensor, target: Tensor, count: int) -> tuple[list[int], Tensor]:
    """Choose variables by the LASSO: those that are left at the smallest penalty which leaves no more than `count`.

    Minimises ``1/2 |y - Z beta|^2 + penalty * |beta|_1`` along the whole path of penalties by least-angle regression.
    Where two variables enter at once, the larger coefficient decides; what the path never takes up (duplicates, dead
    variables) comes last, by how much of the rest it explains, then by index.

    Source: Efron, Hastie, Johnstone, Tibshirani, "Least Angle Regression", Annals of Statistics 32, 2004.

    Args:
        gram: (n, n) Z^T Z.
        target: (n,) Z^T y.
        count: how many variables, 0 <= count <= n.

    Returns:
        `count` indices, sorted, and (n,) coefficients at that penalty, float64; 0 for variables that came in last.

    Raises:
        MissingExtra: scikit-learn is not installed.

    >>> lasso_support(torch.diag(torch.tensor([4.0, 1.0, 9.0])), torch.tensor([4.0, 1.0, 9.0]), 2)[0]
    [0, 2]
    """
    size = float(gram.diagonal().max()) if len(gram) else 0.0
    coefficients = torch.zeros(len(gram), dtype=torch.float64)
    if count == len(gram) or size <= 0:
        full = torch.linalg.lstsq(gram.double().cpu(), target.double().cpu()[:, None], driver="gelsd").solution[:, 0]
        return list(range(count)), full if count == len(gram) else coefficients
    alive = (gram.diagonal() > 0).nonzero().flatten()
    own = (gram[alive][:, alive] / size).double().cpu().numpy()
    path = _path(own, (target[alive] / size).double().cpu().numpy())
    taken = (path != 0).sum(axis=0)
    last = int(np.flatnonzero(taken <= count)[-1])
    chosen = np.flatnonzero(path[:, last]).tolist()
    if last + 1 < path.shape[1]:
        following = np.argsort(-np.abs(path[:, last + 1]), kind="stable")
        chosen += [int(i) for i in following if path[i, last + 1] and i not in chosen][: count - len(chosen)]
    coefficients[alive] = torch.from_numpy(path[:, last].copy())
    kept = alive[chosen].tolist()
    return sorted(kept + _by_what_is_missing(gram, target, kept, count - len(kept))), coefficients


def _path(gram: Array, target: Array) -> Array:
    """Return (n, steps) coefficients from the largest penalty to none."""
    linear_model = require("sklearn.linear_model", extra="train", purpose="LASSO channel pruning")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # degenerate variables are dropped, which is what we want
        _, _, path = linear_model.lars_path_gram(
            target, gram.copy(), n_samples=1, method="lasso", max_iter=16 * len(gram) + 16
        )
    return np.asarray(path)


def _by_what_is_missing(gram: Tensor, target: Tensor, kept: list[int], count: int) -> list[int]:
    """Return further variables, each time the one that explains most of what is missing, dead ones last."""
    found: list[int] = []
    for _ in range(count):
        index = [*kept, *found]
        missing = target
        if index:
            solution = torch.linalg.lstsq(gram[index][:, index], target[index][:, None], driver="gelsd").solution[:, 0]
            missing = target - gram[:, index] @ solution
        gain = torch.where(gram.diagonal() > 0, missing.square() / gram.diagonal(), -1.0)
        gain[index] = -torch.inf
        found.append(int(gain.argmax()))
    return found
