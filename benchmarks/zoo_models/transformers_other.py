"""transformers, audio, image and text together, video, time series.

ViLT is left out: it draws a random order of its patches in every forward pass, also in eval mode.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from .record import ZooModel, images
from .transformers_build import BLOCKS, FEED_FORWARD, HEADS, HIDDEN, VIT, VOCABULARY, entry, token_ids

_SPEECH = {
    **BLOCKS,
    "vocab_size": 29,
    "conv_dim": [16, 24, 32],
    "conv_kernel": [10, 3, 3],
    "conv_stride": [5, 2, 2],
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
}
_AUDIO_FRAMES = {
    "d_model": HIDDEN,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": HEADS,
    "decoder_attention_heads": HEADS,
    "encoder_ffn_dim": FEED_FORWARD,
    "decoder_ffn_dim": FEED_FORWARD,
    "vocab_size": VOCABULARY,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
    "use_cache": False,
}

_TEXT_TOWER = {**BLOCKS, "vocab_size": VOCABULARY, "max_position_embeddings": 32, "pad_token_id": 0, "bos_token_id": 1}
_TEXT_TOWER |= {"eos_token_id": 96, "projection_dim": 40}
_TOWERS = {"text_config": _TEXT_TOWER, "vision_config": VIT, "projection_dim": 40}
_LLAMA_TOWER = {"model_type": "llama", **BLOCKS, "num_key_value_heads": 2, "vocab_size": VOCABULARY, "pad_token_id": 0}
_TIME = {"prediction_length": 4, "context_length": 12, "lags_sequence": [1, 2], "num_time_features": 1}
_TIME |= {"encoder_layers": 2, "decoder_layers": 2, "d_model": HIDDEN, "encoder_attention_heads": HEADS}
_TIME |= {"decoder_attention_heads": HEADS, "encoder_ffn_dim": FEED_FORWARD, "decoder_ffn_dim": FEED_FORWARD}


def _waveform() -> dict[str, Tensor]:
    return {"input_values": torch.randn(2, 800)}


def _frames(channels: int, length: int, *, time_first: bool = False) -> dict[str, Tensor]:
    shape = (2, length, channels) if time_first else (2, channels, length)
    return {"input_features": torch.randn(shape), "decoder_input_ids": token_ids(5)}


def _image_and_text(side: int = 32) -> dict[str, Tensor]:
    ids = token_ids()
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": images(2, side)}


def _image_in_text() -> dict[str, Tensor]:
    ids = torch.cat([torch.full((2, 16), VOCABULARY - 1), token_ids()], dim=1)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": images(2, 32)}


def _regions(name: str, size: int) -> Callable[[], dict[str, Tensor]]:
    def inputs() -> dict[str, Tensor]:
        found = {"input_ids": token_ids(), name: torch.randn(2, 5, size)}
        return found if name == "visual_embeds" else found | {"visual_pos": torch.rand(2, 5, 4)}

    return inputs


def _clip(name: str) -> Callable[[], dict[str, Tensor]]:
    return lambda: {name: torch.randn(1, 4, 3, 32, 32)}


def _series() -> dict[str, Tensor]:
    past, future = 14, 4
    return {
        "past_values": torch.randn(2, past),
        "past_time_features": torch.randn(2, past, 1),
        "past_observed_mask": torch.ones(2, past),
        "future_values": torch.randn(2, future),
        "future_time_features": torch.randn(2, future, 1),
    }


_OTHERS: dict[str, tuple[str, str, Mapping[str, Any], Callable[[], dict[str, Tensor]]]] = {
    "audio-spectrogram-transformer": (
        "audio",
        "ASTForAudioClassification",
        {**BLOCKS, "patch_size": 8, "num_mel_bins": 32, "max_length": 48, "frequency_stride": 6, "time_stride": 6},
        lambda: {"input_values": torch.randn(2, 48, 32)},
    ),
    "data2vec-audio": (
        "audio",
        "Data2VecAudioForCTC",
        {**_SPEECH, "num_conv_pos_embeddings": 2, "conv_pos_kernel_size": 5},
        _waveform,
    ),
    "hubert": ("audio", "HubertForSequenceClassification", {**_SPEECH, "classifier_proj_size": 20}, _waveform),
    "moonshine": (
        "audio",
        "MoonshineForConditionalGeneration",
        {"vocab_size": VOCABULARY, "hidden_size": HIDDEN, "intermediate_size": FEED_FORWARD, "use_cache": False}
        | {
            f"{side}_{what}": count
            for side in ("encoder", "decoder")
            for what, count in (("num_hidden_layers", 2), ("num_attention_heads", 6))
        },
        lambda: {"input_values": torch.randn(2, 3000), "decoder_input_ids": token_ids(5)},
    ),
    "sew": ("audio", "SEWForCTC", {**_SPEECH, "squeeze_factor": 2}, _waveform),
    "sew-d": ("audio", "SEWDForCTC", {**_SPEECH, "squeeze_factor": 2}, _waveform),
    "speech_to_text": (
        "audio",
        "Speech2TextForConditionalGeneration",
        {**_AUDIO_FRAMES, "input_feat_per_channel": 20, "conv_channels": 24},
        lambda: _frames(20, 32, time_first=True),
    ),
    "unispeech": ("audio", "UniSpeechForCTC", _SPEECH, _waveform),
    "unispeech-sat": ("audio", "UniSpeechSatForCTC", _SPEECH, _waveform),
    "wav2vec2": ("audio", "Wav2Vec2ForCTC", _SPEECH, _waveform),
    "wav2vec2+layer-norm": (
        "audio",
        "Wav2Vec2ForCTC",
        {**_SPEECH, "feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True},
        _waveform,
    ),
    "wav2vec2-bert": (
        "audio",
        "Wav2Vec2BertForCTC",
        {**BLOCKS, "vocab_size": 29, "feature_projection_input_dim": 20, "conv_depthwise_kernel_size": 5},
        lambda: {"input_features": torch.randn(2, 16, 20)},
    ),
    "wav2vec2-conformer": ("audio", "Wav2Vec2ConformerForCTC", {**_SPEECH, "conv_depthwise_kernel_size": 5}, _waveform),
    "wavlm": ("audio", "WavLMForCTC", _SPEECH, _waveform),
    "whisper": (
        "audio",
        "WhisperForConditionalGeneration",
        {**_AUDIO_FRAMES, "num_mel_bins": 20, "max_source_positions": 16, "max_target_positions": 32},
        lambda: _frames(20, 32),
    ),
    "encodec": (
        "audio",
        "EncodecModel",
        {
            "num_filters": 4,
            "hidden_size": 16,
            "codebook_size": 32,
            "codebook_dim": 16,
            "upsampling_ratios": [4, 2],
            "num_lstm_layers": 1,
            "target_bandwidths": [60.0],
        },
        lambda: {"input_values": torch.randn(2, 1, 800)},
    ),
    "align": (
        "image-text",
        "AlignModel",
        {
            "text_config": _TEXT_TOWER,
            "vision_config": {"width_coefficient": 0.25, "depth_coefficient": 0.3, "hidden_dim": 40},
            "projection_dim": 80,
        },
        lambda: _image_and_text(64),
    ),
    "altclip": (
        "image-text",
        "AltCLIPModel",
        {**_TOWERS, "text_config": {**_TEXT_TOWER, "project_dim": 40}},
        _image_and_text,
    ),
    "blip": ("image-text", "BlipModel", _TOWERS, _image_and_text),
    "chinese_clip": ("image-text", "ChineseCLIPModel", _TOWERS, _image_and_text),
    "clip": ("image-text", "CLIPModel", _TOWERS, _image_and_text),
    "clipseg": (
        "image-text",
        "CLIPSegForImageSegmentation",
        {
            **_TOWERS,
            "extract_layers": [0, 1],
            "reduce_dim": 24,
            "decoder_num_attention_heads": 4,
            "decoder_intermediate_size": 40,
            "vision_config": {**VIT, "image_size": 352, "patch_size": 32},
        },
        lambda: _image_and_text(352),
    ),
    "git": ("image-text", "GitForCausalLM", {**_TEXT_TOWER, "vision_config": VIT, "use_cache": False}, _image_and_text),
    "groupvit": (
        "image-text",
        "GroupViTModel",
        {
            **_TOWERS,
            "projection_intermediate_dim": 40,
            "vision_config": {
                **VIT,
                "depths": [2, 2, 1],
                "num_hidden_layers": 5,
                "num_group_tokens": [8, 4, 0],
                "num_output_groups": [8, 4, 0],
            },
        },
        _image_and_text,
    ),
    "llava": (
        "image-text",
        "LlavaForConditionalGeneration",
        {
            "text_config": _LLAMA_TOWER,
            "vision_config": {"model_type": "clip_vision_model", **VIT},
            "image_token_id": VOCABULARY - 1,
            "vision_feature_layer": -1,
        },
        _image_in_text,
    ),
    "owlvit": ("image-text", "OwlViTModel", _TOWERS, _image_and_text),
    "paligemma": (
        "image-text",
        "PaliGemmaForConditionalGeneration",
        {
            "text_config": {**_LLAMA_TOWER, "model_type": "gemma", "head_dim": 8},
            "vision_config": {"model_type": "siglip_vision_model", **VIT},
            "image_token_id": VOCABULARY - 1,
            "projection_dim": HIDDEN,
        },
        _image_in_text,
    ),
    "siglip": (
        "image-text",
        "SiglipModel",
        {"text_config": {**_TEXT_TOWER, "projection_size": HIDDEN}, "vision_config": VIT},
        lambda: {"input_ids": token_ids(), "pixel_values": images(2, 32)},
    ),
    "visual_bert": (
        "image-text",
        "VisualBertModel",
        {**_TEXT_TOWER, "visual_embedding_dim": 20},
        _regions("visual_embeds", 20),
    ),
    "lxmert": (
        "image-text",
        "LxmertModel",
        {**_TEXT_TOWER, "l_layers": 1, "x_layers": 1, "r_layers": 1, "visual_feat_dim": 20},
        _regions("visual_feats", 20),
    ),
    "timesformer": ("video", "TimesformerForVideoClassification", {**VIT, "num_frames": 4}, _clip("pixel_values")),
    "videomae": ("video", "VideoMAEForVideoClassification", {**VIT, "num_frames": 4}, _clip("pixel_values")),
    "vivit": (
        "video",
        "VivitForVideoClassification",
        {**VIT, "num_frames": 4, "tubelet_size": [2, 8, 8]},
        _clip("pixel_values"),
    ),
    "vjepa2": (
        "video",
        "VJEPA2ForVideoClassification",
        {
            **VIT,
            "crop_size": 32,
            "frames_per_clip": 4,
            "tubelet_size": 2,
            "pred_hidden_size": 24,
            "pred_num_attention_heads": 3,
            "pred_num_hidden_layers": 1,
            "mlp_ratio": 2.0,
            "num_pooler_layers": 1,
        },
        _clip("pixel_values_videos"),
    ),
    "autoformer": ("time-series", "AutoformerModel", _TIME, _series),
    "informer": ("time-series", "InformerModel", {**_TIME, "attention_type": "full"}, _series),
    "patchtsmixer": (
        "time-series",
        "PatchTSMixerForPrediction",
        {
            "context_length": 32,
            "patch_length": 8,
            "patch_stride": 8,
            "num_input_channels": 3,
            "d_model": 16,
            "num_layers": 2,
            "prediction_length": 4,
            "loss": "mse",
        },
        lambda: {"past_values": torch.randn(2, 32, 3)},
    ),
    "patchtst": (
        "time-series",
        "PatchTSTForPrediction",
        {
            "context_length": 32,
            "patch_length": 8,
            "patch_stride": 8,
            "num_input_channels": 3,
            "d_model": HIDDEN,
            "num_attention_heads": HEADS,
            "num_hidden_layers": 2,
            "ffn_dim": FEED_FORWARD,
            "prediction_length": 4,
            "loss": "mse",
        },
        lambda: {"past_values": torch.randn(2, 32, 3)},
    ),
    "time_series_transformer": ("time-series", "TimeSeriesTransformerModel", _TIME, _series),
}


def other_models() -> list[ZooModel]:
    """Every audio, multi-modal, video and time-series entry."""
    return [
        entry(name, kind, class_name, config, inputs) for name, (kind, class_name, config, inputs) in _OTHERS.items()
    ]
