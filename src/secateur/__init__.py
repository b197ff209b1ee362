"""Secateur prunes trained PyTorch networks, exactly, and says whether it was worth it."""

from . import methods as methods
from .budget import Budget as Budget
from .budget import Limits as Limits
from .graph import ChannelGraph as ChannelGraph
from .graph import ChannelGroup as ChannelGroup
from .graph import trace as trace
from .methods.sensitivity import SensitivityCurves as SensitivityCurves
from .methods.sensitivity import sensitivity as sensitivity
from .plan import Plan as Plan
from .prune import PruneResult as PruneResult
from .prune import prune as prune
from .surgery.mask import mask as mask
from .surgery.shrink import shrink as shrink
from .surgery.verify import Verification as Verification
from .surgery.verify import verify as verify

__all__ = [
    "Budget",
    "ChannelGraph",
    "ChannelGroup",
    "Limits",
    "Plan",
    "PruneResult",
    "SensitivityCurves",
    "Verification",
    "mask",
    "methods",
    "prune",
    "sensitivity",
    "shrink",
    "trace",
    "verify",
]
