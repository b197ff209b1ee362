"""One file per paper. `secateur.catalogue` is the table of all of them."""

from ._problem import Decision as Decision
from ._problem import Method as Method
from ._problem import Problem as Problem
from .aofp import Aofp as Aofp
from .cfp import Cfp as Cfp
from .dcp import Dcp as Dcp
from .l1_filter import L1Filter as L1Filter
from .lasso_channels import LassoChannels as LassoChannels
from .nisp import Nisp as Nisp
from .random import Random as Random
from .sensitivity import Sensitivity as Sensitivity
from .thinet import ThiNet as ThiNet

__all__ = [
    "Aofp",
    "Cfp",
    "Dcp",
    "Decision",
    "L1Filter",
    "LassoChannels",
    "Method",
    "Nisp",
    "Problem",
    "Random",
    "Sensitivity",
    "ThiNet",
]
