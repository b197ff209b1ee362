"""Choose the timm entries: of each family the model with the fewest parameters, at the smallest image it accepts.

A family is a timm module and the leading letters of the architecture's name, so that `byobnet` counts as RepVGG,
MobileOne, GENet, ...  Prints one line per family: name, module, image side, whether the side is an argument.

    python -m benchmarks.zoo_models.pick_timm > picked.tsv
"""

from __future__ import annotations

import logging
import re
import sys
import warnings

import torch

from .._torchvision_support import prepare
from .record import ZooModel, images

_SIDES = (64, 96, 128, 160, 192, 224, 240, 256, 288, 384, 448, 512)
_TOO_LARGE = 135_000_000


def smallest_of_each_family() -> dict[tuple[str, str], str]:
    """(module, leading letters) -> the name of the smallest model; timm's own test models are left out."""
    import timm

    best: dict[tuple[str, str], tuple[int, str]] = {}
    for module in timm.list_modules():
        for name in timm.list_models(module=module, exclude_filters="test_*"):
            prefix = re.match("[a-z]+", name.removeprefix("tf_"))
            assert prefix is not None
            try:
                with torch.device("meta"):
                    model = timm.create_model(name)
            except (RuntimeError, NotImplementedError):  # weights computed from other weights: none of them is small
                continue
            size = sum(parameter.numel() for parameter in model.parameters())
            key = (module, prefix[0])
            best[key] = min(best.get(key, (size, name)), (size, name))
    return {key: name for key, (size, name) in best.items() if size < _TOO_LARGE}


def smallest_side(name: str) -> tuple[int, bool]:
    """The smallest image side the model runs at, and whether it has to be told (img_size=)."""
    import timm

    told = bool(timm.get_pretrained_cfg(name).fixed_input_size)
    for side in (*_SIDES, timm.get_pretrained_cfg(name).input_size[-1]):
        try:
            model = ZooModel(
                name,
                "timm",
                "",
                "image",
                lambda side=side: (
                    timm.create_model(name, **({"img_size": side} if told else {})),
                    (images(2, side),),
                    {},
                ),
            )
            built, args, kwargs = model.build()
            with torch.no_grad():
                out = built(*args, **kwargs)
        except Exception as error:  # a model refuses a size in any way it likes; the next size is the answer
            logging.getLogger(__name__).info("%s at %d: %s", name, side, error)
            continue
        if torch.isfinite(out).all() and float(out.std()) > 1e-4:
            return side, told
    raise SystemExit(f"{name} runs at no side")


def main() -> None:
    """Print the table."""
    warnings.filterwarnings("ignore")
    prepare()
    for (module, prefix), name in smallest_of_each_family().items():
        side, told = smallest_side(name)
        sys.stdout.write(f"{name}\t{module}\t{prefix}\t{side}\t{told}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
