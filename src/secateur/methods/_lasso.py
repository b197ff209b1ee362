"""The LASSO on a Gram matrix, down to an exact number of channels, without a search for lambda."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import MethodError
from ..extras import require

Array = np.ndarray[Any, Any]
DUST = 1e-10  # a coefficient this far below the largest is a zero of the path, reached with rounding


def lasso_support(gram: Tensor, target: Tensor, count: int) -> tuple[list[int], Tensor]:
    """Return which channels the LASSO keeps when it keeps exactly `count`, and with which coefficients.

    beta minimises 1/2 ||y - sum_c beta_c z_c||^2 + lambda ||beta||_1. Its path over lambda is followed downwards (Efron
    et al. 2004, "Least Angle Regression") to the first point where the next channel would be one too many. Channels
    that leave the path and come back are followed too. Where several enter at once and not all fit, the largest |beta|
    stay. Where the path ends with fewer, since the rest adds nothing to the fit (dead channels, copies of others), the
    rest joins with coefficient 0, the largest energy first. Of equals the lower index.

    Source: He, Zhang, Sun 2017, "Channel Pruning for Accelerating Very Deep Neural Networks", arXiv:1707.06168,
    equation 3, with W fixed; the paper searches for lambda by repeated fits.

    Args:
        gram: (channels, channels) sum of z_a z_b.
        target: (channels,) sum of z_c y.
        count: how many stay, 0 <= count <= channels; all of them is the least-squares solution.

    Returns:
        The channels that stay, ascending, and beta, (channels,) in float64, 0 for all others.

    Raises:
        MethodError: a count that is not possible.
        MissingExtra: scikit-learn is not installed.

    >>> energy = torch.tensor([4.0, 1.0, 9.0])
    >>> kept, coefficients = lasso_support(energy.diag(), energy, 2)
    >>> kept, [round(c, 6) for c in coefficients.tolist()]
    ([0, 2], [0.75, 0.0, 0.888889])
    """
    own, moments = gram.detach().cpu().double(), target.detach().cpu().double()
    if not 0 <= count <= len(own):
        raise MethodError(f"count={count}: expected how many of the {len(own)} channels stay.")
    if count == len(own):
        solution: Tensor = torch.linalg.lstsq(own, moments[:, None], driver="gelsd").solution
        return list(range(count)), solution[:, 0]
    matrix, energy = own.numpy(), own.diagonal().numpy()
    beta = np.zeros(len(energy))
    alive = np.flatnonzero(energy > 0)
    if count and len(alive):
        scale = energy[alive].mean()  # scikit-learn's tolerances are absolute
        beta[alive] = _down_to(matrix[np.ix_(alive, alive)] / scale, moments.numpy()[alive] / scale, count)
    kept = np.sort(np.lexsort((-energy, -np.abs(beta)))[:count])
    stays = np.zeros(len(beta), dtype=bool)
    stays[kept] = True
    return kept.tolist(), torch.from_numpy(beta * stays)


def _down_to(gram: Array, target: Array, count: int) -> Array:
    """Return the coefficients at the first knot with `count` of them or more; at the path's end if there is none."""
    steps = count
    while True:
        path, is_whole = _path(gram, target, steps)
        large = np.abs(path) > DUST * np.abs(path).max(initial=0.0)
        found = large.sum(axis=0)
        enough = np.flatnonzero(found >= count)
        if len(enough) or is_whole:
            knot = enough[0] if len(enough) else -1
            return np.asarray(path[:, knot] * large[:, knot])
        steps += (
            2 * int(count - found[-1]) + steps // 16 + 4
        )  # each channel that left took a step, and one to come back


def _path(gram: Array, target: Array, steps: int) -> tuple[Array, bool]:
    """Return (channels, knots) the coefficients at the first knots, and whether the path ends there."""
    linear_model = require("sklearn.linear_model", extra="train", purpose="LASSO channel pruning")
    exceptions = require("sklearn.exceptions", extra="train", purpose="LASSO channel pruning")
    with warnings.catch_warnings():
        # It warns where it leaves out a copy of another channel and where the fit is exact; both are dealt with here.
        warnings.simplefilter("ignore", exceptions.ConvergenceWarning)
        _, _, path, taken = linear_model.lars_path_gram(
            target, gram, n_samples=1, max_iter=steps, method="lasso", return_n_iter=True
        )
    return path, taken < steps
