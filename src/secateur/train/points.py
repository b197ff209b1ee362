"""The four points of attachments in a loop that is not ours, where no loss can be added to: its gradient is.

Backward is linear: the gradient of loss + extra is the gradient of the loss plus the gradient of the extra. So the
extra's gradient is taken while the graph of the forward pass is alive, averaged over the processes as theirs are, and
added once those of the loss are there, before they are clipped. What remains is rounding. Where a loop accumulates
gradients over several batches, the extra is asked for once per optimizer step, at the first of them.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from secateur.errors import TrainingError
from secateur.train.attachment import Attachment, Moment
from secateur.train.checkpoint import plain, settings_of


class Points:
    """Attachments, told of each point of a loop by its callbacks; remembers what a resume needs.

    Args:
        attachments: called in this order at each point.
        model: what every moment names; None = the model of the first attachment that has one, else what is trained.

    Raises:
        TrainingError: there is no attachment.

    Attributes:
        closed_epoch: the last epoch that `after_epoch` was called for; -1 = none.
        moment: of the step under way, then of the last one; None before the first.
    """

    def __init__(self, attachments: Sequence[Attachment], model: nn.Module | None) -> None:
        if not attachments:
            raise TrainingError("a callback was given no attachment, e.g. secateur.attach(model, inputs, ...).")
        self._attachments = tuple(attachments)
        named = (getattr(attachment, "model", None) for attachment in attachments)
        self._model = model if model is not None else next((m for m in named if isinstance(m, nn.Module)), None)
        self._extra: list[tuple[Tensor, Tensor]] = []
        self.begin()

    def begin(self) -> None:
        """Forget everything about the run, but nothing that the attachments remember."""
        self.closed_epoch, self.moment, self.is_open = -1, None, False
        self._extra = []

    moment: Moment | None

    def model_in(self, trained: nn.Module) -> nn.Module:
        """Return the model that moments name.

        Raises:
            TrainingError: it is not a part of what is trained.
        """
        model = self._model if self._model is not None else trained
        if not any(module is model for module in trained.modules()):
            raise TrainingError(
                f"the attachment belongs to a {type(model).__name__} that is no part of the {type(trained).__name__} "
                "in training: attach to the very model that is trained, not to a copy of it."
            )
        return model

    def before_backward(self, moment: Moment) -> None:
        """Take the gradient of the extra loss, after the forward pass of a step's first batch."""
        if self.is_open:
            return
        self.moment, self.is_open, self._extra = moment, True, []
        extras = [attachment.extra_loss(moment) for attachment in self._attachments]
        parts = [extra for extra in extras if isinstance(extra, Tensor) and extra.requires_grad]
        if parts:
            total = functools.reduce(torch.add, parts)
            leaves = leaves_of(total)
            # The graph of the forward pass may be shared, and the loop's own backward still needs it.
            gradients = torch.autograd.grad(total, leaves, retain_graph=True, allow_unused=True)
            self._extra = [(leaf, g) for leaf, g in zip(leaves, gradients, strict=True) if g is not None]

    def before_step(self) -> None:
        """Add the extra loss's gradient, and show all gradients, before they are clipped and used."""
        assert self.moment is not None
        gradients = averaged_over_processes([gradient for _, gradient in self._extra])
        for (leaf, _), gradient in zip(self._extra, gradients, strict=True):
            leaf.grad = gradient if leaf.grad is None else leaf.grad.add_(gradient)
        self._extra = []
        for attachment in self._attachments:
            attachment.after_backward(self.moment)

    def after_step(self) -> None:
        """Show the weights after the optimizer's step."""
        assert self.moment is not None
        self.is_open = False
        for attachment in self._attachments:
            attachment.after_step(self.moment)

    def after_epoch(self, moment: Moment) -> None:
        """Show the weights at the end of an epoch; only once each."""
        if moment.epoch == self.closed_epoch:
            return
        self.closed_epoch = moment.epoch
        for attachment in self._attachments:
            attachment.after_epoch(moment)

    def state_dict(self) -> dict[str, Any]:
        """Return what the attachments remember, whose it is, and the last epoch that was closed.

        Raises:
            TrainingError: an attachment's state is not plain data.
        """
        return {
            "attachments": [settings_of(attachment) for attachment in self._attachments],
            "states": [plain(each.state_dict(), type(each).__name__) for each in self._attachments],
            "closed_epoch": self.closed_epoch,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what `state_dict` returned.

        Raises:
            TrainingError: it is of other attachments, or of the same with other settings.
        """
        mine = [settings_of(attachment) for attachment in self._attachments]
        if state["attachments"] != mine:
            raise TrainingError(
                f"the checkpoint belongs to other attachments: {state['attachments']} there and {mine} here. "
                "Attach the same method with the same settings, or start a new run."
            )
        for attachment, of_attachment in zip(self._attachments, state["states"], strict=True):
            attachment.load_state_dict(of_attachment)
        self.closed_epoch = state["closed_epoch"]


def leaves_of(value: Tensor) -> list[Tensor]:
    """Return the leaf tensors that the gradient of `value` reaches.

    >>> weight = torch.ones(2, requires_grad=True)
    >>> [leaf is weight for leaf in leaves_of((weight * 3 + weight).sum())]
    [True]
    """
    if value.grad_fn is None:
        return [value]
    found, seen, waiting = list[Tensor](), set[Any](), list[Any]([value.grad_fn])
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node.name() == "torch::autograd::AccumulateGrad":
            found.append(node.variable)
        waiting.extend(after for after, _ in node.next_functions)
    return found


def averaged_over_processes(gradients: list[Tensor]) -> list[Tensor]:
    """Return the mean of each gradient over all processes, as data-parallel training takes it; alone, as given."""
    distributed = torch.distributed
    if not gradients or not distributed.is_available() or not distributed.is_initialized():
        return gradients
    count = distributed.get_world_size()
    if count == 1:
        return gradients
    flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
    distributed.all_reduce(flat)
    parts = (flat / count).split([gradient.numel() for gradient in gradients])
    return [part.view_as(gradient).to(gradient.dtype) for part, gradient in zip(parts, gradients, strict=True)]
