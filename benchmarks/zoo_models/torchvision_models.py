"""torchvision: every classification model, segmentation, video, optical flow, and detectors whole and headless.

Input sides are the smallest at which the model still sees at least 2 x 2 positions in its last stage, or what its
windows demand.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn

from .._torchvision_support import prepare
from .record import Built, ZooModel, images

_CLASSIFICATION = """
alexnet convnext_base convnext_large convnext_small convnext_tiny densenet121 densenet161 densenet169 densenet201
efficientnet_b0 efficientnet_b1 efficientnet_b2 efficientnet_b3 efficientnet_b4 efficientnet_b5 efficientnet_b6
efficientnet_b7 efficientnet_v2_l efficientnet_v2_m efficientnet_v2_s googlenet inception_v3 maxvit_t mnasnet0_5
mnasnet0_75 mnasnet1_0 mnasnet1_3 mobilenet_v2 mobilenet_v3_large mobilenet_v3_small regnet_x_16gf regnet_x_1_6gf
regnet_x_32gf regnet_x_3_2gf regnet_x_400mf regnet_x_800mf regnet_x_8gf regnet_y_128gf regnet_y_16gf regnet_y_1_6gf
regnet_y_32gf regnet_y_3_2gf regnet_y_400mf regnet_y_800mf regnet_y_8gf resnet101 resnet152 resnet18 resnet34 resnet50
resnext101_32x8d resnext101_64x4d resnext50_32x4d shufflenet_v2_x0_5 shufflenet_v2_x1_0 shufflenet_v2_x1_5
shufflenet_v2_x2_0 squeezenet1_0 squeezenet1_1 swin_b swin_s swin_t swin_v2_b swin_v2_s swin_v2_t vgg11 vgg11_bn vgg13
vgg13_bn vgg16 vgg16_bn vgg19 vgg19_bn vit_b_16 vit_b_32 vit_h_14 vit_l_16 vit_l_32 wide_resnet101_2 wide_resnet50_2
""".split()
_SIDES = {"inception_v3": 96, "maxvit_t": 224, "vit_h_14": 56}
_OPTIONS: dict[str, dict[str, Any]] = {
    "googlenet": {"init_weights": False},  # the library's own initialisation takes a minute
    "inception_v3": {"init_weights": False},
}

_SEGMENTATION = """
deeplabv3_mobilenet_v3_large deeplabv3_resnet101 deeplabv3_resnet50 fcn_resnet101 fcn_resnet50
lraspp_mobilenet_v3_large
""".split()
_VIDEO = {"mc3_18": (8, 56, 56), "r2plus1d_18": (8, 56, 56), "r3d_18": (8, 56, 56), "s3d": (16, 224, 224)}
_VIDEO |= {"swin3d_t": (4, 56, 56), "mvit_v1_b": (16, 224, 224), "mvit_v2_s": (16, 224, 224)}

_DETECTION = """
fasterrcnn_mobilenet_v3_large_320_fpn fasterrcnn_mobilenet_v3_large_fpn fasterrcnn_resnet50_fpn
fasterrcnn_resnet50_fpn_v2 fcos_resnet50_fpn keypointrcnn_resnet50_fpn maskrcnn_resnet50_fpn maskrcnn_resnet50_fpn_v2
retinanet_resnet50_fpn retinanet_resnet50_fpn_v2 ssd300_vgg16 ssdlite320_mobilenet_v3_large
""".split()
_DETECTOR_SIDE = 128
_FEW_PROPOSALS = {"rpn_pre_nms_top_n_test": 100, "rpn_post_nms_top_n_test": 20, "box_detections_per_img": 10}


class DetectorHeads(nn.Module):
    """A detector's network without its data-dependent ends: backbone, pyramid and heads, no box decoding or NMS.

    Two-stage detectors pool their second stage from fixed boxes in place of proposals.
    """

    def __init__(self, detector: nn.Module) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, batch: Tensor) -> dict[str, Any]:
        """Raw head outputs for images (batch, 3, side, side)."""
        features = self.detector.backbone(batch)
        if not hasattr(self.detector, "rpn"):
            return self.detector.head(list(features.values()))
        objectness, deltas = self.detector.rpn.head(list(features.values()))
        side = batch.shape[-1]
        box = torch.tensor([[0.1, 0.2, 0.7, 0.9], [0.0, 0.0, 1.0, 1.0]], dtype=batch.dtype) * side
        boxes, sizes = [box] * len(batch), [(side, side)] * len(batch)
        out = {"objectness": objectness, "deltas": deltas}
        heads = self.detector.roi_heads
        out["scores"], out["boxes"] = heads.box_predictor(heads.box_head(heads.box_roi_pool(features, boxes, sizes)))
        for task in ("mask", "keypoint"):
            pool = getattr(heads, f"{task}_roi_pool", None)
            if pool is not None:
                pooled = getattr(heads, f"{task}_head")(pool(features, boxes, sizes))
                out[task] = getattr(heads, f"{task}_predictor")(pooled)
        return out


def _classifier(name: str) -> Built:
    prepare()
    from torchvision import models

    side = _SIDES.get(name, 112 if name.startswith("swin") else 64)
    options = {"image_size": side} if name.startswith("vit_") else _OPTIONS.get(name, {})
    return models.get_model(name, weights=None, **options), (images(2, side),), {}


def _segmenter(name: str) -> Built:
    prepare()
    from torchvision import models

    options = {} if name.startswith("lraspp") else {"aux_loss": True}
    model = models.get_model(name, weights=None, weights_backbone=None, num_classes=21, **options)
    return model, (images(2, 64),), {}


def _video(name: str) -> Built:
    prepare()
    from torchvision import models

    return models.get_model(name, weights=None), (images(1, *_VIDEO[name]),), {}


def _flow() -> Built:
    prepare()
    from torchvision import models

    pair = torch.rand(2, 1, 3, 128, 128) * 2 - 1
    return models.get_model("raft_small", weights=None), (pair[0], pair[1]), {"num_flow_updates": 2}


def _detector(name: str, *, heads_only: bool) -> Built:
    prepare()
    from torchvision import models

    options: dict[str, Any] = {"weights": None, "weights_backbone": None, "num_classes": 5}
    if name.startswith("ssd"):
        options["score_thresh"] = 0.05
    else:
        options |= {"min_size": _DETECTOR_SIDE, "max_size": _DETECTOR_SIDE}
        options |= _FEW_PROPOSALS | {"box_score_thresh": 0.05} if "rcnn" in name else {"score_thresh": 0.05}
    model = models.get_model(name, **options)
    side = {"ssd300_vgg16": 300, "ssdlite320_mobilenet_v3_large": 320}.get(name, _DETECTOR_SIDE)
    if heads_only:
        return DetectorHeads(model), (images(2, side),), {}
    return model, ([torch.rand(3, side, side)],), {}


def _family(name: str) -> str:
    return name.split("_")[0].rstrip("0123456789").removesuffix("_") if not name.startswith("vit_") else "vit"


def torchvision_models() -> list[ZooModel]:
    """Every torchvision entry, classification first; torchvision itself is imported by `build` only."""

    def entry(name: str, kind: str, make: Any, *, suffix: str = "") -> ZooModel:
        return ZooModel(f"torchvision:{name}{suffix}", "torchvision", _family(name), kind, make)

    found = [entry(name, "image", functools.partial(_classifier, name)) for name in _CLASSIFICATION]
    found += [entry(name, "segmentation", functools.partial(_segmenter, name)) for name in _SEGMENTATION]
    found += [entry(name, "video", functools.partial(_video, name)) for name in _VIDEO]
    found.append(entry("raft_small", "optical-flow", _flow))
    for name in _DETECTION:
        make = functools.partial(_detector, name, heads_only=True)
        found.append(entry(name, "detection-heads", make, suffix="+heads"))
    for name in _DETECTION:
        found.append(entry(name, "detection", functools.partial(_detector, name, heads_only=False)))
    return found
