"""Secateur prunes trained PyTorch networks, exactly, and says whether it was worth it.

Names are imported when they are first used, so that ``secateur --help`` does not wait for torch.
"""

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import methods as methods
    from .attach import attach as attach
    from .budget import Budget as Budget
    from .budget import Limits as Limits
    from .compact import CompactResult as CompactResult
    from .compact import compact as compact
    from .graph import ChannelGraph as ChannelGraph
    from .graph import ChannelGroup as ChannelGroup
    from .graph import trace as trace
    from .graph.select import ChannelSelect as ChannelSelect
    from .iterate import IterativeResult as IterativeResult
    from .iterate import prune_iteratively as prune_iteratively
    from .language import SparseLanguageModel as SparseLanguageModel
    from .language import sparsify_language_model as sparsify_language_model
    from .methods import Watch as Watch
    from .methods.influence import data_influence as data_influence
    from .methods.sensitivity import SensitivityCurves as SensitivityCurves
    from .methods.sensitivity import sensitivity as sensitivity
    from .plan import Plan as Plan
    from .prune import PruneResult as PruneResult
    from .prune import prune as prune
    from .recovery.batchnorm import reestimate_batchnorm as reestimate_batchnorm
    from .recovery.finetune import finetune as finetune
    from .recovery.fold import fold_constants as fold_constants
    from .sparsify import SparseResult as SparseResult
    from .sparsify import sparsify as sparsify
    from .store import load as load
    from .store import save as save
    from .surgery.finalize import finalize as finalize
    from .surgery.mask import mask as mask
    from .surgery.optimizer import shrink_optimizer as shrink_optimizer
    from .surgery.selection import with_selections as with_selections
    from .surgery.shrink import shrink as shrink
    from .surgery.verify import Verification as Verification
    from .surgery.verify import verify as verify
    from .train.held_zeros import HeldZeros as HeldZeros
    from .weight_plan import WeightPlan as WeightPlan

_HOMES = {  # name -> the module that has it
    "Budget": "budget",
    "ChannelGraph": "graph",
    "ChannelGroup": "graph",
    "ChannelSelect": "graph.select",
    "CompactResult": "compact",
    "HeldZeros": "train.held_zeros",
    "IterativeResult": "iterate",
    "Limits": "budget",
    "Plan": "plan",
    "PruneResult": "prune",
    "SensitivityCurves": "methods.sensitivity",
    "SparseLanguageModel": "language",
    "SparseResult": "sparsify",
    "Verification": "surgery.verify",
    "Watch": "methods",
    "WeightPlan": "weight_plan",
    "attach": "attach",
    "compact": "compact",
    "data_influence": "methods.influence",
    "finalize": "surgery.finalize",
    "finetune": "recovery.finetune",
    "fold_constants": "recovery.fold",
    "load": "store",
    "mask": "surgery.mask",
    "prune": "prune",
    "prune_iteratively": "iterate",
    "reestimate_batchnorm": "recovery.batchnorm",
    "save": "store",
    "sensitivity": "methods.sensitivity",
    "shrink": "surgery.shrink",
    "shrink_optimizer": "surgery.optimizer",
    "sparsify": "sparsify",
    "sparsify_language_model": "language",
    "trace": "graph",
    "verify": "surgery.verify",
    "with_selections": "surgery.selection",
}

__all__ = [
    "Budget",
    "ChannelGraph",
    "ChannelGroup",
    "ChannelSelect",
    "CompactResult",
    "HeldZeros",
    "IterativeResult",
    "Limits",
    "Plan",
    "PruneResult",
    "SensitivityCurves",
    "SparseLanguageModel",
    "SparseResult",
    "Verification",
    "Watch",
    "WeightPlan",
    "attach",
    "compact",
    "data_influence",
    "finalize",
    "finetune",
    "fold_constants",
    "load",
    "mask",
    "methods",
    "prune",
    "prune_iteratively",
    "reestimate_batchnorm",
    "save",
    "sensitivity",
    "shrink",
    "shrink_optimizer",
    "sparsify",
    "sparsify_language_model",
    "trace",
    "verify",
    "with_selections",
]


class _Package(ModuleType):
    """This package, with its names imported on first use."""

    def __getattr__(self, name: str) -> Any:
        if name in _HOMES:
            found = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
        elif name in __all__:
            found = importlib.import_module(f"{__name__}.{name}")
        else:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        setattr(self, name, found)
        return found

    def __setattr__(self, name: str, value: Any) -> None:
        # Importing the module `prune` from anywhere would put it in the place of the function of that name.
        if not (name in _HOMES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *__all__})


sys.modules[__name__].__class__ = _Package
