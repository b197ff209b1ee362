"""GraSP: weights stay whose removal would weaken the flow of gradients.

Source: Wang, Zhang, Grosse, "Picking Winning Tickets Before Training by Preserving Gradient Flow", ICLR 2020,
arXiv:2002.07376, section 4.

Claim: a network that is pruned before training learns best if it keeps its gradient norm, which is how fast its loss
falls at first; the loss itself says nothing then.

Equation: S = -theta o (H g), the change of |g|^2 / 2 (to first order) on removing each weight; those with the largest S
go, so score = theta o (H g). theta: weights; g: gradient of the mean loss L(f(x) / T); H: its Hessian; o: product of
elements; T: temperature.

Cost: two passes over the batches, one by default: the first takes g, the second H g by differentiating g'(dL/dtheta)
once more, about three times a backward pass in time and the graph of one batch in memory; a copy of the model and two
vectors of a number for each weight. Half-precision models are copied to float32.

Use it when a network is to be trained sparse from the beginning and very few weights (5 % or less) stay. It is meant
for weights as they are drawn, with about ten samples of every class in `data`.

Where we differ, and why:

- The paper draws ten samples of every class. Labels are the task's business here, so batches are read as they come:
  give a loader whose first batch is about that large, or raise `batch_count`.
- The weights are those given, trained or not. On trained weights g is near zero, and so is what it can tell.
- T = 200, as in the authors' code, belongs to a cross entropy of logits. Other losses are not made of logits: unless
  `temperature` is set, it is 1 for all tasks but ClassificationTask and NextTokenTask.
- g and H are of the weights that can be pruned, as in the code: those of biases and norms are constants. Protected
  weights take part.
- Norms use the statistics of each batch, as in training; dropout is off.
- Scores can be negative, so weights that are exactly zero (score 0) do not go first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import MethodError
from ..train.task import ClassificationTask, FunctionTask, NextTokenTask, Task, logits_of
from ._curvature import twice_differentiable
from ._gradients import check_gradients, differentiating, explained, loss_of, runner_of
from ._settings import check_settings
from ._weight_choice import Scope, check_scope, choose
from ._weights import WeightDecision, WeightProblem, prunable_weights

TEMPERATURE = 200.0


def gradient_flow(weight: Tensor, product: Tensor) -> Tensor:
    """Return theta o (H g), by how much removing each weight lowers |g|^2 / 2 to first order; higher = keep.

    Source: Wang et al. 2020, section 4.1, equation 8, with the sign turned.

    Args:
        weight: theta, of any shape.
        product: H g in the same shape.

    Returns:
        In the same shape and float64, of any sign, in the squared unit of the loss by that of the weights.

    >>> gradient_flow(torch.tensor([2.0, -1.0]), torch.tensor([0.5, 3.0])).tolist()
    [1.0, -3.0]
    """
    return weight.detach().double() * product.double()


@dataclass(frozen=True)
class Grasp:
    """Remove the weights that add least to the gradient's norm, or take from it.

    Attributes:
        temperature: what logits are divided by before the loss; None = 200 (the authors' code) for ClassificationTask
            and NextTokenTask, else 1. With a number of its own the task's loss is given the divided logits alone.
        batch_count: how many batches to read; fewer if the data have fewer. They are held in memory.
        norm_statistics: "batch" (as in training) or "running" (as in use).
        scope: what is ranked together: "global" (the paper), "layer", "row", or {parameter: relative fraction to
            remove}.
    """

    temperature: float | None = None
    batch_count: int = 1
    norm_statistics: str = "batch"
    scope: Scope = "global"

    def __post_init__(self) -> None:
        check_scope(self.scope)
        heat = self.temperature
        is_valid = heat is None or (not isinstance(heat, bool) and isinstance(heat, int | float) and 0 < heat < 1e30)
        check_settings(
            self,
            {
                "temperature": (is_valid, "a number above 0, or None"),
                "batch_count": (type(self.batch_count) is int and self.batch_count > 0, "a whole number >= 1"),
                "norm_statistics": (self.norm_statistics in ("batch", "running"), "'batch' or 'running'"),
            },
        )

    def choose(self, problem: WeightProblem) -> WeightDecision:
        """Score and choose; runs batches forward and twice backward on a copy of the model.

        Raises:
            BudgetError: the budget is not reachable.
            MethodError: no labelled data; weights, loss or gradients are not finite; the loss is linear in the weights.
            NothingToPrune: no weight is free to go.
        """
        weights = problem.weights()
        names = [weight.name for weight in prunable_weights(problem.model, problem.include)]
        products = self._products(problem, names)
        scores = {weight.name: gradient_flow(weight.tensor, products[weight.name]) for weight in weights}
        if not any(bool(found.any()) for found in products.values()):
            raise MethodError(
                "grasp: the Hessian times the gradient is zero for every weight, so nothing can be ranked: the loss is "
                "linear in the weights on these batches, or no gradient reaches them."
            )
        return WeightDecision(choose(problem, weights, scores, self.scope), scores=scores)

    def _products(self, problem: WeightProblem, names: Sequence[str]) -> dict[str, Tensor]:
        with differentiating(problem, "grasp", self.batch_count) as found:
            runner, wanted = runner_of(problem.model, names, batch_statistics=self.norm_statistics == "batch")
            assert problem.task is not None
            task = _cooled(problem.task, self.temperature)
            batches = [batch for _, batch in found]
            with twice_differentiable(runner):
                return hessian_times_gradient(runner, wanted, batches, task)


def hessian_times_gradient(
    runner: nn.Module, wanted: Mapping[str, Tensor], batches: Sequence[Any], task: Task
) -> dict[str, Tensor]:
    """Return H g of the mean of the batches' losses, without forming H.

    Source: Wang et al. 2020, section 4.2; Pearlmutter 1994.

    Args:
        runner: model whose tensors `wanted` take gradients.
        wanted: name -> tensor.
        batches: on the model's device.
        task: how to read them.

    Raises:
        MethodError: a loss cannot be computed, or something is not finite.
    """
    tensors = list(wanted.values())
    first = [torch.zeros_like(tensor) for tensor in tensors]
    second = [torch.zeros_like(tensor) for tensor in tensors]
    for number, batch in enumerate(batches):
        where = f"grasp, batch {number}"
        loss = loss_of(runner, task, batch, where)
        with explained(where):
            slopes = torch.autograd.grad(loss, tensors, materialize_grads=True)
        check_gradients(dict(zip(wanted, slopes, strict=True)), where)
        torch._foreach_add_(first, list(slopes), alpha=1 / len(batches))
    for number, batch in enumerate(batches):
        where = f"grasp, batch {number}"
        loss = loss_of(runner, task, batch, where)
        with explained(where):
            slopes = torch.autograd.grad(loss, tensors, create_graph=True, materialize_grads=True)
            along = torch.stack([(g * slope).sum() for g, slope in zip(first, slopes, strict=True)]).sum()
            if along.requires_grad:  # else the loss is linear in these weights
                bent = torch.autograd.grad(along, tensors, materialize_grads=True)
                torch._foreach_add_(second, list(bent), alpha=1 / len(batches))
    products = dict(zip(wanted, second, strict=True))
    check_gradients(products, "grasp")
    return products


def _cooled(task: Task, temperature: float | None) -> Task:
    heat = temperature
    if heat is None:
        heat = TEMPERATURE if isinstance(task, ClassificationTask | NextTokenTask) else 1.0
    if heat == 1:
        return task
    return FunctionTask(
        inputs=task.to_inputs, loss=lambda output, batch: task.loss(logits_of(output) / heat, batch), metric=task.metric
    )
