"""Knowledge distillation: the pruned network learns from the one that it was cut from.

Source: Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015, arXiv:1503.02531 (logits);
Romero et al., "FitNets: Hints for Thin Deep Nets", ICLR 2015, arXiv:1412.6550 (features).

Where we differ, and why:

- The metric and the way that a batch is read are the task's own, so a distilled network is measured as any other.
- Features of layers whose width was cut meet the teacher's through a linear map that is trained beside the network and
  thrown away; where the width was kept, as on a residual stream, there is none.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import MethodError, UnknownName
from ..graph.walk import modules_of
from ..train.attachment import Attachment, Moment
from ..train.batches import device_of, to_device
from ..train.task import Inputs, Task, logits_of


class DistillationTask:
    """A task whose loss is (1 - weight) * task loss + weight * T^2 * KL(teacher || student), at temperature T.

    Source: Hinton et al. 2015, section 2.

    Attributes:
        task: says how to read a batch, and measures.
        teacher: a trained network; a copy is kept in evaluation mode and nothing flows back into it.
        temperature: T, softens both distributions. 4 on CIFAR, 1 to 2 on ImageNet.
        weight: share of the teacher, 0 to 1; at 1 labels are not needed for the loss.

    Raises:
        MethodError: a number makes no sense.

    >>> from secateur.train.task import ClassificationTask
    >>> student, teacher = nn.Linear(3, 2), nn.Linear(3, 2)
    >>> task = DistillationTask(ClassificationTask(), teacher, weight=1.0)
    >>> batch = (torch.ones(4, 3), torch.zeros(4, dtype=torch.long))
    >>> same = task.loss(teacher(batch[0]), batch)
    >>> bool(same.abs() < 1e-6), bool(task.loss(student(batch[0]), batch) > same)
    (True, True)
    """

    def __init__(self, task: Task, teacher: nn.Module, *, temperature: float = 4.0, weight: float = 0.9) -> None:
        if not 0 < temperature < float("inf"):
            raise MethodError(f"temperature={temperature!r}: expected a number above 0.")
        if not 0 <= weight <= 1:
            raise MethodError(f"weight={weight!r}: expected the teacher's share of the loss, 0 to 1.")
        self.task, self.temperature, self.weight = task, temperature, weight
        self.teacher = copy.deepcopy(teacher).eval().requires_grad_(False)

    @property
    def name(self) -> str:
        """The task's metric."""
        return self.task.name

    @property
    def higher_is_better(self) -> bool:
        """As for the task."""
        return self.task.higher_is_better

    def to_inputs(self, batch: Any) -> Inputs:
        """Return what the task makes of the batch."""
        return self.task.to_inputs(batch)

    def metric(self, output: Any, batch: Any) -> Tensor:
        """Return the task's metric."""
        return self.task.metric(output, batch)

    def loss(self, output: Any, batch: Any) -> Tensor:
        """Return the loss of the batch, a scalar."""
        student = logits_of(output)
        with torch.no_grad():
            place = next(iter(self.teacher.parameters()), student).device
            if place != student.device:
                self.teacher.to(student.device)
            args, kwargs = to_device(self.task.to_inputs(batch), student.device)
            teacher = logits_of(self.teacher(*args, **kwargs))
        soft = divergence(student, teacher, self.temperature)
        if self.weight == 1:
            return soft
        return (1 - self.weight) * self.task.loss(output, batch) + self.weight * soft


def divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Return T^2 * KL(softmax(teacher / T) || softmax(student / T)), the mean over all but the class axis.

    Args:
        student: (samples, classes, ...) logits.
        teacher: likewise.
        temperature: T.

    >>> logits = torch.tensor([[0.0, 2.0]])
    >>> round(divergence(logits, logits.flip(1), 1.0).item(), 4)
    1.5232
    """
    own = F.log_softmax(student / temperature, dim=1)
    wanted = F.log_softmax(teacher / temperature, dim=1)
    return temperature**2 * (wanted.exp() * (wanted - own)).sum(1).mean()


class FeatureDistillation(Attachment):
    """Adds sum over layers of mean ||map(student feature) - teacher feature||^2 to the loss.

    Source: Romero et al. 2015, section 2.2 (hints), for several layers at once.

    Attributes:
        teacher: a trained network; a copy is kept in evaluation mode.
        layers: module paths that both networks have; what they return is compared.
        weight: of the whole term.

    Raises:
        MethodError: no layers, or a layer does not return a tensor.
        UnknownName: the teacher has no such module.
    """

    def __init__(self, teacher: nn.Module, layers: tuple[str, ...], *, weight: float = 1.0) -> None:
        known = modules_of(teacher, shared=True)
        for path in layers:
            if path not in known:
                raise UnknownName("module", path, filter(None, known))
        if not layers or not 0 < weight < float("inf"):
            raise MethodError(f"layers={layers!r}, weight={weight!r}: expected some module paths and a weight above 0.")
        self.teacher = copy.deepcopy(teacher).eval().requires_grad_(False)
        self.layers, self.weight = tuple(layers), weight
        self.maps: dict[str, nn.Linear] = {}
        self._seen: dict[str, Tensor] = {}
        self._inputs: tuple[tuple[Any, ...], dict[str, Any]] | None = None
        self._hooked: nn.Module | None = None
        self._handles: list[Any] = []

    def watch(self, model: nn.Module) -> FeatureDistillation:
        """Watch the network that is trained, until `unwatch`; call it before training begins.

        Raises:
            UnknownName: the network has no such module.
        """
        known = modules_of(model, shared=True)
        self.unwatch()
        self._handles = [model.register_forward_pre_hook(self._note_inputs, with_kwargs=True)]
        for path in self.layers:
            if path not in known:
                raise UnknownName("module", path, filter(None, known))
            self._handles.append(known[path].register_forward_hook(self._note(path)))
        self._hooked = model
        return self

    def unwatch(self) -> None:
        """Take every hook off the network."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self._hooked = None

    def _note_inputs(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._inputs = (args, dict(kwargs))

    def _note(self, path: str) -> Any:
        def note(module: nn.Module, args: Any, output: Any) -> None:
            if not isinstance(output, Tensor):
                raise MethodError(f"layer {path!r} returns {type(output).__name__}: features have to be tensors.")
            self._seen[path] = output

        return note

    def extra_loss(self, moment: Moment) -> Tensor:
        """Return the term for the batch that was just run.

        Raises:
            MethodError: the network was not watched.
        """
        if self._inputs is None or not self._seen:
            raise MethodError("FeatureDistillation has seen no batch: call .watch(model) before training.")
        wanted = self._teacher_features()
        total = torch.zeros((), device=next(iter(self._seen.values())).device)
        for path in self.layers:
            total = total + self._term(path, self._seen[path], wanted[path])
        self._seen.clear()
        return self.weight * total

    def _teacher_features(self) -> Mapping[str, Tensor]:
        assert self._inputs is not None
        args, kwargs = self._inputs
        found: dict[str, Tensor] = {}
        known = modules_of(self.teacher, shared=True)
        device = device_of(self._hooked) if self._hooked is not None else torch.device("cpu")
        self.teacher.to(device)
        handles = [
            known[path].register_forward_hook(lambda m, a, out, path=path: found.__setitem__(path, out))
            for path in self.layers
        ]
        try:
            with torch.no_grad():
                self.teacher(*args, **kwargs)
        finally:
            for handle in handles:
                handle.remove()
        return found

    def _term(self, path: str, own: Tensor, wanted: Tensor) -> Tensor:
        axis = 1 if own.dim() == 4 else -1
        if own.shape[axis] != wanted.shape[axis]:
            if path not in self.maps:
                with torch.random.fork_rng(devices=[]):
                    torch.manual_seed(len(self.maps))
                    self.maps[path] = nn.Linear(own.shape[axis], wanted.shape[axis], bias=False).to(own.device)
            own = self.maps[path](own.movedim(axis, -1).float()).movedim(-1, axis)
        return F.mse_loss(own.float(), wanted.float())

    def after_step(self, moment: Moment) -> None:
        """Train the maps, at the rate of the network's own step."""
        for linear in self.maps.values():
            if linear.weight.grad is not None:
                with torch.no_grad():
                    linear.weight.sub_(moment.lr * linear.weight.grad)
                linear.weight.grad = None

    def state_dict(self) -> dict[str, Any]:
        """Return the maps."""
        return {path: linear.weight.detach().clone() for path, linear in self.maps.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take the maps up again."""
        for path, weight in state.items():
            self.maps[path] = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
            with torch.no_grad():
                self.maps[path].weight.copy_(weight)
