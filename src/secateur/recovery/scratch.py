"""Train the small network from scratch: the control that asks whether its inherited weights were worth anything.

Source: Liu, Sun, Zhou, Huang, Darrell, "Rethinking the Value of Network Pruning", ICLR 2019, arXiv:1810.05270. There
(section 3) Scratch-E trains the small network for as many epochs as the large one was, Scratch-B for as many
multiply-adds.

Where we differ, and why:

- Scratch-B has no cap unless one is given, as in the authors' CIFAR scripts; their ImageNet runs stop at twice the
  epochs. The epochs of fine-tuning can be added to both, so that every way gets the same compute.
- With single weights removed, the multiply-adds of the small network are those of the weights that stay.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..errors import MethodError, TrainingError
from ..graph.walk import modules_of, parameters_of
from ..train.randomness import same_randomness_after, seed_
from ..train.schedules import Recipe
from ..weight_plan import WeightPlan

Initialiser = Callable[[nn.Module], object]


def redrawn(
    small: nn.Module, *, seed: int, init: Initialiser | None = None, plan: WeightPlan | None = None
) -> nn.Module:
    """Return a copy of the small network with fresh weights, as its layers draw them at their present sizes.

    Source: Liu et al. 2019, section 3; for removed single weights, appendix: the mask stays and the others are drawn
    with the spread that their number asks for, sqrt(2 / (weights that stay / input channels)) under He's rule, which is
    the dense spread divided by the root of the fraction that stays.

    Args:
        small: the pruned network; nothing of it changes.
        seed: of the draw.
        init: sets the first weights in place where layers' own `reset_parameters` are not what the network was trained
            from, e.g. `secateur.models.initialise_`. It is called after them.
        plan: which single weights stay; the others are zero, before and after.

    Raises:
        MethodError: a module has parameters of its own and no `reset_parameters`, and there is no `init`.

    >>> small = nn.Linear(3, 2)
    >>> fresh = redrawn(small, seed=0)
    >>> fresh.weight.shape, bool((fresh.weight != small.weight).all())
    (torch.Size([2, 3]), True)
    """
    fresh = copy.deepcopy(small)
    with same_randomness_after(torch.device("cpu")):
        seed_(seed)
        for path, module in modules_of(fresh).items():
            reset = getattr(module, "reset_parameters", None)
            if callable(reset):
                reset()
            elif init is None and any(p is not None for p in module._parameters.values()):
                raise MethodError(
                    f"module {path or 'itself'} ({type(module).__name__}) has parameters of its own and no "
                    "reset_parameters(): give init=, a function that sets the network's first weights in place."
                )
        if init is not None:
            init(fresh)
    if plan is not None:
        plan.check(fresh)
        parameters = parameters_of(fresh, shared=True)
        with torch.no_grad():
            for name, mask in plan.kept.items():
                _spread_out_(parameters[name], mask)
    return fresh


def _spread_out_(weight: Tensor, mask: Tensor) -> None:
    left = int(mask.count_nonzero())
    if left:
        weight.mul_((mask.numel() / left) ** 0.5)
    weight.masked_fill_(~mask.to(weight.device), 0.0)


def scratch_e(recipe: Recipe, *, finetune_epochs: int = 0) -> Recipe:
    """Return the recipe of Scratch-E: as many epochs as the large network had.

    Args:
        recipe: that trained the large network.
        finetune_epochs: added, so that both ways see the data equally often.

    >>> scratch_e(Recipe(epochs=160, lr=0.1), finetune_epochs=40).epochs
    200
    """
    return recipe.replace(epochs=recipe.epochs + _whole(finetune_epochs), first_epoch=0)


def scratch_b(
    recipe: Recipe, macs_before: float, macs_after: float, *, finetune_epochs: int = 0, cap: float | None = None
) -> Recipe:
    """Return the recipe of Scratch-B: as many multiply-adds as the large network's training took.

    Milestones are fractions of the epochs, so they move along.

    Source: Liu et al. 2019, section 3 (E_B = int(E * MACs before / MACs after)).

    Args:
        recipe: that trained the large network.
        macs_before: multiply-adds of the large network for one sample.
        macs_after: of the small one.
        finetune_epochs: of the way that it is compared with, at the small network's cost; added.
        cap: most epochs, as a multiple of the recipe's; None = as many as it takes. The paper's ImageNet runs use 2.

    Raises:
        TrainingError: a count makes no sense.

    >>> scratch_b(Recipe(epochs=160, lr=0.1), 313.46, 206.28).epochs
    243
    """
    if not 0 < macs_after <= macs_before:
        raise TrainingError(
            f"macs_before={macs_before}, macs_after={macs_after}: the small network costs less, above 0."
        )
    if cap is not None and cap < 1:
        raise TrainingError(f"cap={cap}: expected a multiple of the recipe's epochs, 1 or more.")
    factor = macs_before / macs_after if cap is None else min(macs_before / macs_after, cap)
    return recipe.replace(epochs=int(recipe.epochs * factor + 1e-9) + _whole(finetune_epochs), first_epoch=0)


def _whole(epochs: int) -> int:
    if isinstance(epochs, bool) or not isinstance(epochs, int) or epochs < 0:
        raise TrainingError(f"finetune_epochs={epochs!r}: expected a whole number, 0 or more.")
    return epochs
