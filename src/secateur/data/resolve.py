"""From a name to a data set.

::

    digits             hand-written digits, no download
    cifar10            from the hub
    cifar10:PLACE      from another hub id, a folder or a pattern of parquet files
    folder:PATH        image files, one folder per class
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..arguments import misfit
from ..errors import DataError, UnknownName
from .cifar import cifar10
from .digits import digits
from .folder import image_folder
from .images import ImageData

SOURCES: dict[str, Callable[..., ImageData]] = {"cifar10": cifar10, "digits": digits, "folder": image_folder}


def names() -> list[str]:
    """Return what a data set's name may begin with, sorted.

    >>> names()
    ['cifar10', 'digits', 'folder']
    """
    return sorted(SOURCES)


def resolve(name: str, **kwargs: Any) -> ImageData:
    """Load the data set of that name.

    Args:
        name: as in the docstring of this module.
        kwargs: passed to the function that loads it.

    Raises:
        UnknownName: nothing of that name; near names are suggested.
        DataError: a place is missing or not wanted, an argument is unknown, or the data cannot be read.
        MissingExtra: what reads it is not installed.

    >>> resolve("digits", test_fraction=0.5)
    ImageData('digits': 899 to train, 898 to test, 1x8x8, 10 classes)
    """
    kind, colon, place = name.partition(":")
    if kind not in SOURCES:
        raise UnknownName("data set", kind, SOURCES, hint="A place follows a colon, e.g. folder:PATH.")
    places = [place] if place else []
    if colon and not place:
        raise DataError(f"{name!r}: nothing follows the colon; give a place, e.g. {kind}:PATH.")
    if reason := misfit(SOURCES[kind], *places, **kwargs):
        raise DataError(f"{name!r} cannot be loaded: {reason}; {kind}:PATH sets the first of them.")
    return SOURCES[kind](*places, **kwargs)
