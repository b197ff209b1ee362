"""The one call for single weights: a trained model in, the same model with exactly as many zeros as asked out."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from .budget import WEIGHTS, Budget
from .catalogue import find
from .errors import BudgetError, MethodError, NothingPruned
from .graph.groups import as_args
from .graph.walk import parameters_of
from .methods._weights import Pattern, WeightDecision, WeightMethod, WeightProblem, computed_weights
from .store import BudgetNote, Details, annotate_
from .surgery.finalize import check_plain
from .surgery.shrink import clone
from .train.held_zeros import HeldZeros
from .train.task import Task, check_task
from .weight_plan import WeightPlan

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SparseResult:
    """What `sparsify` returns.

    Attributes:
        model: a copy of the model with its removed weights at exactly zero; otherwise like any other.
        plan: which weights stay.
        budget: what was asked.
        param_count: of the whole model.
        decision: what the method decided, with its scores.
    """

    model: nn.Module
    plan: WeightPlan
    budget: Budget
    param_count: int
    decision: WeightDecision

    @property
    def removed(self) -> float:
        """Fraction removed of what the budget counts."""
        whole = self.plan.weight_count if self.budget.of == WEIGHTS else self.param_count
        return self.plan.removed_count / whole if whole else 0.0

    def hold(self) -> HeldZeros:
        """Return what keeps the zeros at zero in training: ``finetune(..., attachments=[result.hold()])``."""
        return HeldZeros(self.plan)

    def __str__(self) -> str:
        zeros = self.plan.removed_count
        share = zeros / self.param_count if self.param_count else 0.0
        return f"{self.plan}\nof all {self.param_count:,} parameters {share:.1%} are zeros now\n" + (
            f"asked: {self.budget}; got {self.removed:.1%}"
        )


@torch.inference_mode(False)  # tensors made in that mode never train
def sparsify(
    model: nn.Module,
    args: Any = (),
    *,
    budget: Budget | None = None,
    method: str | WeightMethod = "magnitude",
    pattern: str | Pattern | None = None,
    protect: Sequence[str] = (),
    include: Sequence[str] = (),
    kwargs: Mapping[str, Any] | None = None,
    data: Iterable[Any] | None = None,
    task: Task | None = None,
    seed: int = 0,
) -> SparseResult:
    """Set single weights of a model to zero: unstructured pruning, on a copy.

    Zeros make a model compress better, and hardly ever run faster: see docs/explanation/why-is-it-not-faster.md.

    Args:
        model: a trained model; nothing of it changes.
        args: example input for methods that run the model without data: a tensor, or a tuple of positional inputs.
        budget: how much goes: ``Budget(remove=0.9, of="weights")``. May be left out with a pattern.
        method: a name from the catalogue (family "unstructured"), or a method with settings of your own.
        pattern: "2:4" or another N:M: of each M consecutive inputs N weights stay.
        protect: module paths and parameter names whose weights all stay.
        include: names of other parameters (embeddings, parameters of your own modules) that can lose weights too.
        kwargs: keyword inputs of the example.
        data: batches for methods that need them; re-iterable.
        task: how to read a batch; needed with `data`.
        seed: makes random choices repeatable.

    Raises:
        BudgetError: the budget is malformed, not reachable, or contradicts the pattern.
        MethodError: the method cannot work on this model, data or these weights, or removes channels; or the model is
            masked by torch.nn.utils.prune (see `finalize`).
        NothingToPrune: no weight is free to go.
        SurgeryError: the model holds something that cannot be copied, such as a lock; names it.
        TraceError: the model is no module, or torch.jit compiled one of its modules.
        UnknownName: no such method, module or parameter.

    >>> import torch
    >>> layer = nn.Linear(4, 1, bias=False)
    >>> _ = layer.weight.data.copy_(torch.tensor([[3.0, -1.0, 2.0, -4.0]]))
    >>> sparsify(layer, budget=Budget(remove=0.5, of="weights")).model.weight.tolist()
    [[3.0, 0.0, 0.0, -4.0]]
    """
    chosen = weight_method(method)
    check_plain(model)
    what: dict[str, Any] = {"budget": budget, "pattern": pattern, "protect": protect, "include": include}
    problem = weight_problem(model, args, **what, kwargs=kwargs, data=data, task=task, seed=seed)
    asked = problem.budget
    decision = chosen.choose(problem)
    if computed := computed_weights(model, problem.include):
        log.warning(
            "left whole, since torch.nn.utils.parametrize computes them: %s. Make them plain with its "
            "remove_parametrizations, or name what they are computed from with include=",
            ", ".join(computed),
        )
    sparse = clone(decision.model if decision.model is not None else model)
    decision.plan.apply_(sparse)
    if not decision.plan.removed_count and asked.remove > 0:
        warnings.warn(f"{asked}: nothing was removed.", NothingPruned, stacklevel=3)
    count = sum(parameter.numel() for parameter in parameters_of(model).values())
    result = SparseResult(sparse, decision.plan, asked, count, decision)
    name = method if isinstance(method, str) else type(method).__name__
    annotate_(sparse, Details(method=name, budget=BudgetNote(remove=asked.remove, of=asked.of, removed=result.removed)))
    return result


def weight_problem(
    model: nn.Module,
    args: Any,
    *,
    budget: Budget | None,
    pattern: str | Pattern | None,
    protect: Sequence[str],
    include: Sequence[str],
    kwargs: Mapping[str, Any] | None,
    data: Iterable[Any] | None,
    task: Task | None,
    seed: int,
) -> WeightProblem:
    """Return the arguments of `sparsify` as a problem.

    Raises:
        BudgetError: nothing says how much goes, or the budget contradicts the pattern.
        MethodError: `pattern` is no N:M, or there are data without a task.
    """
    blocks = Pattern.parse(pattern) if isinstance(pattern, str) else pattern
    if budget is None and blocks is None:
        raise BudgetError("nothing says how much goes: give budget=Budget(remove=0.9, of='weights') or pattern='2:4'.")
    check_task(task)
    if data is not None and task is None:
        raise MethodError("data= needs task=, which says how to read a batch: e.g. task=ClassificationTask().")
    asked = budget if budget is not None else Budget(blocks.remove if blocks else 0.0, WEIGHTS)
    names = tuple([protect] if isinstance(protect, str) else protect)
    more = tuple([include] if isinstance(include, str) else include)
    return WeightProblem(model, asked, blocks, names, more, as_args(args), dict(kwargs or {}), data, task, seed)


def weight_method(method: str | WeightMethod) -> WeightMethod:
    """Return the method of a name, or the method itself.

    Raises:
        MethodError: it removes channels, or is no method.
        UnknownName: no method of that name.
    """
    made = find(method).make() if isinstance(method, str) else method
    if isinstance(made, type) or not isinstance(made, WeightMethod):
        raise MethodError(
            f"method={method!r}: expected one that removes single weights, by name (family unstructured) or as an "
            "object such as Magnitude(). For channels call secateur.prune."
        )
    return made
