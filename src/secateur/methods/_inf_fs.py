"""Infinite feature selection: how much a feature weighs on all paths through the graph of features."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def ranks(values: Tensor) -> Tensor:
    """Rank each column, from 0; equal values share the mean of their ranks.

    >>> ranks(torch.tensor([[3.0], [1.0], [3.0]])).flatten().tolist()
    [1.5, 0.0, 1.5]
    """
    columns = values.T.contiguous()
    ordered = columns.sort(dim=1).values
    below, up_to = (torch.searchsorted(ordered, columns, right=right) for right in (False, True))
    return ((below + up_to - 1).double() / 2).T


def feature_graph(responses: Tensor, alpha: float) -> Tensor:
    """Return how strongly every two features are joined: both spread out, and not ordering the samples alike.

    ``A_ij = alpha * sigma_ij + (1 - alpha) * c_ij`` with sigma_ij = max(std_i, std_j), brought to [0, 1] over all
    pairs, and c_ij = 1 - |Spearman correlation of i and j|. A feature that never varies has no edges.

    Source: Roffo, Melzi, Cristani 2015, "Infinite Feature Selection", ICCV, section 3.

    Args:
        responses: (samples, features).
        alpha: share of the spread, 0 to 1; the rest is the correlation's.

    Returns:
        (features, features), symmetric, 0 to 1, float64.
    """
    values = responses.double().cpu()
    spread = values.std(dim=0, correction=0)
    varies = values.amax(dim=0) > values.amin(dim=0)
    widest = torch.maximum(spread[:, None], spread)
    live = widest[varies][:, varies]
    if not live.numel():
        return torch.zeros_like(widest)
    low, high = live.min(), live.max()
    sigma = (widest - low) / (high - low) if high > low else torch.ones_like(widest)
    order = ranks(values)
    order = order - order.mean(dim=0)
    unit = order / order.norm(dim=0).where(varies, torch.ones(()).double())
    apart = 1 - (unit.T @ unit).abs().clamp(max=1.0)
    edges: Tensor = alpha * sigma + (1 - alpha) * apart
    return edges.where(varies[:, None] & varies, 0.0)


def path_scores(edges: Tensor, decay: float) -> Tensor:
    """Add up the weights of all paths of every length that start at each feature; higher = keep.

    ``S = (I - r A)^-1 - I`` with r = f / rho(A), rho the largest absolute eigenvalue; the score of i is sum_j S_ij.

    Source: Roffo et al. 2015, section 3.

    Args:
        edges: (features, features), symmetric, >= 0; A above.
        decay: f above, 0 < f < 1: how much of a path's weight its next step keeps, in the direction that keeps most.

    Returns:
        (features,), >= 0.

    >>> [round(score, 6) for score in path_scores(torch.tensor([[0.0, 3.0], [3.0, 0.0]]), decay=0.9).tolist()]
    [9.0, 9.0]
    """
    matrix = edges.double()
    radius = _radius(matrix)
    if radius <= 0:
        return torch.zeros(len(matrix), dtype=torch.float64)
    one = torch.ones(len(matrix), 1, dtype=torch.float64)
    step = torch.eye(len(matrix), dtype=torch.float64) - decay / radius * matrix
    scores: Tensor = torch.linalg.solve(step, one) - one
    return scores.flatten().clamp(min=0.0)


def _radius(matrix: Tensor) -> float:
    """Return the largest eigenvalue of a symmetric matrix without negative entries, which is its spectral radius."""
    size = len(matrix)
    if size <= 256 or not bool(matrix.any()):
        return float(torch.linalg.eigvalsh(matrix)[-1])
    from scipy.sparse.linalg import eigsh  # a hundred modules, which few need

    found = eigsh(matrix.numpy(), k=1, which="LA", v0=np.ones(size), return_eigenvectors=False)
    return float(found[0])


def infinite_feature_scores(responses: Tensor, *, alpha: float = 0.5, decay: float = 0.9) -> Tensor:
    """Rank features without labels; higher = keep. See `feature_graph` and `path_scores`.

    Args:
        responses: (samples, features).
        alpha: as in `feature_graph`.
        decay: as in `path_scores`.

    Returns:
        (features,), >= 0, float64; 0 for a feature that never varies.

    >>> infinite_feature_scores(torch.tensor([[0.0, 2.0, 7.0], [1.0, 1.0, 7.0], [2.0, 9.0, 7.0]])).argmin().item()
    2
    """
    return path_scores(feature_graph(responses, alpha), decay)
