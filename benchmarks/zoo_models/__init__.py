"""The models the zoo benchmark runs: torchvision, timm and transformers, random weights, no downloads.

Importing this package imports none of the three; an entry's `build` does.
"""

from __future__ import annotations

import functools

from .randomise import calibrate_ as calibrate_
from .randomise import randomise_ as randomise_
from .record import ZooModel as ZooModel
from .record import numeric_inputs as numeric_inputs
from .timm_models import timm_models as timm_models
from .torchvision_models import torchvision_models as torchvision_models
from .transformers_text import text_models as text_models

__all__ = ["ZooModel", "all_models", "calibrate_", "numeric_inputs", "randomise_", "timm_models", "torchvision_models"]


@functools.cache
def all_models() -> dict[str, ZooModel]:
    """Every entry by name, in the order the benchmark runs them."""
    return {model.name: model for model in (*torchvision_models(), *timm_models(), *text_models())}
