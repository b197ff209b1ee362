"""The table of methods. The command line, the documentation, the tests and the comparison read it."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

from .errors import MethodError, UnknownName

if TYPE_CHECKING:
    from .methods._problem import Method
    from .methods._weights import WeightMethod

WAIVABLE = {
    "dead_first": "a channel whose weights are all zero goes before any other of its group",
    "nested": "what a smaller budget removes, a bigger one removes too",
    "order_free": "permuting the channels of a group permutes the plan",
}


@dataclass(frozen=True)
class Entry:
    """One method.

    Attributes:
        name: as in ``prune(method=...)``; its file is ``methods/<name>.py``.
        class_name: its class there.
        family: "control", "predefined", "automatic" or "unstructured", as the survey sorts them.
        paper: authors, year, title, identifier.
        needs: what it reads besides weights: "data", "labels", "training".
        summary: one line.
        waives: keys of `WAIVABLE`, for the promises that the paper's idea cannot keep. Every other promise of
            tests/contract is kept by every method.
        brief: settings that make a method which trains short enough for tests and dry runs. A mapping under "recipe"
            changes parts of the method's own recipe.
        removes: "channels" (`secateur.prune`) or single "weights" (`secateur.sparsify`).
    """

    name: str
    class_name: str
    family: str
    paper: str
    needs: tuple[str, ...]
    summary: str
    waives: tuple[str, ...] = ()
    brief: Mapping[str, Any] = field(default_factory=dict)
    removes: str = "channels"

    def make(self, **settings: Any) -> Any:
        """Return the method (`Method` or `WeightMethod`) with these hyper-parameters; the paper's for all others.

        A mapping given as `recipe` changes these values of the method's own recipe.

        Raises:
            MethodError: it has no such hyper-parameter.
        """
        kind = getattr(importlib.import_module(f"secateur.methods.{self.name}"), self.class_name)
        known = [f.name for f in fields(kind)]
        if unknown := sorted(set(settings) - set(known)):
            raise MethodError(f"{self.name} has no setting {unknown[0]!r}; it has: {', '.join(known) or 'none'}.")
        if isinstance(changes := settings.get("recipe"), Mapping):
            settings["recipe"] = kind().recipe.replace(**changes)
        made: Method | WeightMethod = kind(**settings)
        return made


CATALOGUE: dict[str, Entry] = {
    entry.name: entry
    for entry in (
        Entry(
            "amc",
            "Amc",
            "automatic",
            "He et al. 2018, AMC: AutoML for Model Compression and Acceleration on Mobile Devices, arXiv:1802.03494",
            ("data", "labels"),
            "an agent learns by trial how many channels each layer keeps; the smallest go",
            waives=("nested",),
            brief={"episodes": 3, "warmup_episodes": 1, "hidden": 16, "batch_size": 4},
        ),
        Entry(
            "aofp",
            "Aofp",
            "automatic",
            "Ding et al. 2019, Approximated Oracle Filter Pruning for Destructive CNN Width Optimization, "
            "arXiv:1905.04748",
            ("data", "labels", "training"),
            "filters that the next layer does not miss under random masks go while the network trains",
            waives=("dead_first", "order_free"),
            brief={"epochs": 3, "iters_per_half": 2, "warmup": 0, "threshold": 1e6},
        ),
        Entry(
            "autopruner",
            "AutoPruner",
            "automatic",
            "Luo, Wu 2020, AutoPruner: An End-to-End Trainable Filter Pruning Method for Efficient Deep Model "
            "Inference, arXiv:1805.08941",
            ("data", "labels", "training"),
            "channels go whose code, learned by a small layer in training, becomes 0",
            waives=("dead_first", "nested", "order_free"),
            brief={"recipe": {"epochs": 2}},
        ),
        Entry(
            "bn_scale",
            "BnScale",
            "predefined",
            "Liu et al. 2017, Learning Efficient Convolutional Networks through Network Slimming, arXiv:1708.06519 "
            "(its criterion)",
            (),
            "channels that their normalisation scales least go",
        ),
        Entry(
            "centripetal_sgd",
            "CentripetalSgd",
            "automatic",
            "Ding et al. 2019, Centripetal SGD for Pruning Very Deep Convolutional Networks with Complicated "
            "Structure, arXiv:1904.03837",
            ("data", "labels", "training"),
            "training makes the filters of a cluster identical, and all but one of each go at no cost",
            waives=("dead_first", "nested", "order_free"),
            brief={"recipe": {"epochs": 1, "lr": 0.01}},
        ),
        Entry(
            "cfp",
            "Cfp",
            "predefined",
            "Singh et al. 2020, Leveraging Filter Correlations for Deep Model Compression, arXiv:1811.10559",
            ("data", "labels", "training"),
            "of two correlated filters one goes, after training has made them more alike",
            waives=("nested",),
            brief={"epochs": 1, "finetune_epochs": 1, "step": 0.25},
        ),
        Entry(
            "dcp",
            "Dcp",
            "predefined",
            "Zhuang et al. 2018, Discrimination-aware Channel Pruning for Deep Neural Networks, arXiv:1810.11809",
            ("data", "labels", "training"),
            "channels stay that rebuild the next layer and help classifiers on intermediate layers",
            waives=("nested",),
            brief={"heads": 1, "stage_epochs": 1, "channels_per_step": 4, "selection_batches": 1},
        ),
        Entry(
            "depgraph_group_norm",
            "DepgraphGroupNorm",
            "automatic",
            "Fang et al. 2023, DepGraph: Towards Any Structural Pruning, arXiv:2301.12900",
            ("data", "labels", "training"),
            "channels go whose weights training made small in all layers of their group",
            brief={"recipe": {"epochs": 1}},
        ),
        Entry(
            "erk",
            "Erk",
            "unstructured",
            "Evci et al. 2020, Rigging the Lottery: Making All Tickets Winners, arXiv:1911.11134 (its densities)",
            (),
            "the smallest weights of each layer go, as many as its shape says",
            waives=("dead_first",),
            removes="weights",
        ),
        Entry(
            "fpgm",
            "Fpgm",
            "predefined",
            "He et al. 2019, Filter Pruning via Geometric Median, arXiv:1811.00250",
            (),
            "filters nearest to the geometric median of their layer go",
            waives=("dead_first",),
        ),
        Entry(
            "global_dynamic",
            "GlobalDynamic",
            "automatic",
            "Lin et al. 2018, Accelerating Convolutional Networks via Global & Dynamic Filter Pruning, IJCAI 2018",
            ("data", "labels", "training"),
            "filters with the smallest effect on the loss, over all layers, are masked in training and may come back",
            waives=("nested",),
            brief={"interval": 2, "recipe": {"epochs": 2, "lr": 0.01}},
        ),
        Entry(
            "gradual_magnitude",
            "GradualMagnitude",
            "unstructured",
            "Zhu, Gupta 2018, To prune, or not to prune: exploring the efficacy of pruning for model compression, "
            "arXiv:1710.01878",
            ("data", "labels", "training"),
            "ever more of the smallest weights go while the network trains, and may come back",
            waives=("dead_first", "nested"),
            brief={"updates": 2, "recipe": {"epochs": 1, "lr": 0.01}},
            removes="weights",
        ),
        Entry(
            "grasp",
            "Grasp",
            "unstructured",
            "Wang et al. 2020, Picking Winning Tickets Before Training by Preserving Gradient Flow, arXiv:2002.07376",
            ("data", "labels"),
            "weights go that the norm of the gradient does without",
            waives=("dead_first",),
            removes="weights",
        ),
        Entry(
            "greg",
            "Greg",
            "predefined",
            "Wang et al. 2021, Neural Pruning via Growing Regularization, arXiv:2012.09243",
            ("data", "labels", "training"),
            "filters go on which an L2 penalty grew while training",
            brief={"growth": 0.5, "update_steps": 2, "settle_steps": 1, "recipe": {"epochs": 2}},
        ),
        Entry(
            "group_fisher",
            "GroupFisher",
            "automatic",
            "Liu et al. 2021, Group Fisher Pruning for Practical Network Compression, arXiv:2108.00708",
            ("data", "labels", "training"),
            "channels that matter least to the loss for the memory they take go one by one while training",
            waives=("nested",),
            brief={"interval": 2, "recipe": {"epochs": 2}},
        ),
        Entry(
            "hrank",
            "Hrank",
            "predefined",
            "Lin et al. 2020, HRank: Filter Pruning using High-Rank Feature Map, arXiv:2002.10179",
            ("data",),
            "channels whose feature maps have the lowest mean rank go",
            waives=("order_free",),
        ),
        Entry(
            "influence",
            "Influence",
            "predefined",
            "Koh, Liang 2017, Understanding Black-box Predictions via Influence Functions, arXiv:1703.04730",
            ("data", "labels"),
            "channels without which the loss is predicted to rise least, the others making up, go",
        ),
        Entry(
            "ista_bn",
            "IstaBn",
            "automatic",
            "Ye et al. 2018, Rethinking the Smaller-Norm-Less-Informative Assumption in Channel Pruning of Convolution "
            "Layers, arXiv:1802.00124",
            ("data", "labels", "training"),
            "channels whose scaling factors soft thresholds in training bring to zero go, dear ones first",
            brief={"recipe": {"epochs": 1, "lr": 0.01}},
        ),
        Entry(
            "l1_filter",
            "L1Filter",
            "predefined",
            "Li et al. 2017, Pruning Filters for Efficient ConvNets, arXiv:1608.08710",
            (),
            "filters with the smallest sum of absolute weights go",
        ),
        Entry(
            "l2_filter",
            "L2Filter",
            "predefined",
            "He et al. 2018, Soft Filter Pruning for Accelerating Deep CNNs, arXiv:1808.06866 (its criterion)",
            (),
            "filters with the smallest Euclidean norm go",
        ),
        Entry(
            "lamp",
            "Lamp",
            "unstructured",
            "Lee et al. 2021, Layer-adaptive Sparsity for the Magnitude-based Pruning, arXiv:2010.07611",
            (),
            "weights go that are small against the larger ones of their layer",
            removes="weights",
        ),
        Entry(
            "lasso_channels",
            "LassoChannels",
            "predefined",
            "He et al. 2017, Channel Pruning for Accelerating Very Deep Neural Networks, arXiv:1707.06168",
            ("data",),
            "a sparse regression on the next layer's outputs says which channels stay; least squares re-fits them",
            waives=("nested",),
        ),
        Entry(
            "lottery_ticket",
            "LotteryTicket",
            "unstructured",
            "Frankle, Carbin 2019, The Lottery Ticket Hypothesis: Finding Sparse, Trainable Neural Networks, "
            "arXiv:1803.03635",
            ("data", "labels", "training"),
            "the smallest weights go in rounds of training; the others are rewound, or trained on",
            waives=("dead_first", "nested"),
            brief={"per_round": 0.5, "recipe": {"epochs": 1, "lr": 0.01}},
            removes="weights",
        ),
        Entry(
            "magnitude",
            "Magnitude",
            "unstructured",
            "Han et al. 2015, Learning both Weights and Connections for Efficient Neural Networks, arXiv:1506.02626",
            (),
            "the smallest weights go",
            removes="weights",
        ),
        Entry(
            "network_slimming",
            "NetworkSlimming",
            "automatic",
            "Liu et al. 2017, Learning Efficient Convolutional Networks through Network Slimming, arXiv:1708.06519",
            ("data", "labels", "training"),
            "channels go whose scaling factors training with an L1 penalty makes smallest, over all layers",
            brief={"recipe": {"epochs": 1, "lr": 0.01}},
        ),
        Entry(
            "nisp",
            "Nisp",
            "predefined",
            "Yu et al. 2018, NISP: Pruning Networks using Neuron Importance Score Propagation, arXiv:1711.05908",
            ("data",),
            "channels that pass least on to the ranked responses before the classifier go",
            waives=("nested",),
        ),
        Entry(
            "random",
            "Random",
            "control",
            "Liu et al. 2019, Rethinking the Value of Network Pruning, arXiv:1810.05270 (as control)",
            (),
            "channels drawn at random go: the bar for every other method",
            waives=("dead_first", "order_free"),
        ),
        Entry(
            "random_weights",
            "RandomWeights",
            "control",
            "Frankle, Carbin 2019, The Lottery Ticket Hypothesis, arXiv:1803.03635 (as control)",
            (),
            "weights drawn at random go: the bar for every other method that removes single weights",
            waives=("dead_first",),
            removes="weights",
        ),
        Entry(
            "sensitivity",
            "Sensitivity",
            "automatic",
            "Li et al. 2017, Pruning Filters for Efficient ConvNets, arXiv:1608.08710 (section 3.2)",
            ("data", "labels"),
            "every group loses as much as costs the same validation accuracy, cut on its own",
        ),
        Entry(
            "snip",
            "Snip",
            "unstructured",
            "Lee et al. 2019, SNIP: Single-shot Network Pruning based on Connection Sensitivity, arXiv:1810.02340",
            ("data", "labels"),
            "connections go that the loss of a batch feels least, before training or after",
            removes="weights",
        ),
        Entry(
            "soft_filter",
            "SoftFilter",
            "predefined",
            "He et al. 2018, Soft Filter Pruning for Accelerating Deep CNNs, arXiv:1808.06866",
            ("data", "labels", "training"),
            "filters of small norm are zeroed after every epoch and train on; those that are zero at the end go",
            waives=("nested",),
            brief={"recipe": {"epochs": 2}},
        ),
        Entry(
            "sparse_structure_selection",
            "SparseStructureSelection",
            "automatic",
            "Huang, Wang 2018, Data-Driven Sparse Structure Selection for Deep Neural Networks, arXiv:1707.01213",
            ("data", "labels", "training"),
            "residual branches or channels go whose factors an accelerated proximal step in training makes smallest",
            waives=("dead_first",),
            brief={"structures": "channels", "penalty": 1.0, "recipe": {"epochs": 1, "lr": 0.01}},
        ),
        Entry(
            "sparsegpt",
            "SparseGPT",
            "unstructured",
            "Frantar & Alistarh 2023, SparseGPT: Massive Language Models Can Be Accurately Pruned in One-Shot, "
            "arXiv:2301.00774",
            ("data",),
            "weights go column by column, and those to the right of them make up for it",
            waives=("nested",),
            removes="weights",
        ),
        Entry(
            "structured_sparsity",
            "StructuredSparsity",
            "automatic",
            "Lin et al. 2019, Toward Compact ConvNets via Structure-Sparsity Regularized Filter Pruning, "
            "arXiv:1901.07827",
            ("data", "labels", "training"),
            "filters that a structured norm drove to zero while training go",
            waives=("nested",),
            brief={"update_steps": 2, "recipe": {"epochs": 2}},
        ),
        Entry(
            "synflow",
            "Synflow",
            "unstructured",
            "Tanaka et al. 2020, Pruning neural networks without any data by iteratively conserving synaptic flow, "
            "arXiv:2006.05467",
            (),
            "weights on the weakest paths go, round by round and without data",
            waives=("nested",),
            brief={"rounds": 5},
            removes="weights",
        ),
        Entry(
            "taylor",
            "Taylor",
            "automatic",
            "Molchanov et al. 2019, Importance Estimation for Neural Network Pruning, arXiv:1906.10771",
            ("data", "labels"),
            "channels with the smallest first-order effect on the loss go",
        ),
        Entry(
            "thinet",
            "ThiNet",
            "predefined",
            "Luo et al. 2017, ThiNet: A Filter Level Pruning Method for Deep Neural Network Compression, "
            "arXiv:1707.06342",
            ("data",),
            "the channels go that the next layer misses least; the others are scaled",
            waives=("nested",),
        ),
        Entry(
            "wanda",
            "Wanda",
            "unstructured",
            "Sun et al. 2024, A Simple and Effective Pruning Approach for Large Language Models, arXiv:2306.11695",
            ("data",),
            "weights that are small or read little go",
            waives=("nested",),
            removes="weights",
        ),
    )
}


def removing(what: str) -> dict[str, Entry]:
    """Return the methods that remove "channels", or those that remove single "weights"."""
    return {name: entry for name, entry in CATALOGUE.items() if entry.removes == what}


def find(name: str) -> Entry:
    """Return the catalogue's entry of that name.

    Raises:
        UnknownName: there is none; suggests near names.
    """
    if name not in CATALOGUE:
        raise UnknownName("method", name, CATALOGUE)
    return CATALOGUE[name]
