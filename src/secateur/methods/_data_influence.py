"""Which training samples a prediction, or a pruning decision, rests on.

Source: Koh & Liang 2017, "Understanding Black-box Predictions via Influence Functions", arXiv:1703.04730, section 2.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ..errors import MethodError, UnknownName
from ..graph.groups import ChannelGraph
from ..plan import Plan
from ..surgery.mask import dead_places, neutral
from ..train.batches import sample_count
from ..train.task import Task
from ._curvature import ConjugateGradient as ConjugateGradient
from ._curvature import Lissa as Lissa
from ._curvature import Solver, Surface, flat
from ._pull_back import batches, differentiable_copy, loss_of, singles

Target = Iterable[Any] | Callable[[nn.Module], Tensor]


@dataclass(frozen=True, eq=False)
class DataInfluence:
    """What `data_influence` returns.

    Attributes:
        removal: (samples,) predicted change of the target if the sample were left out of the training; for a loss,
            above 0 = the sample helps.
        residual: how far the equations are from being solved, as a fraction; well below 1, or it means nothing.
    """

    removal: Tensor
    residual: float

    @property
    def upweighting(self) -> Tensor:
        """Return the derivative of the target for the weight of each sample in a sum of losses: I_up of the paper."""
        return -self.removal * len(self.removal)

    def strongest(self, count: int) -> list[int]:
        """Return the numbers of the samples that matter most, either way, strongest first."""
        order: list[int] = self.removal.abs().argsort(descending=True, stable=True)[:count].tolist()
        return order


def data_influence(
    model: nn.Module,
    task: Task,
    *,
    train: Iterable[Any],
    target: Target,
    solver: Solver | None = None,
    parameters: Sequence[str] | None = None,
) -> DataInfluence:
    """Predict how a loss, or any number made of the model, would change if each training sample were left out.

    To first order, leaving one of n samples out moves the weights by ``1/n H^-1 grad L(z)``, with H the Hessian of
    the training loss, and so a number f by ``1/n grad f' H^-1 grad L(z)``. The equations are solved once, for f; then
    each sample costs one gradient. The model is used in eval mode and is as before afterwards.

    A pruning decision is such a number: with ``target=RemovalCost(...)`` it is the loss that removing some channels
    costs, with ``target=lambda model: model.conv.weight[3].abs().sum()`` the score of one filter. The samples with
    the strongest influence are those that the decision rests on.

    Args:
        model: trained on `train`; nothing of it changes.
        task: how to read a batch, and the loss that was trained.
        train: all training batches, in an order that stays the same; they are held in memory.
        target: batches of test samples, whose mean loss is meant, or a function of the model that returns a scalar to
            differentiate.
        solver: `ConjugateGradient` (None = with its defaults) or `Lissa`. Its damping is where weight decay belongs.
        parameters: names of parameters, or paths of modules, whose weights may move; None = all that are trained.

    Returns:
        One number per training sample, in the order of `train`.

    Raises:
        MethodError: no batch, a loss that is not finite, or curvature that is not positive.
        UnknownName: no such parameter.

    >>> from secateur.train import RegressionTask
    >>> line = nn.Linear(1, 1, bias=False)
    >>> line.weight.data.fill_(2.0)
    tensor([[2.]])
    >>> train = [(torch.tensor([[1.0], [1.0]]), torch.tensor([[1.0], [3.0]]))]
    >>> test = [(torch.tensor([[1.0]]), torch.tensor([[3.0]]))]
    >>> exact = ConjugateGradient(damping=0.0)
    >>> data_influence(line, RegressionTask(), train=train, target=test, solver=exact).removal.tolist()
    [-1.0, 1.0]
    """
    copied = differentiable_copy(model)
    chosen = [copied.get_parameter(name) for name in _names(model, parameters)]
    with batches(train, task, copied, "data_influence") as data:
        surface = Surface(copied, task, list(data), chosen)
        solution = (solver or ConjugateGradient()).solve(surface, _slope_of(target, surface))
        found = [float(own @ solution.vector) for own in _gradients(surface)]
    return DataInfluence(torch.tensor(found, dtype=torch.float64) / len(found), solution.residual)


@dataclass(frozen=True, eq=False)
class RemovalCost:
    """The loss that removing some channels costs, as a number to differentiate: L(masked) - L(whole).

    Attributes:
        graph: the model's channel graph.
        plan: what is removed, e.g. ``Plan.from_removed({"conv1": [3]}, graph.widths)``.
        data: labelled batches that the loss is taken on.
        task: how to read them.
    """

    graph: ChannelGraph
    plan: Plan
    data: Iterable[Any]
    task: Task

    def __call__(self, model: nn.Module) -> Tensor:
        """Return the cost."""
        return torch.stack(list(self.terms(model))).sum()

    def terms(self, model: nn.Module) -> Iterator[Tensor]:
        """Yield the share of each batch in the cost, so that their graphs need not be held together.

        Raises:
            MethodError: there is no batch, or a loss is not finite.
        """
        dead = dict(dead_places(self.graph, self.plan))
        with batches(self.data, self.task, model, "RemovalCost") as data:
            held = list(data)
        total = sum(sample_count(*self.task.to_inputs(batch)) for batch in held)
        for batch in held:
            tensors = dict([*model.named_parameters(), *model.named_buffers()])
            masked = {
                name: tensors[name].masked_fill(gone.to(tensors[name].device), neutral(name))
                for name, gone in dead.items()
            }
            args, kwargs = self.task.to_inputs(batch)
            loss, count = loss_of(model, batch, self.task)
            cut = self.task.loss(functional_call(model, masked, args, kwargs), batch)
            yield (cut - loss) * (count / total)


def _slope_of(target: Target, surface: Surface) -> Tensor:
    if isinstance(target, RemovalCost):
        parts = [_gradient(term, surface) for term in target.terms(surface.model)]
        return torch.stack(parts).sum(dim=0)
    if callable(target):
        return _gradient(target(surface.model), surface)
    with batches(target, surface.task, surface.model, "data_influence") as data:
        return Surface(surface.model, surface.task, list(data), surface.parameters).gradient()


def _gradient(value: Tensor, surface: Surface) -> Tensor:
    if not isinstance(value, Tensor) or value.ndim or not value.requires_grad:
        raise MethodError(f"target= gave {value!r}: expected a scalar tensor that depends on the model's weights.")
    return flat(torch.autograd.grad(value, surface.parameters, materialize_grads=True))


def _gradients(surface: Surface) -> Iterator[Tensor]:
    """Yield the gradient of the loss of one sample after another."""
    for batch, count in zip(surface.batches, surface.counts, strict=True):
        for one in singles(batch, count):
            loss, _ = loss_of(surface.model, one, surface.task)
            yield flat(torch.autograd.grad(loss, surface.parameters, materialize_grads=True))


def _names(model: nn.Module, asked: Sequence[str] | None) -> list[str]:
    known = {name: parameter for name, parameter in model.named_parameters() if parameter.is_floating_point()}
    if asked is None:
        if found := [name for name, parameter in known.items() if parameter.requires_grad]:
            return found
        raise MethodError("every parameter is frozen: name those that count with parameters=.")
    chosen: set[str] = set()
    for path in [asked] if isinstance(asked, str) else asked:
        own = {name for name in known if name == path or name.startswith(f"{path}.")}
        if not own:
            raise UnknownName("parameter", path, known)
        chosen |= own
    return [name for name in known if name in chosen]
