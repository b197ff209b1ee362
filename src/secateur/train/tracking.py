"""What a training run shows while it goes on: numbers and distributions after each epoch, in TensorBoard and others.

Accelerate's trackers all take numbers. Distributions they take each in its own way, or not at all; the table `KINDS`
says how, and nothing else here knows one tracker from another.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from secateur.errors import MissingExtra, TrainingError, UnknownName

Array = np.ndarray[Any, Any]
PARTS = {"least": 0.0, "quarter": 0.25, "median": 0.5, "three_quarters": 0.75, "most": 1.0}
AT_ONCE = 500  # numbers in one call; MLflow takes 1,000


@dataclass(frozen=True)
class Tracking:
    """Where a training run can be watched while it goes on.

    Attributes:
        trackers: "tensorboard", "mlflow" or "trackio", one or several.
        folder: TensorBoard reads `folder/run`, or `folder/group/run`; MLflow's database is `folder/mlflow.db`, unless
            MLflow has been told of another place. trackio has one folder for all runs, TRACKIO_DIR in the environment.
        run: name of the run.
        group: of runs that belong together: MLflow's experiment, trackio's project, a folder of TensorBoard's; "" =
            they are called like the run.

    Raises:
        MissingExtra: a tracker's package is not installed.
        TrainingError: no tracker, or the run's name is no name of a folder.
        UnknownName: no such tracker.

    >>> Tracking("tensorbord")
    Traceback (most recent call last):
        ...
    secateur.errors.UnknownName: no tracker is called 'tensorbord'; did you mean 'tensorboard'?
    """

    trackers: str | tuple[str, ...]
    folder: str | Path = "runs"
    run: str = "secateur"
    group: str = ""

    def __post_init__(self) -> None:
        given = (self.trackers,) if isinstance(self.trackers, str) else tuple(dict.fromkeys(self.trackers))
        object.__setattr__(self, "trackers", given)
        if not given:
            raise TrainingError(f"trackers={given!r}: expected one or several of {', '.join(sorted(KINDS))}.")
        for key, value in {"run": self.run, "group": self.group or self.run}.items():
            if not re.fullmatch(r"\w[\w.-]*", value):
                raise TrainingError(
                    f"{key}={value!r}: expected letters, digits, '-', '_' and '.', e.g. 'resnet20-half'."
                )
        for name in given:
            if name not in KINDS:
                raise UnknownName("tracker", name, KINDS)
            if find_spec(name) is None:
                raise MissingExtra(f"tracking with {name} needs its package, which is not installed: {KINDS[name].get}")


class Tracks:
    """The trackers of one run, open."""

    def __init__(self, trackers: list[Any]) -> None:
        self._trackers = trackers

    def write(self, epoch: int, values: Mapping[str, float | Tensor]) -> None:
        """Write what is known after an epoch: numbers as they are, tensors as the distribution of their elements.

        What is not finite is left out.
        """
        known = {re.sub(r"[^\w./ -]", "_", name): value for name, value in values.items()}
        numbers = {name: float(v) for name, v in known.items() if not isinstance(v, Tensor) and math.isfinite(v)}
        spreads = {name: _finite(v) for name, v in known.items() if isinstance(v, Tensor)}
        for tracker in self._trackers:
            own: dict[str, Any] = dict(numbers)
            for name, elements in spreads.items():
                if len(elements):
                    own |= KINDS[tracker.name].distribution(tracker, name, elements, epoch)
            left = iter(own.items())
            while part := dict(itertools.islice(left, AT_ONCE)):
                tracker.log(part, step=epoch)


@contextmanager
def tracked(tracking: Tracking | None, made: Any, settings: Mapping[str, Any]) -> Iterator[Tracks | None]:
    """Have the trackers of a run open during the block, on the first process; None where nothing is tracked.

    Args:
        tracking: where.
        made: the accelerator, made with these trackers.
        settings: noted with the run, those that are numbers, truths and words.
    """
    if tracking is None or not made.is_main_process:
        yield None
        return
    kinds = {name: KINDS[name] for name in tracking.trackers}
    with contextlib.ExitStack() as stack:
        for kind in kinds.values():
            stack.enter_context(kind.around(Path(tracking.folder)))
        noted = {key: value for key, value in settings.items() if isinstance(value, bool | int | float | str)}
        with contextlib.redirect_stdout(sys.stderr):  # where results are printed, nothing else may be
            _open(tracking, made, kinds, noted)
        try:
            yield Tracks(made.trackers)
        finally:
            with contextlib.redirect_stdout(sys.stderr):
                for tracker in made.trackers:
                    tracker.finish()


def _open(tracking: Tracking, made: Any, kinds: Mapping[str, Kind], noted: dict[str, Any]) -> None:
    """Open the trackers one by one, for what they call a project is not the same."""
    wanted, opened = {str(one): one for one in made.log_with}, []
    for name, kind in kinds.items():
        made.log_with, made.trackers = [wanted[name]], []
        made.init_trackers(kind.project(tracking), config=noted, init_kwargs={name: kind.settings(tracking)})
        opened += made.trackers
    made.log_with, made.trackers = list(wanted.values()), opened


def quartiles(values: Array) -> dict[str, float]:
    """Return the least, the quartiles and the most of some values.

    >>> quartiles(np.array([0.0, 1.0, 2.0, 3.0, 4.0]))["three_quarters"]
    3.0
    """
    return dict(zip(PARTS, np.quantile(values, list(PARTS.values())).tolist(), strict=True))


def _finite(values: Tensor) -> Array:
    found: Array = values.detach().double().cpu().numpy().ravel()
    return found[np.isfinite(found)]


@contextmanager
def _mlflow_database(folder: Path) -> Iterator[None]:
    """Have MLflow write to a database in the folder, unless it was told where to write."""
    import mlflow

    if mlflow.is_tracking_uri_set():
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    mlflow.set_tracking_uri(f"sqlite:///{folder.resolve() / 'mlflow.db'}")
    try:
        yield
    finally:
        mlflow.set_tracking_uri(None)


def _mlflow_settings(tracking: Tracking) -> dict[str, Any]:
    import mlflow

    return {"run_name": tracking.run, "nested_run": mlflow.active_run() is not None}


@contextmanager
def _trackio_closed(folder: Path) -> Iterator[None]:
    """Have trackio forget the run after the block; it would print to standard output when the process ends."""
    import trackio

    try:
        yield
    finally:
        with contextlib.suppress(RuntimeError), contextlib.redirect_stdout(sys.stderr):
            trackio.finish()  # RuntimeError: there is none


def _histogram_in_tensorboard(tracker: Any, name: str, values: Array, epoch: int) -> dict[str, Any]:
    tracker.tracker.add_histogram(name, values, epoch)
    return {}


def _histogram_in_trackio(tracker: Any, name: str, values: Array, epoch: int) -> dict[str, Any]:
    import trackio

    return {name: trackio.Histogram(values)}


def _in_quartiles(tracker: Any, name: str, values: Array, epoch: int) -> dict[str, Any]:
    return {f"{name}/{part}": value for part, value in quartiles(values).items()}


@dataclass(frozen=True)
class Kind:
    """What is particular about one tracker.

    Attributes:
        get: what to type to install it.
        distribution: takes a distribution (tracker, name, values, epoch), and returns what is left to log by the name.
        settings: arguments of its class in Accelerate.
        around: what has to surround a run, given the folder.
        project: what Accelerate is told as the project's name.
    """

    get: str
    distribution: Callable[[Any, str, Array, int], dict[str, Any]]
    settings: Callable[[Tracking], dict[str, Any]] = lambda tracking: {}
    around: Callable[[Path], AbstractContextManager[None]] = lambda folder: nullcontext()
    project: Callable[[Tracking], str] = lambda tracking: tracking.group or tracking.run


KINDS: dict[str, Kind] = {
    "mlflow": Kind("pip install mlflow.", _in_quartiles, _mlflow_settings, _mlflow_database),
    "tensorboard": Kind(
        'pip install "secateur[track]".',
        _histogram_in_tensorboard,
        project=lambda tracking: f"{tracking.group}/{tracking.run}" if tracking.group else tracking.run,
    ),
    "trackio": Kind(
        "pip install trackio.",
        _histogram_in_trackio,
        lambda tracking: {
            "embed": False,
            "auto_log_cpu": False,
            "auto_log_gpu": False,
            **({"name": tracking.run} if tracking.group else {}),
        },
        _trackio_closed,
    ),
}
