"""Watch a method while it trains: an attachment beside it that looks once per epoch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..graph.costs import Costs
from ..train.attachment import Attachment, Moment
from ._history import EpochView, History

if TYPE_CHECKING:
    from ._attached import Attached


class Watch(Attachment):
    """Looks at what `attach` returned after each epoch; give it to the loop after that.

    A method that does not say where its channels stand leaves an empty history.

    Attributes:
        attached: what is watched.
    """

    def __init__(self, attached: Attached) -> None:
        self.attached = attached
        self._views: list[EpochView] = []

    @property
    def history(self) -> History:
        """What was seen."""
        problem = self.attached.problem
        graph = problem.graph
        names = self._views[-1].live if self._views else ()
        widths = {name: graph.groups[name].width for name in names}
        return History(problem.budget, graph.costs(), widths, tuple(self._views))

    def after_epoch(self, moment: Moment) -> None:
        """Look."""
        standing = self.attached.standing()
        if standing is not None:
            self._views.append(EpochView.of(moment.epoch + 1, standing, self.attached.problem.graph))

    def measurements(self) -> Mapping[str, float | Tensor]:
        """Return widths, costs and scores after the last epoch."""
        if not self._views:
            return {}
        view, budget = self._views[-1], self.attached.problem.budget
        found: dict[str, float | Tensor] = {f"scores/{name}": own for name, own in view.scores.items()}
        found |= {f"width_if_cut/{name}": count for name, count in view.kept.items()}
        found |= {f"width_so_far/{name}": count for name, count in view.live.items()}
        for what in dict.fromkeys(("macs", budget.of)):
            found[f"budget/{what}_so_far"] = view.so_far.of(what)
            if view.if_cut is not None:
                found[f"budget/{what}_if_cut"] = view.if_cut.of(what)
        return found

    def state_dict(self) -> dict[str, Any]:
        """Return what was seen."""
        return {"views": [_plain(view) for view in self._views]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what was seen."""
        self._views = [_view(**view) for view in state["views"]]


def _plain(view: EpochView) -> dict[str, Any]:
    costs = {"if_cut": view.if_cut and asdict(view.if_cut), "so_far": asdict(view.so_far)}
    counts = {"scores": dict(view.scores), "kept": dict(view.kept), "live": dict(view.live)}
    return {"epoch": view.epoch, **counts, **costs}


def _view(*, if_cut: dict[str, int] | None, so_far: dict[str, int], **rest: Any) -> EpochView:
    return EpochView(if_cut=None if if_cut is None else Costs(**if_cut), so_far=Costs(**so_far), **rest)
