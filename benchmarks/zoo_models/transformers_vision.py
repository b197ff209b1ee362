"""transformers, vision: classifiers, segmentation, depth, detection with a set of queries.

ViT-MAE is left out: it shuffles its patches at random in every forward pass, also in eval mode.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from .record import ZooModel, images
from .transformers_build import FEED_FORWARD, HEADS, HIDDEN, VIT, VOCABULARY, entry, token_ids

_SWIN = {"image_size": 64, "patch_size": 2, "embed_dim": 24, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4}
_FOUR_STAGES = ["stage1", "stage2", "stage3", "stage4"]
_SWIN_PYRAMID = {"model_type": "swin", **_SWIN, "depths": [1, 1, 1, 1], "num_heads": [1, 2, 4, 8]}
_SWIN_PYRAMID |= {"out_features": _FOUR_STAGES}
_STAGES = {"hidden_sizes": [16, 24, 40, 56], "depths": [1, 1, 2, 1]}
_RESNET = {"embedding_size": 16, "hidden_sizes": [24, 32, 40, 56], "depths": [1, 2, 1, 1]}
_DETR = {
    "d_model": HIDDEN,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": HEADS,
    "decoder_attention_heads": HEADS,
    "encoder_ffn_dim": FEED_FORWARD,
    "decoder_ffn_dim": FEED_FORWARD,
    "num_queries": 10,
    "num_labels": 5,
    "backbone_config": {"model_type": "resnet", **_RESNET, "out_features": ["stage4"]},
}

_VISION: dict[str, tuple[str, Mapping[str, Any], int]] = {
    "beit": ("BeitForImageClassification", {**VIT, "use_relative_position_bias": True}, 32),
    "bit": (
        "BitForImageClassification",
        {"embedding_size": 16, "hidden_sizes": [32, 32, 64, 64], "depths": [1, 1, 1, 1], "num_groups": 8},
        64,
    ),
    "conditional_detr": ("ConditionalDetrForObjectDetection", _DETR, 64),
    "convnext": ("ConvNextForImageClassification", _STAGES, 64),
    "convnextv2": ("ConvNextV2ForImageClassification", _STAGES, 64),
    "cvt": ("CvtForImageClassification", {"embed_dim": [16, 24, 48], "num_heads": [1, 2, 6], "depth": [1, 2, 3]}, 64),
    "data2vec-vision": ("Data2VecVisionForImageClassification", VIT, 32),
    "deit": ("DeiTForImageClassification", VIT, 32),
    "depth_anything": (
        "DepthAnythingForDepthEstimation",
        {
            "backbone_config": {"model_type": "dinov2", **VIT, "num_hidden_layers": 4, "reshape_hidden_states": False}
            | {"out_features": _FOUR_STAGES, "apply_layernorm": True},
            "reassemble_hidden_size": HIDDEN,
            "patch_size": 8,
            "neck_hidden_sizes": [16, 24, 32, 40],
            "fusion_hidden_size": 20,
            "head_hidden_size": 12,
        },
        32,
    ),
    "deformable_detr": (
        "DeformableDetrForObjectDetection",
        {
            **_DETR,
            "d_model": 64,
            "encoder_attention_heads": 4,
            "decoder_attention_heads": 4,
            "num_feature_levels": 3,
            "encoder_n_points": 2,
        },
        64,
    ),
    "rt_detr": (
        "RTDetrForObjectDetection",
        {
            "backbone_config": {
                "model_type": "rt_detr_resnet",
                **_RESNET,
                "out_features": ["stage2", "stage3", "stage4"],
            },
            "encoder_hidden_dim": 32,
            "encoder_in_channels": [32, 40, 56],
            "encoder_ffn_dim": FEED_FORWARD,
            "encoder_attention_heads": 4,
            "d_model": 32,
            "decoder_in_channels": [32, 32, 32],
            "decoder_ffn_dim": FEED_FORWARD,
            "decoder_attention_heads": 4,
            "decoder_layers": 2,
            "num_queries": 10,
            "num_denoising": 0,
            "num_labels": 5,
        },
        64,
    ),
    "detr": ("DetrForObjectDetection", _DETR, 64),
    "dinov2": ("Dinov2ForImageClassification", {**VIT, "mlp_ratio": 2}, 32),
    "dinov2_with_registers": (
        "Dinov2WithRegistersForImageClassification",
        {**VIT, "mlp_ratio": 2, "num_register_tokens": 3},
        32,
    ),
    "dinov3_convnext": ("DINOv3ConvNextModel", _STAGES, 64),
    "dinov3_vit": ("DINOv3ViTModel", {**VIT, "num_register_tokens": 3, "use_gated_mlp": True}, 32),
    "dpt": (
        "DPTForSemanticSegmentation",
        {**VIT, "num_hidden_layers": 4, "backbone_out_indices": [0, 1, 2, 3], "neck_hidden_sizes": [16, 24, 32, 40]}
        | {"fusion_hidden_size": 20, "num_labels": 5},
        32,
    ),
    "efficientnet": (
        "EfficientNetForImageClassification",
        {"width_coefficient": 0.25, "depth_coefficient": 0.3, "hidden_dim": 320},
        64,
    ),
    "focalnet": (
        "FocalNetForImageClassification",
        {"embed_dim": 24, "depths": [1, 2], "hidden_sizes": [24, 48], "focal_levels": [2, 2], "focal_windows": [3, 3]},
        32,
    ),
    "glpn": (
        "GLPNForDepthEstimation",
        {
            "hidden_sizes": [8, 16, 24, 32],
            "num_attention_heads": [1, 2, 3, 4],
            "depths": [1, 1, 1, 1],
            "decoder_hidden_size": 20,
        },
        64,
    ),
    "hgnet_v2": (
        "HGNetV2ForImageClassification",
        {
            "stem_channels": [3, 8, 16],
            "stage_in_channels": [16, 24, 32, 40],
            "stage_mid_channels": [8, 12, 16, 20],
            "stage_out_channels": [24, 32, 40, 48],
            "stage_num_blocks": [1, 1, 1, 1],
            "stage_numb_of_layers": [2, 2, 2, 2],
            "embedding_size": 16,
            "hidden_sizes": [24, 32, 40, 48],
            "depths": [1, 1, 1, 1],
        },
        64,
    ),
    "hiera": (
        "HieraForImageClassification",
        {
            "embed_dim": 16,
            "image_size": [64, 64],
            "num_heads": [1, 2, 4],
            "depths": [1, 1, 2],
            "num_query_pool": 2,
            "masked_unit_size": [4, 4],
        },
        64,
    ),
    "ijepa": ("IJepaForImageClassification", VIT, 32),
    "imagegpt": (
        "ImageGPTForImageClassification",
        {
            "vocab_size": VOCABULARY,
            "n_positions": 64,
            "n_embd": HIDDEN,
            "n_layer": 2,
            "n_head": HEADS,
            "use_cache": False,
        },
        0,
    ),
    "levit": (
        "LevitForImageClassification",
        {
            "image_size": 64,
            "hidden_sizes": [16, 24, 32],
            "num_attention_heads": [2, 3, 4],
            "depths": [1, 1, 1],
            "key_dim": [6, 6, 6],
        },
        64,
    ),
    "maskformer": (
        "MaskFormerForInstanceSegmentation",
        {
            "fpn_feature_size": 64,
            "mask_feature_size": 32,
            "backbone_config": _SWIN_PYRAMID,
            "decoder_config": {"model_type": "detr", **{key: _DETR[key] for key in _DETR if key != "backbone_config"}},
        },
        64,
    ),
    "mask2former": (
        "Mask2FormerForUniversalSegmentation",
        {"backbone_config": _SWIN_PYRAMID, "feature_size": 32, "mask_feature_size": 32, "hidden_dim": 32}
        | {"encoder_feedforward_dim": FEED_FORWARD, "dim_feedforward": FEED_FORWARD, "num_attention_heads": 4}
        | {"encoder_layers": 1, "decoder_layers": 3, "num_queries": 10, "num_labels": 5},
        64,
    ),
    "mobilenet_v1": ("MobileNetV1ForImageClassification", {"depth_multiplier": 0.25, "min_depth": 8}, 64),
    "mobilenet_v2": ("MobileNetV2ForSemanticSegmentation", {"depth_multiplier": 0.25, "num_labels": 5}, 64),
    "mobilevit": (
        "MobileViTForImageClassification",
        {"hidden_sizes": [24, 32, 40], "neck_hidden_sizes": [8, 16, 24, 32, 40, 48, 96], "image_size": 64},
        64,
    ),
    "mobilevitv2": ("MobileViTV2ForImageClassification", {"width_multiplier": 0.25, "image_size": 64}, 64),
    "poolformer": ("PoolFormerForImageClassification", _STAGES, 64),
    "pvt": (
        "PvtForImageClassification",
        {
            "image_size": 64,
            "hidden_sizes": [8, 16, 24, 32],
            "depths": [1, 1, 1, 1],
            "num_attention_heads": [1, 2, 3, 4],
        },
        64,
    ),
    "pvt_v2": (
        "PvtV2ForImageClassification",
        {
            "image_size": 64,
            "hidden_sizes": [8, 16, 24, 32],
            "depths": [1, 1, 1, 1],
            "num_attention_heads": [1, 2, 3, 4],
        },
        64,
    ),
    "regnet": (
        "RegNetForImageClassification",
        {"embedding_size": 16, "hidden_sizes": [16, 24, 40, 56], "depths": [1, 1, 2, 1], "groups_width": 8},
        64,
    ),
    "resnet": ("ResNetForImageClassification", _RESNET, 64),
    "sam_vision_model": (
        "SamVisionModel",
        {**VIT, "output_channels": 20, "window_size": 2, "global_attn_indexes": [1], "mlp_dim": FEED_FORWARD},
        32,
    ),
    "segformer": (
        "SegformerForSemanticSegmentation",
        {
            "hidden_sizes": [8, 16, 24, 32],
            "num_attention_heads": [1, 2, 3, 4],
            "depths": [1, 1, 1, 1],
            "decoder_hidden_size": 20,
            "num_labels": 5,
        },
        64,
    ),
    "siglip_vision_model": ("SiglipVisionModel", VIT, 32),
    "superpoint": (
        "SuperPointForKeypointDetection",
        {"encoder_hidden_sizes": [8, 8, 12, 12], "decoder_hidden_size": 16, "descriptor_decoder_dim": 16},
        64,
    ),
    "swiftformer": (
        "SwiftFormerForImageClassification",
        {"embed_dims": [8, 16, 24, 32], "depths": [1, 1, 1, 1], "drop_path_rate": 0.0},
        64,
    ),
    "swin": ("SwinForImageClassification", _SWIN, 64),
    "swin2sr": (
        "Swin2SRForImageSuperResolution",
        {"image_size": 16, "embed_dim": 24, "depths": [1, 1], "num_heads": [2, 4], "window_size": 4},
        16,
    ),
    "swinv2": ("Swinv2ForImageClassification", _SWIN, 64),
    "table-transformer": ("TableTransformerForObjectDetection", _DETR, 64),
    "textnet": ("TextNetForImageClassification", {}, 64),
    "upernet": (
        "UperNetForSemanticSegmentation",
        {
            "backbone_config": {"model_type": "convnext", **_STAGES, "out_features": _FOUR_STAGES},
            "hidden_size": 32,
            "auxiliary_in_channels": 40,
            "auxiliary_channels": 24,
            "num_labels": 5,
        },
        64,
    ),
    "vit": ("ViTForImageClassification", VIT, 32),
    "vit_msn": ("ViTMSNForImageClassification", VIT, 32),
    "vitdet": ("VitDetModel", {**VIT, "num_channels": 3, "window_block_indices": [0], "window_size": 2}, 32),
    "yolos": (
        "YolosForObjectDetection",
        {**VIT, "image_size": [32, 32], "num_detection_tokens": 6, "num_labels": 5},
        32,
    ),
}


def _inputs(side: int) -> dict[str, Tensor]:
    return {"pixel_values": images(2, side)} if side else {"input_ids": token_ids(16)}


def vision_models() -> list[ZooModel]:
    """Every vision entry."""
    found = []
    for name, (class_name, config, side) in _VISION.items():
        found.append(entry(name, "image", class_name, config, functools.partial(_inputs, side)))
    return found
