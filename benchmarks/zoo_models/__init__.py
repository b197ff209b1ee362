"""The models the zoo benchmark runs: torchvision, timm and transformers, random weights, no downloads.

Importing this package imports none of the three; an entry's `build` does.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

from .randomise import calibrate_ as calibrate_
from .randomise import randomise_ as randomise_
from .record import ZooModel as ZooModel
from .record import numeric_inputs as numeric_inputs
from .timm_models import timm_models
from .torchvision_models import torchvision_models
from .transformers_other import other_models
from .transformers_text import text_models
from .transformers_vision import vision_models

__all__ = ["ZooModel", "all_models", "calibrate_", "default_twelve", "measured", "numeric_inputs", "randomise_"]


@functools.cache
def all_models() -> dict[str, ZooModel]:
    """Every entry by name, in the order the benchmark runs them."""
    return {
        model.name: model
        for model in (*torchvision_models(), *timm_models(), *text_models(), *vision_models(), *other_models())
    }


def measured() -> dict[str, dict[str, Any]]:
    """Parameters (millions) and seconds per forward pass of every entry, as `check` last recorded them on one core."""
    return json.loads(Path(__file__).with_name("measured.json").read_text())


def default_twelve() -> tuple[ZooModel, ...]:
    """Twelve small entries, one of each kind of structure, for the test run that is always on."""
    names = (
        "torchvision:resnet18",  # residual additions
        "torchvision:mobilenet_v3_small",  # depthwise convolutions, squeeze and excitation
        "torchvision:shufflenet_v2_x0_5",  # channel split and shuffle
        "torchvision:densenet121",  # concatenations of concatenations
        "timm:regnety_002",  # grouped convolutions
        "timm:convnext_zepto_rms",  # channels last, layer scale
        "timm:vit_tiny_patch16_224",  # packed qkv, class token
        "transformers:swin",  # windows, relative position bias, patch merging
        "transformers:bert",  # post-norm encoder with a padding mask
        "transformers:qwen3",  # grouped queries, q/k norm, rotary positions
        "transformers:t5",  # encoder-decoder, tied embeddings
        "transformers:mixtral",  # routed experts
    )
    return tuple(all_models()[name] for name in names)
