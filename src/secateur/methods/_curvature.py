"""Curvature of a loss without its matrix: Hessian-vector products, and equations solved with them.

Source: Pearlmutter 1994, "Fast Exact Multiplication by the Hessian"; Agarwal, Bullins, Hazan 2017, "Second-Order
Stochastic Optimization for Machine Learning in Linear Time" (LiSSA), arXiv:1602.03943, as used by Koh & Liang 2017,
arXiv:1703.04730, section 3.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator, cg
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..errors import MethodError
from ..graph.tape import plain_kernels
from ..train.batches import sample_count
from ..train.task import Task
from ._pull_back import loss_of

log = logging.getLogger(__name__)


@contextmanager
def twice_differentiable(model: nn.Module) -> Iterator[None]:
    """Run attention, and recurrent layers, by kernels whose gradients have gradients."""
    if any(isinstance(module, nn.RNNBase) for module in model.modules()):
        with plain_kernels():
            yield
    else:
        with sdpa_kernel(SDPBackend.MATH):
            yield


def flat(tensors: Sequence[Tensor]) -> Tensor:
    """Return all elements as one (size,) vector in float64 on the CPU."""
    return torch.cat([tensor.detach().reshape(-1).cpu().double() for tensor in tensors])


@dataclass(frozen=True, eq=False)
class Surface:
    """The mean loss of a model over some batches, around its weights.

    Attributes:
        model: as `differentiable_copy` returns.
        task: how to read a batch.
        batches: on the model's device.
        parameters: the weights that count, of the model; all others are constants.
    """

    model: nn.Module
    task: Task
    batches: Sequence[Any]
    parameters: Sequence[nn.Parameter]

    @property
    def size(self) -> int:
        """Number of weights."""
        return sum(parameter.numel() for parameter in self.parameters)

    @property
    def counts(self) -> list[int]:
        """Samples of each batch."""
        return [sample_count(*self.task.to_inputs(batch)) for batch in self.batches]

    def gradient(self, numbers: Sequence[int] | None = None) -> Tensor:
        """Return (size,) the gradient of the mean loss over these batches; None = all."""
        chosen = range(len(self.batches)) if numbers is None else numbers
        counts, total = self.counts, torch.zeros(self.size, dtype=torch.float64)
        for n in chosen:
            loss, _ = loss_of(self.model, self.batches[n], self.task)
            total += flat(torch.autograd.grad(loss, self.parameters, materialize_grads=True)) * counts[n]
        return total / sum(counts[n] for n in chosen)

    def product(self, vector: Tensor, numbers: Sequence[int] | None = None) -> Tensor:
        """Return (size,) the Hessian of the mean loss over these batches times a vector.

        One pass forward and two back for each batch; the Hessian is never formed.
        """
        chosen = range(len(self.batches)) if numbers is None else numbers
        counts, total, parts = self.counts, torch.zeros(self.size, dtype=torch.float64), self._parts(vector)
        with twice_differentiable(self.model):
            for n in chosen:
                loss, _ = loss_of(self.model, self.batches[n], self.task)
                slopes = torch.autograd.grad(loss, self.parameters, create_graph=True, materialize_grads=True)
                along = torch.stack([(s * v).sum() for s, v in zip(slopes, parts, strict=True)]).sum()
                if along.requires_grad:  # else the loss is linear in these weights
                    total += flat(torch.autograd.grad(along, self.parameters, materialize_grads=True)) * counts[n]
        return total / sum(counts[n] for n in chosen)

    def _parts(self, vector: Tensor) -> list[Tensor]:
        sizes = [parameter.numel() for parameter in self.parameters]
        pairs = zip(vector.split(sizes), self.parameters, strict=True)
        return [part.view(parameter.shape).to(parameter) for part, parameter in pairs]


class Solution(NamedTuple):
    """A vector x, and how far it is from solving ``(H + damping) x = b``: the norm of what is left over that of b."""

    vector: Tensor
    residual: float


class Solver(Protocol):
    """Solves ``(H + damping) x = b`` by Hessian-vector products."""

    def solve(self, surface: Surface, right: Tensor) -> Solution:
        """Return x."""


def _check_damping(damping: float) -> None:
    if not 0 <= damping < math.inf:
        raise MethodError(f"damping={damping!r}: expected a number of 0 or more, e.g. 0.01.")


def _check_count(name: str, value: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise MethodError(f"{name}={value!r}: expected a whole number of 1 or more.")


def _residual(surface: Surface, vector: Tensor, right: Tensor, damping: float) -> float:
    left = surface.product(vector) + damping * vector - right
    return float(left.norm() / right.norm()) if bool(right.any()) else 0.0


@dataclass(frozen=True)
class ConjugateGradient:
    """Solve on the whole data set at once.

    Attributes:
        damping: added to the Hessian's diagonal, in the unit of curvature. The weight decay of the training belongs
            here; above it, as much as makes the Hessian positive definite where training has not converged (0.01 in
            the paper's section 4.2).
        iterations: most steps, of one pass over the data each (the authors' code: 100).
        tolerance: ends once the residual is below this fraction of the right-hand side.

    Raises:
        MethodError: a setting makes no sense.
    """

    damping: float = 0.01
    iterations: int = 100
    tolerance: float = 1e-8

    def __post_init__(self) -> None:
        _check_damping(self.damping)
        _check_count("iterations", self.iterations)
        if not 0 < self.tolerance < 1:
            raise MethodError(f"tolerance={self.tolerance!r}: expected a fraction above 0 and below 1.")

    def solve(self, surface: Surface, right: Tensor) -> Solution:
        """Return x; a residual above the tolerance is logged.

        Raises:
            MethodError: the curvature is not positive along a direction that is met.
        """

        def times(direction: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
            vector = torch.from_numpy(np.ascontiguousarray(direction).reshape(-1))
            found = surface.product(vector) + self.damping * vector
            if bool(vector.any()) and float(vector @ found) <= 0:
                curvature = float(vector @ found / (vector @ vector)) - self.damping
                raise MethodError(
                    f"the loss curves down along a direction (by {curvature:.3g}), so its weights are at no minimum. "
                    f"Train further, or use a damping well above {-curvature:.3g}; it is {self.damping:g}."
                )
            return found.numpy()

        operator = LinearOperator((surface.size, surface.size), matvec=times, dtype=np.float64)
        found, _ = cg(operator, right.numpy(), rtol=self.tolerance, atol=0.0, maxiter=self.iterations)
        vector = torch.from_numpy(found)
        residual = _residual(surface, vector, right, self.damping)
        if residual > 10 * self.tolerance:
            log.warning("conjugate gradients ended after %d steps at a residual of %.1e", self.iterations, residual)
        return Solution(vector, residual)


@dataclass(frozen=True)
class Lissa:
    """Solve by steps on one batch each: cheaper than `ConjugateGradient` where the data are many, and less exact.

    ``h <- b + (1 - damping / scale) h - H_batch h / scale`` converges to scale x if the eigenvalues of every batch's
    ``H + damping`` lie between 0 and twice the scale.

    Attributes:
        damping: as for `ConjugateGradient`. (The authors' code counts it in units of the scale.)
        scale: above the largest eigenvalue of any batch's Hessian; None = found by power iteration (the authors' code:
            10).
        depth: steps.
        repeats: runs that are averaged.
        seed: of the order of batches.

    Raises:
        MethodError: a setting makes no sense.
    """

    damping: float = 0.01
    scale: float | None = None
    depth: int = 10_000
    repeats: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        _check_damping(self.damping)
        _check_count("depth", self.depth)
        _check_count("repeats", self.repeats)
        if self.scale is not None and not 0 < self.scale < math.inf:
            raise MethodError(f"scale={self.scale!r}: expected a number above 0, or None.")

    def solve(self, surface: Surface, right: Tensor) -> Solution:
        """Return x.

        Raises:
            MethodError: the steps diverge.
        """
        scale = self.scale if self.scale is not None else self._scale(surface)
        generator = torch.Generator().manual_seed(self.seed)
        total = torch.zeros_like(right)
        for _ in range(self.repeats):
            total += self._run(surface, right, scale, generator)
        vector = total / self.repeats
        return Solution(vector, _residual(surface, vector, right, self.damping))

    def _run(self, surface: Surface, right: Tensor, scale: float, generator: torch.Generator) -> Tensor:
        found, order = right.clone(), list[int]()
        for _ in range(self.depth):
            order = order or torch.randperm(len(surface.batches), generator=generator).tolist()
            step = surface.product(found, [order.pop()]) + self.damping * found
            found = right + found - step / scale
            if not bool(found.isfinite().all()):
                raise MethodError(
                    f"the steps diverge with scale={scale:g} and damping={self.damping:g}: raise scale above the "
                    "largest eigenvalue of every batch, or damping above the most negative one."
                )
        return found / scale

    def _scale(self, surface: Surface) -> float:
        products = [partial(surface.product, numbers=[n]) for n in range(len(surface.batches))]
        largest = [largest_eigenvalue(product, surface.size, seed=self.seed) for product in products]
        # Power iteration comes from below.
        return 1.1 * (max(map(abs, largest)) + self.damping) or 1.0


def largest_eigenvalue(
    product: Callable[[Tensor], Tensor], size: int, *, iterations: int = 50, tolerance: float = 1e-3, seed: int = 0
) -> float:
    """Estimate the eigenvalue of largest magnitude of a symmetric matrix by power iteration.

    Args:
        product: the matrix times a (size,) vector in float64.
        size: of the matrix.
        iterations: most products.
        tolerance: ends when the estimate changes by less than this fraction.
        seed: of the first vector.

    >>> round(largest_eigenvalue(lambda v: v * torch.tensor([3.0, -1.0]), 2), 2)
    3.0
    """
    vector = torch.randn(size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    vector, value = vector / vector.norm(), 0.0
    for _ in range(iterations):
        found = product(vector)
        length = float(found.norm())
        if length == 0:
            return 0.0
        before, value = value, float(vector @ found)
        if abs(value - before) <= tolerance * abs(value):
            break
        vector = found / length
    return value
