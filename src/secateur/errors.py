"""Every exception a user can cause.

::

    SecateurError
    ├── BudgetError        a budget that makes no sense or cannot be reached; says what is reachable
    ├── PlanError          a plan that is malformed or was made for another model
    ├── GraphError
    │   ├── TraceError     the model cannot be run on the example input
    │   └── UnsupportedOp  strict=True and an operation has no rule
    ├── SurgeryError       the smaller model cannot be built
    │   └── VerificationError  it was built, and it is not the masked model
    ├── MethodError        a method cannot work on what it was given
    ├── NothingToPrune     no channel is free to go
    ├── StoreError         a saved model that cannot be read or written
    ├── ModelError         a model that cannot be built or loaded
    ├── DataError          a data set that cannot be found or read
    ├── TrainingError      a training run that cannot start or go on
    ├── ExperimentError    an experiment that is malformed, or whose results cannot be kept
    ├── MissingExtra       an optional dependency is not installed; names the extra that brings it
    └── UnknownName        no method, model, module or data set of that name; suggests near ones

Warnings: ``NothingPruned`` (a call that was valid and removed nothing).
A message says what was asked, what was found and what to do.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class SecateurError(Exception):
    """Root of every error that this package raises on purpose."""


class BudgetError(SecateurError, ValueError):
    """A budget that is malformed or cannot be reached."""


class PlanError(SecateurError, ValueError):
    """A plan that is malformed or belongs to another model."""


class GraphError(SecateurError):
    """The channel graph cannot be built."""


class TraceError(GraphError, ValueError):
    """The model cannot be run on the example input."""


class UnsupportedOp(GraphError):
    """An operation has no rule, and ``strict=True`` asked not to freeze around it."""


class SurgeryError(SecateurError):
    """The smaller model cannot be built."""


class VerificationError(SurgeryError):
    """The smaller model does not compute what the masked model computes."""


class MethodError(SecateurError, ValueError):
    """A method cannot work on the model, data or settings it was given."""


class NothingToPrune(SecateurError, ValueError):
    """No channel of the model is free to go."""


class StoreError(SecateurError):
    """A saved model cannot be read or written."""


class ModelError(SecateurError, ValueError):
    """A model cannot be built or loaded."""


class DataError(SecateurError, ValueError):
    """A data set cannot be found or read."""


class TrainingError(SecateurError):
    """A training run cannot start or go on."""


class ExperimentError(SecateurError, ValueError):
    """An experiment that is malformed, or whose results cannot be kept."""


class MissingExtra(SecateurError, ImportError):
    """An optional dependency is not installed."""


class UnknownName(SecateurError, LookupError):
    """Nothing of that kind has that name."""

    def __init__(self, kind: str, name: str, known: Iterable[str], hint: str = "") -> None:
        known = sorted(known)
        near = did_you_mean(name, known)
        if near:
            tail = f"did you mean {' or '.join(repr(n) for n in near)}?"
        elif len(known) <= 20:
            tail = f"known: {', '.join(known)}."
        else:
            tail = f"{len(known)} are known, e.g. {', '.join(known[:8])}."
        super().__init__(f"no {kind} is called {name!r}; {tail}{' ' + hint if hint else ''}")
        self.kind, self.name, self.near = kind, name, near


class NothingPruned(UserWarning):
    """The call was valid, and nothing was removed."""


def did_you_mean(name: str, known: Iterable[str], count: int = 3) -> list[str]:
    """Return the `count` names of `known` nearest to `name`, nearest first; empty if none is near.

    >>> did_you_mean("l1_fliter", ["l1_filter", "random"])
    ['l1_filter']
    """
    lowered: dict[str, str] = {}
    for candidate in known:
        lowered.setdefault(candidate.lower(), candidate)
    return [lowered[hit] for hit in difflib.get_close_matches(name.lower(), lowered, n=count, cutoff=0.6)]


def first_line(error: BaseException) -> str:
    r"""Return the first line of what an exception says.

    >>> first_line(RuntimeError("mat1 and mat2 do not fit\nat line 3")), first_line(KeyError())
    ('mat1 and mat2 do not fit', 'no message')
    """
    return (str(error).strip().splitlines() or ["no message"])[0]
