"""From a name to a model: our own networks, timm, torchvision, Hugging Face, or a function in a file.

::

    resnet56                       a network of this package, see `names`
    timm:NAME                      timm.create_model
    torchvision:NAME               torchvision.models.get_model
    hf:NAME_OR_FOLDER              a transformers model, its configuration read from the hub or the folder
    FILE.py:FUNCTION               what the function of that file returns
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

from ..arguments import misfit
from ..errors import ModelError, UnknownName
from .densenet import densenet40
from .from_file import from_file
from .libraries import from_hugging_face, from_timm, from_torchvision
from .preresnet import preresnet164
from .resnet import digits_resnet, resnet20, resnet32, resnet56, resnet110
from .vgg import vgg16_bn, vgg16_bn_a, vgg19_bn

OWN: dict[str, Callable[..., nn.Module]] = {
    "densenet40": densenet40,
    "digits_resnet": digits_resnet,
    "preresnet164": preresnet164,
    "resnet20": resnet20,
    "resnet20_b": partial(resnet20, shortcut="B"),
    "resnet32": resnet32,
    "resnet32_b": partial(resnet32, shortcut="B"),
    "resnet56": resnet56,
    "resnet56_b": partial(resnet56, shortcut="B"),
    "resnet110": resnet110,
    "resnet110_b": partial(resnet110, shortcut="B"),
    "vgg16_bn": vgg16_bn,
    "vgg16_bn_a": vgg16_bn_a,
    "vgg19_bn": vgg19_bn,
}

LIBRARIES: dict[str, Callable[..., nn.Module]] = {
    "hf": from_hugging_face,
    "timm": from_timm,
    "torchvision": from_torchvision,
}

CIFAR_IMAGE = (3, 32, 32)
DIGITS_IMAGE = (1, 8, 8)


def names() -> list[str]:
    """Return the names of this package's own networks, sorted.

    >>> "resnet56" in names()
    True
    """
    return sorted(OWN)


def default_input(name: str) -> tuple[int, ...]:
    """Return the shape (channels, height, width) of one image that one of our own networks was made for.

    Raises:
        UnknownName: no network of this package has that name.

    >>> default_input("resnet20")
    (3, 32, 32)
    """
    if name not in OWN:
        raise UnknownName("network of this package", name, OWN)
    return DIGITS_IMAGE if name == "digits_resnet" else CIFAR_IMAGE


def resolve(
    name: str,
    *,
    class_count: int | None = None,
    in_channels: int | None = None,
    pretrained: bool = False,
    **kwargs: Any,
) -> nn.Module:
    """Build the model of that name, in the state in which its library leaves it.

    Args:
        name: as in the docstring of this module.
        class_count: number of outputs; None for the model's own.
        in_channels: channels of the images; None for the model's own.
        pretrained: load trained weights, which may download them; our own networks have none.
        kwargs: passed to what builds the model.

    Raises:
        UnknownName: nothing of that name; near names are suggested.
        MissingExtra: the library of that prefix is not installed.
        ModelError: the model cannot be built from these arguments.

    >>> resolve("resnet20", class_count=100).fc.out_features
    100
    """
    given = {"class_count": class_count, "in_channels": in_channels}
    asked = {key: value for key, value in given.items() if value is not None}
    prefix, colon, rest = name.partition(":")
    if colon and prefix in LIBRARIES:
        return LIBRARIES[prefix](rest, pretrained=pretrained, **asked, **kwargs)
    if name.endswith(".py") or name.rpartition(":")[0].endswith(".py"):
        if pretrained:
            kwargs["pretrained"] = True
        return from_file(name, **asked, **kwargs)
    if name not in OWN:
        prefixes = ", ".join(f"{library}:NAME" for library in sorted(LIBRARIES))
        raise UnknownName("model", name, OWN, hint=f"Other sources: {prefixes}, FILE.py:FUNCTION.")
    if pretrained:
        raise ModelError(f"pretrained=True: {name!r} comes without trained weights; train it, or load your own.")
    if reason := misfit(OWN[name], **asked, **kwargs):
        raise ModelError(f"{name} cannot be built: {reason}.")
    return OWN[name](**asked, **kwargs)
