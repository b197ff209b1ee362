"""What a loss loses when a block of weights goes to zero and the others move to make up for it.

Near weights w, a loss is L + g'd + 1/2 d'H d for a step d. With g = 0, the best step that zeroes the block q is

    d = -H^-1 E_q B w_q,   B = [(H^-1)_qq]^-1,   and it costs 1/2 w_q' B w_q.

A layer whose curvature is a Kronecker product, H = S x A, needs neither H nor its inverse: S is the second moment of
the gradients at its outputs, A that of its inputs, and each side has a closed form of its own.

Source: Hassibi & Stork 1992, "Second order derivatives for network pruning: Optimal Brain Surgeon", for one weight;
Martens & Grosse 2015, "Optimizing Neural Networks with Kronecker-factored Approximate Curvature", arXiv:1503.05671,
for S x A. Their blocks are derived here: B is a Schur complement, B = H_qq - H_qk H_kk^-1 H_kq with k all the others.

Damping here regularises H_kk alone, the equations that survivors are solved from. What a block costs by itself stays
as measured, so a channel that is always zero costs nothing whatever the damping is.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import MethodError


def removal_step(weight: Tensor, hessian: Tensor, removed: Tensor) -> Tensor:
    """Return the step that takes some weights to zero at the least cost in curvature.

    Args:
        weight: (size,) all weights.
        hessian: (size, size), positive definite.
        removed: (removed,) indices of the weights that go.

    Returns:
        (size,) d, with ``d[removed] == -weight[removed]``.

    Raises:
        MethodError: the Hessian is not positive definite.

    >>> removal_step(torch.tensor([1.0, 2.0]), torch.tensor([[2.0, 1.0], [1.0, 2.0]]), torch.tensor([0])).tolist()
    [-1.0, 0.5]
    """
    kept = others(removed, len(weight))
    step = torch.zeros_like(weight)
    step[removed] = -weight[removed]
    step[kept] = torch.cholesky_solve(
        (hessian[kept][:, removed] @ weight[removed])[:, None], factor(hessian[kept][:, kept])
    )[:, 0]
    return step


def predicted_change(step: Tensor, gradient: Tensor, hessian: Tensor) -> Tensor:
    """Return the change of a loss that its gradient and Hessian predict for a step; below 0 = it falls.

    With the step ``-weight`` on a block and 0 elsewhere this is what removing the block costs without compensation;
    with `removal_step` of the training Hessian, what it costs with.

    >>> predicted_change(torch.tensor([-1.0]), torch.tensor([0.5]), torch.tensor([[2.0]])).item()
    0.5
    """
    return gradient @ step + step @ (hessian @ step) / 2


def filter_obs_scores(
    weight: Tensor, input_moment: Tensor, output_gradient_moment: Tensor, *, damping: float = 0.0
) -> Tensor:
    """Score each output filter by the loss it takes to remove it when the other filters make up; higher = keep.

    For filter j: 1/2 (w_j' A w_j) / (S^-1)_jj.

    Args:
        weight: W, (filters, inputs); inputs include the constant 1 of a bias.
        input_moment: A, (inputs, inputs).
        output_gradient_moment: S, (filters, filters).
        damping: added to the diagonal of S, as a multiple of its mean, where survivors are solved for.

    Returns:
        (filters,), >= 0, in units of the loss.

    >>> S = torch.tensor([[2.0, 1.0], [1.0, 2.0]])
    >>> filter_obs_scores(torch.tensor([[1.0], [2.0]]), torch.tensor([[4.0]]), S).round(decimals=4).tolist()
    [3.0, 12.0]
    """
    rows = torch.arange(len(weight), device=weight.device)[:, None]
    energy = ((weight @ input_moment) * weight).sum(dim=1)[:, None, None]
    return block_scores(output_gradient_moment, energy, rows, damping=damping)


def channel_obs_scores(
    weight: Tensor,
    input_moment: Tensor,
    output_gradient_moment: Tensor,
    *,
    columns: Tensor,
    damping: float = 0.0,
) -> Tensor:
    """Score each input channel by the loss it takes to remove it when the other channels make up; higher = keep.

    For channel c, with columns c of W: 1/2 tr(S W_c [(A^-1)_cc]^-1 W_c'). With S = 1 this is half the squared error
    of the layer's output after a full least-squares refit.

    Args:
        weight: W, (outputs, inputs); inputs include the constant 1 of a bias.
        input_moment: A, (inputs, inputs).
        output_gradient_moment: S, (outputs, outputs).
        columns: (channels, columns per channel) which inputs are each channel's.
        damping: added to the diagonal of A, as a multiple of its mean, where survivors are solved for.

    Returns:
        (channels,), >= 0, in units of the loss.

    >>> A = torch.tensor([[2.0, 1.0], [1.0, 2.0]])
    >>> each = torch.tensor([[0], [1]])
    >>> S = torch.tensor([[4.0]])
    >>> channel_obs_scores(torch.tensor([[1.0, 2.0]]), A, S, columns=each).round(decimals=4).tolist()
    [3.0, 12.0]
    """
    blocks = weight[:, columns].movedim(0, 1)  # (channels, outputs, columns)
    weighed = (output_gradient_moment @ weight)[:, columns].movedim(0, 1)
    return block_scores(input_moment, blocks.mT @ weighed, columns, damping=damping)


def block_scores(
    moment: Tensor, energy: Tensor, index: Tensor, *, damping: float = 0.0, slope: Tensor | None = None
) -> Tensor:
    """Return what removing each block c costs: 1/2 tr(B_c N_c) with B_c = [(H^-1)_cc]^-1, and the slope's share.

    Args:
        moment: H, (size, size).
        energy: N, (blocks, block size, block size), symmetric.
        index: (blocks, block size) which rows and columns of H are each block's.
        damping: as a multiple of the mean of H's diagonal.
        slope: where the loss's gradient is not 0, T of (blocks, block size, block size): -tr(D_c T_c) is added, with
            D_c the block B_c of the damped H. For columns c of W with gradient G, T_c = W_c' (G H^-1)_c, H damped.

    Raises:
        MethodError: H is not positive definite even with the damping.
    """
    if not index.numel():
        return moment.new_zeros(len(index))
    blocks = schur_blocks(moment, index, damping=damping)
    scores = ((blocks * energy).sum(dim=(1, 2)) / 2).clamp(min=0)
    if slope is None:
        return scores
    own = torch.eye(index.shape[1], dtype=moment.dtype, device=moment.device)
    return scores - ((blocks + ridge_of(moment, damping) * own).mT * slope).sum(dim=(1, 2))


def schur_blocks(moment: Tensor, index: Tensor, *, damping: float = 0.0) -> Tensor:
    """Return H_cc - H_ck (H_kk + damping)^-1 H_kc of each block c, with k all the others: [(H^-1)_cc]^-1 undamped.

    All blocks come from one triangular inverse: (H^-1)_cc is the product of a thin slice of it with itself.

    Args:
        moment: H, (size, size).
        index: (blocks, block size).
        damping: as a multiple of the mean of H's diagonal.

    Raises:
        MethodError: H is not positive definite even with the damping.
    """
    ridge = ridge_of(moment, damping)
    thin = inverse_of_lower(factor(add_diagonal(moment, ridge))).mT.contiguous()[index]  # (blocks, block size, size)
    blocks: Tensor = torch.linalg.inv(thin @ thin.mT)
    own = torch.eye(index.shape[1], dtype=moment.dtype, device=moment.device)
    return blocks - ridge * own


def filter_obs_update(
    weight: Tensor, output_gradient_moment: Tensor, removed: Tensor, *, damping: float = 0.0
) -> Tensor:
    """Return W with some filters at zero and the others moved to make up for all of them at once.

    For one filter j, row i moves by -(S^-1)_ij / (S^-1)_jj w_j.

    Args:
        weight: W, (filters, inputs).
        output_gradient_moment: S, (filters, filters).
        removed: (removed,) indices of filters.
        damping: as for `filter_obs_scores`.

    Raises:
        MethodError: S is not positive definite even with the damping.

    >>> S = torch.tensor([[2.0, 1.0], [1.0, 2.0]])
    >>> filter_obs_update(torch.tensor([[1.0], [2.0]]), S, torch.tensor([0])).tolist()
    [[0.0], [2.5]]
    """
    return channel_obs_update(weight.mT, output_gradient_moment, removed, damping=damping).mT


def channel_obs_update(weight: Tensor, input_moment: Tensor, removed: Tensor, *, damping: float = 0.0) -> Tensor:
    """Return W with some columns at zero and the others moved to make up for all of them at once.

    For one channel c: dW = -W_c [(A^-1)_cc]^-1 (A^-1)_c,:.

    Args:
        weight: W, (outputs, inputs).
        input_moment: A, (inputs, inputs).
        removed: (removed,) indices of columns.
        damping: as for `channel_obs_scores`.

    Raises:
        MethodError: A is not positive definite even with the damping.

    >>> A = torch.tensor([[2.0, 1.0], [1.0, 2.0]])
    >>> channel_obs_update(torch.tensor([[1.0, 2.0]]), A, torch.tensor([0])).tolist()
    [[0.0, 2.5]]
    """
    kept = others(removed, weight.shape[1])
    lower = factor(add_diagonal(input_moment[kept][:, kept], ridge_of(input_moment, damping)))
    moved = torch.cholesky_solve(input_moment[kept][:, removed] @ weight[:, removed].mT, lower)
    changed = torch.zeros_like(weight)
    changed[:, kept] = weight[:, kept] + moved.mT
    return changed


def others(removed: Tensor, size: int) -> Tensor:
    """Return the indices in ``range(size)`` that are not removed, ascending."""
    stays = torch.ones(size, dtype=torch.bool, device=removed.device)
    stays[removed] = False
    return stays.nonzero().flatten()


def ridge_of(moment: Tensor, damping: float) -> float:
    """Return the number to add to a moment's diagonal: a multiple of its mean, or of 1 where all of it is zero."""
    mean = float(moment.diagonal().mean()) if len(moment) else 0.0
    return damping * (mean if mean > 0 else 1.0)


def add_diagonal(moment: Tensor, ridge: float) -> Tensor:
    """Return a copy of the matrix with a number added to its diagonal."""
    changed = moment.clone()
    changed.diagonal().add_(ridge)
    return changed


def inverse_of_lower(lower: Tensor) -> Tensor:
    """Invert a lower triangular matrix by halves, so that most of the work is products of matrices."""
    size = len(lower)
    inverse = torch.zeros_like(lower)
    if size <= 1024:
        solved: Tensor = torch.linalg.solve_triangular(lower, inverse.fill_diagonal_(1.0), upper=False)
        return solved
    half = size // 2
    first, second = inverse_of_lower(lower[:half, :half]), inverse_of_lower(lower[half:, half:])
    inverse[:half, :half], inverse[half:, half:] = first, second
    inverse[half:, :half] = -second @ (lower[half:, :half] @ first)
    return inverse


def factor(matrix: Tensor) -> Tensor:
    """Return the lower Cholesky factor.

    Raises:
        MethodError: the matrix is not positive definite.
    """
    lower: Tensor
    lower, failed = torch.linalg.cholesky_ex(matrix)
    if bool(failed):
        raise MethodError(
            f"a matrix of {len(matrix)} x {len(matrix)} second moments is singular: too few samples for its size. "
            "Give more data, or raise damping (now too small)."
        )
    return lower
