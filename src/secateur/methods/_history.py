"""What a method that takes part in training looked like after each epoch, as values to keep, show and draw."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from torch import Tensor

from ..budget import MEASURES, Budget
from ..graph.costs import Costs
from ..graph.groups import ChannelGraph
from ..train.tracking import quartiles


@dataclass(frozen=True)
class Standing:
    """Where channels stand at a moment of training.

    Attributes:
        scores: group -> (width,) what the method goes by.
        kept: group -> channels that a cut to the budget would leave at this moment; other groups stay whole. Empty if
            only a pass over data would tell.
        out: group -> channels that training has taken out by now: at zero, masked, removed, or merged into others.
        cut_branches: residual branches that such a cut would remove.
        out_branches: residual branches that training has taken out by now.
    """

    scores: Mapping[str, Tensor]
    kept: Mapping[str, int]
    out: Mapping[str, int]
    cut_branches: tuple[str, ...] = ()
    out_branches: tuple[str, ...] = ()


@dataclass(frozen=True)
class EpochView:
    """Where channels stood after an epoch.

    Attributes:
        epoch: 1 = the first.
        scores: group -> (width,) float32, on the CPU.
        kept: group -> channels that a cut to the budget would have left.
        live: group -> channels that training had not yet taken out.
        if_cut: costs after such a cut; None = not known without a pass over data.
        so_far: costs without what training had taken out.
    """

    epoch: int
    scores: Mapping[str, Tensor]
    kept: Mapping[str, int]
    live: Mapping[str, int]
    if_cut: Costs | None
    so_far: Costs

    @classmethod
    def of(cls, epoch: int, standing: Standing, graph: ChannelGraph) -> EpochView:
        """Look at a standing."""
        live = {name: graph.groups[name].width - count for name, count in standing.out.items()}
        return cls(
            epoch,
            {name: scores.detach().float().cpu().clone() for name, scores in standing.scores.items()},
            dict(standing.kept),
            live,
            costs_of_widths(graph, standing.kept, standing.cut_branches)
            if standing.kept or standing.cut_branches
            else None,
            costs_of_widths(graph, live, standing.out_branches),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain values, scores by their quartiles."""
        return {
            "epoch": self.epoch,
            "kept": dict(self.kept),
            "live": dict(self.live),
            "if_cut": self.if_cut and asdict(self.if_cut),
            "so_far": asdict(self.so_far),
            "scores": {name: quartiles(scores.double().numpy()) for name, scores in self.scores.items()},
        }


@dataclass(frozen=True)
class History:
    """Where channels stood through training.

    Attributes:
        budget: what was asked.
        before: costs of the whole model.
        widths: group -> channels, of the groups that may lose some.
        epochs: one view per epoch.
    """

    budget: Budget
    before: Costs
    widths: Mapping[str, int]
    epochs: tuple[EpochView, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain values, for JSON."""
        return {
            "budget": asdict(self.budget),
            "before": asdict(self.before),
            "widths": dict(self.widths),
            "epochs": [view.to_dict() for view in self.epochs],
        }


def costs_of_widths(graph: ChannelGraph, widths: Mapping[str, int], without: Iterable[str] = ()) -> Costs:
    """Return what a model costs with groups this wide, others whole, and without some residual branches.

    >>> import torch, secateur as sc
    >>> net = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    >>> costs_of_widths(sc.trace(net, torch.zeros(1, 2)), {"0": 4}).macs
    16
    """
    whole = dict(zip(graph.costs.names, graph.costs.widths.tolist(), strict=True))
    counts = np.array(list((whole | dict(widths)).values()))
    return Costs(*(round(graph.costs.value(what, counts, without)) for what in MEASURES))
