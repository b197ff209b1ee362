"""One file per paper. `secateur.catalogue` is the table of all of them."""

from ._problem import Decision as Decision
from ._problem import Method as Method
from ._problem import Problem as Problem
from .aofp import Aofp as Aofp
from .l1_filter import L1Filter as L1Filter
from .nisp import Nisp as Nisp
from .random import Random as Random
from .sensitivity import Sensitivity as Sensitivity

__all__ = ["Aofp", "Decision", "L1Filter", "Method", "Nisp", "Problem", "Random", "Sensitivity"]
