"""From zeros to structure: the channels that a model has lost to zeros are cut out, and it computes the same."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from .errors import NothingPruned, SurgeryError, VerificationError
from .graph.costs import Costs
from .graph.groups import ChannelGraph, as_args, trace
from .graph.walk import state_of
from .plan import Plan
from .prune import cost_table
from .recovery.dead import Dependence, dependence
from .recovery.fold import fold_constants
from .store import annotate_
from .store.saving import details_of
from .surgery.feasible import feasible
from .surgery.finalize import check_plain
from .surgery.mask import mask
from .surgery.shrink import shrink
from .surgery.verify import Verification, to_double, verify

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CompactResult:
    """What `compact` returns.

    Attributes:
        model: the smaller model.
        plan: which channels stayed.
        graph: the channel graph of the model before.
        before: costs before, for the example input.
        after: costs after.
        verification: how exactly the smaller model is the given one.
        emptied: groups of which nothing is alive; one channel of each was kept, since a layer cannot have none.
        left_whole: groups with dead channels that could not be cut out exactly -> why.
    """

    model: nn.Module
    plan: Plan
    graph: ChannelGraph
    before: Costs
    after: Costs
    verification: Verification
    emptied: tuple[str, ...]
    left_whole: Mapping[str, str]

    def __str__(self) -> str:
        lines = [cost_table(self.before, self.after), str(self.verification)]
        if self.emptied:
            lines.append(f"nothing is alive in {', '.join(self.emptied)}: one channel of each was kept")
        lines += [f"{name} was left whole: {why}" for name, why in self.left_whole.items()]
        return "\n".join(lines)


@torch.inference_mode(False)  # tensors made in that mode never train
def compact(
    model: nn.Module, args: Any, *, kwargs: Mapping[str, Any] | None = None, graph: ChannelGraph | None = None
) -> CompactResult:
    """Cut out the channels and heads that zeros have made idle; the smaller model computes what the given one does.

    A channel goes if nothing reads it, or if it is 0 whatever the input: its weights are zero, and so is what biases
    and norms add, or the activation makes it 0. A channel that is another constant goes where its readers' biases can
    take it over exactly, which zero padding forbids. Nothing that enters the statistics of a layer norm goes. The proof
    compares the two models on the example input in float64; a group for which it fails is left whole.

    Args:
        model: a model with zeros, in particular what `sparsify` returned; nothing of it changes.
        args: example input: a tensor, or a tuple of positional inputs.
        kwargs: keyword inputs of the example.
        graph: the model's graph, if you have it.

    Returns:
        The smaller model, in evaluation mode equal to `model` (constants that biases took over are rounded to their
        dtype), with costs before and after.

    Raises:
        TraceError: the model rejects the example input.
        PlanError: `graph` is of another model.
        VerificationError: the model does not run in float64, or its outputs are not finite.
        MethodError: torch.nn.utils.prune masks the model; see `secateur.finalize`.

    >>> net = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    >>> _ = net[2].weight.data[:, 1].zero_()
    >>> compact(net, torch.randn(1, 4)).plan.removed("0")
    (1,)
    """
    check_plain(model)
    example = as_args(args), dict(kwargs or {})
    graph = graph if graph is not None else trace(model, *example)
    search = _Search(model, dependence(model, graph), example)
    small, plan, found = search.largest()
    if not plan.removed_count:
        why = f"{', '.join(search.whole)} could not be cut exactly" if search.whole else "every channel is needed"
        warnings.warn(f"nothing was removed: {why}.", NothingPruned, stacklevel=3)
    noted = details_of(model)
    annotate_(small, noted.model_copy(update={"verification_error": found.max_relative_error}))
    dead, widths = search.what.dead(search.whole), graph.widths
    emptied = tuple(name for name, gone in dead.items() if len(gone) == widths[name])
    return CompactResult(small, plan, graph, graph.costs(), graph.costs(plan), found, emptied, search.whole)


class _Search:
    """Tries to cut what is dead, and leaves whole what cannot be cut exactly.

    Attributes:
        model: the given model.
        what: what depends on what in it.
        example: its inputs.
        whole: groups left whole, and why.
    """

    def __init__(self, model: nn.Module, what: Dependence, example: tuple[tuple[Any, ...], dict[str, Any]]) -> None:
        self.model, self.what, self.example = model, what, example
        self.whole: dict[str, str] = {}

    def largest(self) -> tuple[nn.Module, Plan, Verification]:
        """Return the smallest model that is proved equal."""
        found = self._tried(self.whole)
        if isinstance(found, str):
            rigid = feasible(self.model, self.what.graph).rigid
            self.whole = {name: why for name, why in rigid.items() if name in self.what.dead()}
            found = self._tried(self.whole)
        if isinstance(found, str):
            found = self._one_by_one()
        for name, why in self.whole.items():
            log.info("%s was left whole: %s", name, why)
        return found

    def _one_by_one(self) -> tuple[nn.Module, Plan, Verification]:
        """Admit one group after another, from the end of the model on, since what dies there lets others die."""
        names = [name for name in self.what.dead(self.whole) if name not in self.whole]
        waiting = dict.fromkeys(names, "")
        best = self._tried(self.whole | waiting)
        if isinstance(best, str):
            raise VerificationError(f"not even an uncut copy can be proved equal: {best}")
        for name in reversed(names):
            del waiting[name]
            found = self._tried(self.whole | waiting)
            if isinstance(found, str):
                self.whole[name] = found
            else:
                best = found
        return best

    def _tried(self, whole: Mapping[str, str]) -> tuple[nn.Module, Plan, Verification] | str:
        """Cut what is dead outside of these groups; return what came of it, or why it is not the given model."""
        graph, plan = self.what.graph, self.what.plan(whole)
        try:
            source = fold_constants(self.model, graph, plan)
            small = shrink(source, graph, plan)
            found = self._proved(source, small, plan)
        except (SurgeryError, VerificationError) as error:
            return str(error)
        return (small, plan, found) if found.is_exact else f"the result would differ ({found})"

    def _proved(self, source: nn.Module, small: nn.Module, plan: Plan) -> Verification:
        """Compare with the given model; where biases changed, before they were rounded to the model's dtype."""
        (args, kwargs), options = self.example, self.what.graph.options
        old, new = state_of(self.model), state_of(source)
        if all(torch.equal(old[name], new[name]) for name in old):
            return verify(self.model, small, Plan(), args, kwargs, **options)
        cut = verify(source, small, plan, args, kwargs, **options)
        precise = to_double(self.model)
        full = mask(fold_constants(precise, self.what.graph, plan), self.what.graph, plan)
        whole = verify(self.model, full, Plan(), args, kwargs, **options)
        return max(cut, whole, key=lambda found: found.max_relative_error)
