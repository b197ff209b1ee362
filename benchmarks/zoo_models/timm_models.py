"""timm: one model of every family, the smallest, at the smallest image it accepts.

A family is a timm module and the leading letters of the architecture's name: `byobnet` alone holds RepVGG, MobileOne,
GENet and a dozen ResNet variants. The table is literal so that nothing is searched at run time; it was made by

    python -m benchmarks.zoo_models.pick_timm > picked.tsv

Four families have no model under 135 million parameters (gemma4_vit, aimv2, eva, deepseek_vit); they run at depth 2.
"""

from __future__ import annotations

import functools
import re
from typing import Any

from .._torchvision_support import prepare
from .record import Built, ZooModel, images

# module: models; "name:side" takes any image and gets this one, "name=side" is told its side (img_size=).
_PICKED = {
    "beit": "beit_base_patch16_224=64 beitv2_base_patch16_224=64",
    "byoanet": (
        "botnet26t_256=64 eca_botnext26ts_256=64 halo2botnet50ts_256=128 halonet_h1:256 haloregnetz_b:224 "
        "lambda_resnet26t:64 lamhalobotnet50ts_256=128 sebotnet33ts_256=64 sehalonet33ts:256"
    ),
    "byobnet": (
        "bat_resnext26ts:256 eca_resnext26ts:64 gcresnet33ts:64 gcresnext26ts:64 gernet_s:64 mobileone_s1:64 "
        "regnetz_b16:64 repvgg_a0:64 resnet32ts:64 resnext26ts:64 seresnet33ts:64 seresnext26ts:64"
    ),
    "cait": "cait_xxs24_224=64",
    "coat": "coat_tiny=64",
    "convit": "convit_tiny=64",
    "convmixer": "convmixer_768_32:64",
    "convnext": "convnext_zepto_rms:64 convnextv2_atto:64",
    "cpubone": "cpubone_nano:64",
    "crossvit": "crossvit_tiny_240=240",
    "csatv2": "csatv2:64",
    "cspnet": (
        "cs3darknet_focus_s:64 cspdarknet53:64 cspresnet50:64 cspresnext50:64 darknet17:64 darknetaa53:64 "
        "sedarknet21:64"
    ),
    "cspnext": "cspnext_tiny:64",
    "davit": "davit_tiny:64",
    "deepseek_vit": "deepseek_vit_412m=70",
    "deit": "deit_tiny_patch16_224=64",
    "densenet": "densenet121:64 densenetblur121d:64",
    "dla": "dla46x_c:64",
    "dpn": "dpn48b:64",
    "edgenext": "edgenext_xx_small:64",
    "efficientformer": "efficientformer_l1=224",
    "efficientformer_v2": "efficientformerv2_s0=64",
    "efficientnet": (
        "efficientnet_lite0:64 tf_efficientnetv2_b0:64 fbnetc_100:64 gc_efficientnetv2_rw_t:64 mixnet_s:64 "
        "mnasnet_small:64 mobilenet_edgetpu_100:64 mobilenetv2_035:64 semnasnet_050:64 spnasnet_100:64 "
        "tinynet_e:64"
    ),
    "efficientvim": "efficientvim_m1:64",
    "efficientvit_mit": "efficientvit_b0:64",
    "efficientvit_msra": "efficientvit_m0=64",
    "eva": "eva02_tiny_patch14_224=64 vit_tiny_patch16_dinov3_qkvb=64",
    "fasternet": "fasternet_t0:64",
    "fastvit": "fastvit_t8:64",
    "focalnet": "focalnet_tiny_srf:64",
    "gcvit": "gcvit_xxtiny=64",
    "gemma4_vit": "gemma4_vit_167m=64",
    "ghostnet": "ghostnet_050:64 ghostnetv3_050:64",
    "hardcorenas": "hardcorenas_b:64",
    "hgnet": "hgnet_tiny:64 hgnetv2_b0:64",
    "hiera": "hiera_tiny_224=64",
    "hieradet_sam2": "hieradet_small:64 sam2_hiera_tiny:64",
    "hrnet": "hrnet_w18_small:64",
    "iformer": "iformer_t:64",
    "inception_next": "inception_next_atto:64",
    "inception_resnet_v2": "inception_resnet_v2:96",
    "inception_v3": "inception_v3:96",
    "inception_v4": "inception_v4:96",
    "lcnetv2": "lcnetv2_small:64",
    "levit": "levit_128s=64",
    "lowformer": "lowformer_b0:64",
    "mambaout": "mambaout_femto:64",
    "maxxvit": (
        "coatnet_pico_rw_224=64 coatnext_nano_rw_224=64 maxvit_pico_rw_256=64 maxxvit_rmlp_nano_rw_256=64 "
        "maxxvitv2_nano_rw_256=64"
    ),
    "metaformer": "caformer_s18:64 convformer_s18:64 poolformer_s12:64 poolformerv2_s12:64",
    "mlp_mixer": "gmixer_12_224=64 gmlp_ti16_224=64 mixer_s16_224=64 resmlp_12_224=64",
    "mobilenetv3": "fbnetv3_b:64 lcnet_035:64 mobilenetv3_small_050:64",
    "mobilenetv5": "mobilenetv5_base:64",
    "mobilevit": "mobilevit_xxs:64 mobilevitv2_050:64",
    "mvitv2": "mvitv2_tiny=64",
    "naflexvit": "naflexvit_base_patch16_parfac_gap:64",
    "nasnet": "nasnetalarge:64",
    "nest": "nest_tiny=64",
    "nextvit": "nextvit_small:64",
    "nfnet": "dm_nfnet_f0:64 eca_nfnet_l0:64 nf_regnet_b0:64 nfnet_l0:64",
    "pit": "pit_ti_224=64",
    "pnasnet": "pnasnet5large:64",
    "pvt_v2": "pvt_v2_b0:64",
    "qwen3_vit": "qwen3_vit_88m:64",
    "rdnet": "rdnet_tiny:64",
    "regnet": "regnetv_040:64 regnetx_002:64 regnety_002:64 regnetz_005:64",
    "repghost": "repghostnet_050:64",
    "repvit": "repvit_m1:64",
    "res2net": "res2next50:64",
    "resnest": "resnest14d:64",
    "resnet": (
        "ecaresnet26t:64 ecaresnetlight:64 ecaresnext26t_32x4d:64 resnet10t:64 resnetaa34d:64 resnetblur18:64 "
        "resnetrs50:64 resnext50_32x4d:64 senet154:64 seresnet18:64 seresnetaa50d:64 seresnext26t_32x4d:64 "
        "seresnextaa101d_32x8d:64 wide_resnet50_2:64"
    ),
    "resnetv2": "resnetv2_18:64",
    "rexnet": "rexnet_100:64 rexnetr_100:64",
    "selecsls": "selecsls42:64",
    "senet": "legacy_seresnet18:64",
    "sequencer": "sequencer2d_s=64",
    "shvit": "shvit_s1:64",
    "sknet": "skresnet18:64 skresnext50_32x4d:64",
    "starnet": "starnet_s050:64",
    "swiftformer": "swiftformer_xs=64",
    "swin_transformer": "swin_tiny_patch4_window7_224=64",
    "swin_transformer_v2": "swinv2_tiny_window16_256=64",
    "swin_transformer_v2_cr": "swinv2_cr_tiny_224=64",
    "tiny_vit": "tiny_vit_5m_224:64",
    "tnt": "tnt_s_legacy_patch16_224=64",
    "tresnet": "tresnet_m:64",
    "twins": "twins_svt_small=64",
    "vgg": "vgg11:64",
    "visformer": "visformer_tiny=64",
    "vision_transformer": (
        "aimv2_large_patch14_224=64 beit3_base_patch16_224=64 eva_large_patch14_196=64 flexivit_small=64 "
        "vit_tiny_patch16_224=64"
    ),
    "vision_transformer_hybrid": "vit_tiny_r_s16_p8_224=64",
    "vision_transformer_relpos": "vit_srelpos_small_patch16_224=64",
    "vision_transformer_sam": "samvit_base_patch16_224=64",
    "vitamin": "vitamin_small_224=64",
    "volo": "volo_d1_224=64",
    "vovnet": "eca_vovnet39b:64 ese_vovnet19b_slim_dw:64 vovnet39a:64",
    "xception": "legacy_xception:64",
    "xception_aligned": "xception41p:64",
    "xcit": "xcit_nano_12_p8_224=64",
}
_OPTIONS: dict[str, dict[str, Any]] = {
    "aimv2_large_patch14_224": {"depth": 2},
    "deepseek_vit_412m": {"depth": 2},
    "eva_large_patch14_196": {"depth": 2},
    "gemma4_vit_167m": {"depth": 2},
}


def _build(name: str, side: int, told: bool) -> Built:
    prepare()
    import timm

    options = _OPTIONS.get(name, {}) | ({"img_size": side} if told else {})
    return timm.create_model(name, **options), (images(2, side),), {}


def timm_models() -> list[ZooModel]:
    """Every timm entry; timm itself is imported by `build` only."""
    found = []
    for module, text in _PICKED.items():
        for item in text.split():
            name, sign, side = re.split("([:=])", item)
            make = functools.partial(_build, name, int(side), sign == "=")
            found.append(ZooModel(f"timm:{name}", "timm", _family(module, name), "image", make))
    return found


def _family(module: str, name: str) -> str:
    letters = re.match("[a-z]+", name.removeprefix("tf_"))
    assert letters is not None
    return f"{module}/{letters[0]}"
