"""One file per paper. `secateur.catalogue` is the table of all of them."""

from ._problem import Decision as Decision
from ._problem import Method as Method
from ._problem import Problem as Problem
from .cfp import Cfp as Cfp
from .dcp import Dcp as Dcp
from .influence import Influence as Influence
from .l1_filter import L1Filter as L1Filter
from .random import Random as Random
from .sensitivity import Sensitivity as Sensitivity
from .thinet import ThiNet as ThiNet

__all__ = [
    "Cfp",
    "Dcp",
    "Decision",
    "Influence",
    "L1Filter",
    "Method",
    "Problem",
    "Random",
    "Sensitivity",
    "ThiNet",
]
