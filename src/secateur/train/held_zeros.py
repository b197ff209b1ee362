"""Keep removed weights at exactly zero while the others train."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..errors import TrainingError
from ..graph.walk import parameters_of
from ..weight_plan import WeightPlan, pack, unpack
from .attachment import Attachment, Moment


class HeldZeros(Attachment):
    """Holds the weights that a plan removes at exactly zero, in any loop that calls an attachment.

    Their gradients are cleared before the optimizer sees them; after its step they and everything of their shape that
    the optimizer remembers of them (momentum, second moments) are set to zero, so neither weight decay nor momentum
    from before the cut moves them. A checkpoint of the run carries the mask. Nothing is added to the model.

    Attributes:
        plan: which weights stay.

    Raises:
        PlanError: at the first step, where the plan is of another model.

    >>> from torch import nn
    >>> layer = nn.Linear(2, 1, bias=False)
    >>> plan = WeightPlan({"weight": torch.tensor([[True, False]])})
    >>> plan.apply_(layer)
    >>> optimizer = torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    >>> held = HeldZeros(plan)
    >>> for step in range(3):
    ...     layer(torch.ones(1, 2)).sum().backward()
    ...     moment = Moment(layer, optimizer, epoch=0, epoch_count=1, step=step, lr=0.1)
    ...     held.after_backward(moment)
    ...     optimizer.step()
    ...     held.after_step(moment)
    >>> layer.weight[0, 1].item()
    0.0
    """

    def __init__(self, plan: WeightPlan) -> None:
        self.plan = plan
        self._masks: dict[str, Tensor] = {}
        self._model: Any = None

    def after_backward(self, moment: Moment) -> None:
        """Clear the gradients of the weights that are gone."""
        pairs = self._pairs(moment)
        held = [(p.grad, mask) for p, mask in pairs if p.grad is not None]
        if held:
            torch._foreach_mul_([grad for grad, _ in held], [mask for _, mask in held])

    def after_step(self, moment: Moment) -> None:
        """Set the weights that are gone to zero, and what the optimizer remembers of them."""
        tensors: list[Tensor] = []
        masks: list[Tensor] = []
        pairs = self._pairs(moment)
        for parameter, mask in pairs:
            remembered = moment.optimizer.state.get(parameter, {}).values()
            for tensor in (parameter.data, *(value for value in remembered if _is_of(value, mask))):
                tensors.append(tensor)
                masks.append(mask if mask.dtype == tensor.dtype else mask.to(tensor.dtype))
        torch._foreach_mul_(tensors, masks)
        torch._foreach_add_([parameter.data for parameter, _ in pairs], 0.0)  # turns -0.0 into 0.0

    def _pairs(self, moment: Moment) -> list[tuple[Tensor, Tensor]]:
        """Return each parameter with its mask as 0 and 1, in the parameter's dtype and place."""
        if self._model is not moment.model:
            self.plan.check(moment.model)
            self._model, self._masks = moment.model, {}
        parameters = parameters_of(moment.model, shared=True)
        pairs: list[tuple[Tensor, Tensor]] = []
        for name, kept in self.plan.kept.items():
            parameter, mask = parameters[name], self._masks.get(name)
            if mask is None or mask.device != parameter.device or mask.dtype != parameter.dtype:
                mask = self._masks[name] = kept.to(device=parameter.device, dtype=parameter.dtype)
            pairs.append((parameter, mask))
        return pairs

    def state_dict(self) -> dict[str, Any]:
        """Return the mask, eight weights to a byte."""
        return {name: {"bits": pack(mask), "shape": list(mask.shape)} for name, mask in self.plan.kept.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up a run that held the same mask.

        Raises:
            TrainingError: it held another.
        """
        found = plan_in(state)
        if found != self.plan:
            raise TrainingError(
                f"the checkpoint holds {found.removed_count:,} of {found.weight_count:,} weights at zero and this run "
                f"another set of {self.plan.removed_count:,}: resume with the plan that the run began with."
            )


def plan_in(state: Mapping[str, Any]) -> WeightPlan:
    """Return the plan that a `HeldZeros.state_dict()` holds."""
    return WeightPlan({name: unpack(kept["bits"], kept["shape"]) for name, kept in state.items()})


def _is_of(value: Any, mask: Tensor) -> bool:
    """Whether this is a number for each weight, such as a momentum."""
    return isinstance(value, Tensor) and value.is_floating_point() and value.shape == mask.shape
