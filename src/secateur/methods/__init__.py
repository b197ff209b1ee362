"""One file per paper. `secateur.catalogue` is the table of all of them."""

from ._history import EpochView as EpochView
from ._history import History as History
from ._problem import Decision as Decision
from ._problem import Method as Method
from ._problem import Problem as Problem
from ._watch import Watch as Watch
from ._weights import Pattern as Pattern
from ._weights import WeightDecision as WeightDecision
from ._weights import WeightMethod as WeightMethod
from ._weights import WeightProblem as WeightProblem
from .amc import Amc as Amc
from .aofp import Aofp as Aofp
from .autopruner import AutoPruner as AutoPruner
from .bn_scale import BnScale as BnScale
from .centripetal_sgd import CentripetalSgd as CentripetalSgd
from .cfp import Cfp as Cfp
from .dcp import Dcp as Dcp
from .depgraph_group_norm import DepgraphGroupNorm as DepgraphGroupNorm
from .erk import Erk as Erk
from .erk import erk_scope as erk_scope
from .fpgm import Fpgm as Fpgm
from .global_dynamic import GlobalDynamic as GlobalDynamic
from .gradual_magnitude import GradualMagnitude as GradualMagnitude
from .grasp import Grasp as Grasp
from .greg import Greg as Greg
from .group_fisher import GroupFisher as GroupFisher
from .hrank import Hrank as Hrank
from .influence import Influence as Influence
from .ista_bn import IstaBn as IstaBn
from .l1_filter import L1Filter as L1Filter
from .l2_filter import L2Filter as L2Filter
from .lamp import Lamp as Lamp
from .lasso_channels import LassoChannels as LassoChannels
from .lottery_ticket import LotteryTicket as LotteryTicket
from .magnitude import Magnitude as Magnitude
from .network_slimming import NetworkSlimming as NetworkSlimming
from .nisp import Nisp as Nisp
from .random import Random as Random
from .random_weights import RandomWeights as RandomWeights
from .sensitivity import Sensitivity as Sensitivity
from .snip import Snip as Snip
from .soft_filter import SoftFilter as SoftFilter
from .sparse_structure_selection import SparseStructureSelection as SparseStructureSelection
from .sparsegpt import SparseGPT as SparseGPT
from .structured_sparsity import StructuredSparsity as StructuredSparsity
from .synflow import Synflow as Synflow
from .taylor import Taylor as Taylor
from .thinet import ThiNet as ThiNet
from .wanda import Wanda as Wanda

__all__ = [
    "Amc",
    "Aofp",
    "AutoPruner",
    "BnScale",
    "CentripetalSgd",
    "Cfp",
    "Dcp",
    "Decision",
    "DepgraphGroupNorm",
    "EpochView",
    "Erk",
    "Fpgm",
    "GlobalDynamic",
    "GradualMagnitude",
    "Grasp",
    "Greg",
    "GroupFisher",
    "History",
    "Hrank",
    "Influence",
    "IstaBn",
    "L1Filter",
    "L2Filter",
    "Lamp",
    "LassoChannels",
    "LotteryTicket",
    "Magnitude",
    "Method",
    "NetworkSlimming",
    "Nisp",
    "Pattern",
    "Problem",
    "Random",
    "RandomWeights",
    "Sensitivity",
    "Snip",
    "SoftFilter",
    "SparseGPT",
    "SparseStructureSelection",
    "StructuredSparsity",
    "Synflow",
    "Taylor",
    "ThiNet",
    "Wanda",
    "Watch",
    "WeightDecision",
    "WeightMethod",
    "WeightProblem",
    "erk_scope",
]
