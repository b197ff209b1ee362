"""Test support: no network, and torchvision (with timm, which imports it) usable beside a CPU build of torch."""

import importlib.util
import os
from pathlib import Path

import torch

os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is imported, so it is set before any test is

SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)


def _stand_in_for_torchvision_ops() -> torch.library.Library | None:
    """Declare the operators that `import torchvision` looks up, if its compiled part cannot load here."""
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return None
    for compiled in Path(spec.origin).parent.glob("_C.*"):
        try:
            torch.ops.load_library(str(compiled))
        except OSError:
            continue
        return None
    library = torch.library.Library("torchvision", "DEF")
    for schema in SCHEMAS:
        library.define(schema)
    return library


# Kept for the whole session: the declarations vanish with the object.
_TORCHVISION_OPS = _stand_in_for_torchvision_ops()
