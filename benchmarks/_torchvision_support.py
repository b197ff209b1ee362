"""Let torchvision import, and its detectors run, where its compiled operations do not load.

A torchvision wheel built for CUDA cannot load its compiled part beside a CPU build of torch, and then even
``import torchvision`` fails because the schema of ``torchvision::nms`` is unknown. `prepare` declares the schemas that
are missing and gives ``nms`` and ``roi_align`` kernels in plain torch, under their usual operation names, so that a
recording shows the same operations as on an install that works. Where the compiled part loads, nothing is touched.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
from pathlib import Path

import torch
from torch import Tensor

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "roi_align(Tensor input, Tensor rois, float spatial_scale, SymInt pooled_height, SymInt pooled_width, "
    "int sampling_ratio, bool aligned) -> Tensor",
)
_libraries: list[torch.library.Library] = []  # a Library forgets its registrations when it is collected


def _compiled_part_loads() -> bool:
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return True  # not installed: nothing to repair, the import itself will say so
    for path in Path(spec.origin).parent.glob("_C.*"):
        try:
            torch.ops.load_library(path)
        except OSError:
            return False
        return True
    return False


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """Indices of the boxes kept by non-maximum suppression, best score first.

    Args:
        boxes: (box_count, 4) as x1, y1, x2, y2.
        scores: (box_count,).
        iou_threshold: a box that overlaps a better one by more than this goes.
    """
    order = scores.argsort(descending=True, stable=True)
    top_left = torch.maximum(boxes[order, None, :2], boxes[order, :2])
    bottom_right = torch.minimum(boxes[order, None, 2:], boxes[order, 2:])
    overlap = (bottom_right - top_left).clamp(min=0).prod(dim=2)
    area = (boxes[order, 2:] - boxes[order, :2]).prod(dim=1)
    suppresses = overlap / (area[:, None] + area - overlap) > iou_threshold
    alive = torch.ones(len(order), dtype=torch.bool)
    for index in range(len(order)):
        if alive[index]:
            alive[index + 1 :] &= ~suppresses[index, index + 1 :]
    return order[alive]


def _is_declared(name: str) -> bool:
    try:
        torch._C._dispatch_find_schema_or_throw(f"torchvision::{name}", "")
    except RuntimeError:
        return False
    return True


def _roi_align_shape(  # the signature is the operation's schema
    features: Tensor, rois: Tensor, scale: float, height: int, width: int, sampling: int, aligned: bool
) -> Tensor:
    return features.new_empty((rois.shape[0], features.shape[1], height, width))


@functools.cache
def prepare() -> bool:
    """Make torchvision usable; call it before the first import of torchvision or timm.

    Returns:
        True if torchvision's own compiled operations are in use, False if the plain-torch ones are.
    """
    if _compiled_part_loads():
        return True
    library = torch.library.Library("torchvision", "FRAGMENT")
    _libraries.append(library)
    for schema in _SCHEMAS:
        if not _is_declared(schema.partition("(")[0]):
            library.define(schema)
    library.impl("nms", nms, "CPU")

    boxes = importlib.import_module("torchvision.ops.boxes")
    roi = importlib.import_module("torchvision.ops.roi_align")
    plain_roi_align = roi._roi_align.__wrapped__  # without the torch.compile around it
    library.impl("roi_align", plain_roi_align, "CPU")
    library.impl("roi_align", _roi_align_shape, "Meta")
    for module in (boxes, roi):
        module._assert_has_ops = lambda: None
    roi._has_ops = lambda: True
    return False
