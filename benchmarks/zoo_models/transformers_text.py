"""transformers, text: encoders, decoders (GQA, q/k norm, latent attention, MoE, state space), encoder-decoders."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from .record import ZooModel
from .transformers_build import FEED_FORWARD, HEAD_SIZE, HEADS, HIDDEN, TOKENS, VOCABULARY, entry, token_ids

_SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_BASE = {"vocab_size": VOCABULARY, "max_position_embeddings": 64, **_SPECIAL}
_BERT = {
    **_BASE,
    "hidden_size": HIDDEN,
    "num_hidden_layers": 2,
    "num_attention_heads": HEADS,
    "intermediate_size": FEED_FORWARD,
}
_LLAMA = {**_BERT, "num_key_value_heads": 2, "head_dim": HEAD_SIZE, "use_cache": False}
_EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 40}
_BART = {
    **_BASE,
    "d_model": HIDDEN,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": HEADS,
    "decoder_attention_heads": HEADS,
    "encoder_ffn_dim": FEED_FORWARD,
    "decoder_ffn_dim": FEED_FORWARD,
    "decoder_start_token_id": 2,
    "use_cache": False,
}
_T5 = {
    **_SPECIAL,
    "vocab_size": VOCABULARY,
    "d_model": HIDDEN,
    "d_kv": HEAD_SIZE,
    "d_ff": FEED_FORWARD,
    "num_layers": 2,
    "num_heads": HEADS,
    "decoder_start_token_id": 0,
    "use_cache": False,
}
_GPT = {**_SPECIAL, "vocab_size": VOCABULARY, "n_embd": HIDDEN, "n_layer": 2, "n_head": HEADS, "n_positions": 64}

_ENCODERS: dict[str, tuple[str, Mapping[str, Any]]] = {
    "albert": ("AlbertForMaskedLM", {**_BERT, "embedding_size": 24, "num_hidden_groups": 1}),
    "bert": ("BertForSequenceClassification", _BERT),
    "bert+mlm": ("BertForMaskedLM", _BERT),
    "big_bird": ("BigBirdForMaskedLM", {**_BERT, "attention_type": "original_full"}),
    "camembert": ("CamembertForMaskedLM", _BERT),
    "canine": (
        "CanineModel",
        {**_BERT, "local_transformer_stride": 16, "num_hash_buckets": 50, "downsampling_rate": 4},
    ),
    "convbert": ("ConvBertForMaskedLM", {**_BERT, "embedding_size": 24, "conv_kernel_size": 3}),
    "data2vec-text": ("Data2VecTextForMaskedLM", _BERT),
    "deberta": ("DebertaForMaskedLM", {**_BERT, "relative_attention": True, "pos_att_type": ["p2c", "c2p"]}),
    "deberta-v2": (
        "DebertaV2ForMaskedLM",
        {**_BERT, "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 16},
    ),
    "distilbert": (
        "DistilBertForSequenceClassification",
        {**_BASE, "dim": HIDDEN, "n_layers": 2, "n_heads": HEADS, "hidden_dim": FEED_FORWARD},
    ),
    "electra": ("ElectraForPreTraining", {**_BERT, "embedding_size": 24}),
    "ernie": ("ErnieForMaskedLM", _BERT),
    "esm": ("EsmForMaskedLM", {**_BERT, "mask_token_id": 3, "position_embedding_type": "rotary"}),
    "eurobert": ("EuroBertForMaskedLM", _LLAMA),
    "fnet": ("FNetForMaskedLM", {**_BERT, "tpu_short_seq_length": TOKENS}),
    "funnel": (
        "FunnelForMaskedLM",
        {**_SPECIAL, "vocab_size": VOCABULARY, "block_sizes": [1, 1], "d_model": HIDDEN, "n_head": HEADS}
        | {"d_head": HEAD_SIZE, "d_inner": FEED_FORWARD, "num_decoder_layers": 1},
    ),
    "ibert": ("IBertForMaskedLM", _BERT),
    "layoutlm": ("LayoutLMForMaskedLM", _BERT),
    "longformer": ("LongformerForMaskedLM", {**_BERT, "attention_window": [4, 4]}),
    "megatron-bert": ("MegatronBertForMaskedLM", _BERT),
    "mobilebert": (
        "MobileBertForMaskedLM",
        {
            **_BERT,
            "embedding_size": 24,
            "intra_bottleneck_size": 36,
            "true_hidden_size": 36,
            "num_feedforward_networks": 2,
        },
    ),
    "modernbert": ("ModernBertForMaskedLM", {**_BERT, "global_attn_every_n_layers": 2, "local_attention": 4}),
    "mpnet": ("MPNetForMaskedLM", _BERT),
    "nystromformer": ("NystromformerForMaskedLM", {**_BERT, "num_landmarks": 4, "segment_means_seq_len": 8}),
    "rembert": ("RemBertForMaskedLM", {**_BERT, "input_embedding_size": 24, "output_embedding_size": 40}),
    "roberta": ("RobertaForSequenceClassification", _BERT),
    "roberta-prelayernorm": ("RobertaPreLayerNormForMaskedLM", _BERT),
    "roformer": ("RoFormerForMaskedLM", {**_BERT, "embedding_size": 24}),
    "squeezebert": (
        "SqueezeBertForMaskedLM",
        {**_BERT, "embedding_size": HIDDEN}
        | {f"{part}_groups": 2 for part in ("q", "k", "v", "post_attention", "intermediate", "output")},
    ),
    "xlm-roberta": ("XLMRobertaForMaskedLM", _BERT),
    "xlnet": (
        "XLNetLMHeadModel",
        {
            **_SPECIAL,
            "vocab_size": VOCABULARY,
            "d_model": HIDDEN,
            "n_layer": 2,
            "n_head": HEADS,
            "d_inner": FEED_FORWARD,
        },
    ),
}

_LATENT = {"q_lora_rank": 20, "kv_lora_rank": 12, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 10}
_DEEPSEEK = {**_LLAMA, **_EXPERTS, **_LATENT, "num_key_value_heads": HEADS, "n_routed_experts": 4, "n_group": 2}
_DEEPSEEK |= {"topk_group": 1, "n_shared_experts": 1, "first_k_dense_replace": 1, "head_dim": 4}
_HYBRID = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 10,
}

_DECODERS: dict[str, tuple[str, Mapping[str, Any]]] = {
    "apertus": ("ApertusForCausalLM", _LLAMA),
    "arcee": ("ArceeForCausalLM", _LLAMA),
    "biogpt": ("BioGptForCausalLM", _BERT | {"use_cache": False}),
    "bitnet": ("BitNetForCausalLM", _LLAMA),
    "bloom": (
        "BloomForCausalLM",
        {**_SPECIAL, "vocab_size": VOCABULARY, "hidden_size": HIDDEN, "n_layer": 2, "n_head": HEADS},
    ),
    "codegen": ("CodeGenForCausalLM", {**_GPT, "n_head": 4, "rotary_dim": 4}),
    "cohere": ("CohereForCausalLM", {**_LLAMA, "use_qk_norm": True}),
    "cohere2": ("Cohere2ForCausalLM", {**_LLAMA, "sliding_window": 4}),
    "ctrl": ("CTRLLMHeadModel", {**_GPT, "dff": FEED_FORWARD}),
    "deepseek_v2": ("DeepseekV2ForCausalLM", {**_DEEPSEEK, "topk_method": "greedy"}),
    "deepseek_v3": ("DeepseekV3ForCausalLM", _DEEPSEEK),
    "diffllama": ("DiffLlamaForCausalLM", {**_LLAMA, "num_key_value_heads": HEADS // 3}),
    "doge": ("DogeForCausalLM", _LLAMA),
    "ernie4_5": ("Ernie4_5ForCausalLM", _LLAMA),
    "ernie4_5_moe": (
        "Ernie4_5_MoeForCausalLM",
        {**_LLAMA, "moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": 40},
    ),
    "exaone4": ("Exaone4ForCausalLM", {**_LLAMA, "sliding_window": 4}),
    "falcon": (
        "FalconForCausalLM",
        {**_SPECIAL, "vocab_size": VOCABULARY, "hidden_size": HIDDEN, "num_hidden_layers": 2}
        | {"num_attention_heads": HEADS, "multi_query": True, "new_decoder_architecture": False},
    ),
    "falcon+gqa": (
        "FalconForCausalLM",
        {**_SPECIAL, "vocab_size": VOCABULARY, "hidden_size": HIDDEN, "num_hidden_layers": 2, "num_kv_heads": 2}
        | {"num_attention_heads": HEADS, "new_decoder_architecture": True},
    ),
    "falcon_h1": (
        "FalconH1ForCausalLM",
        {**_LLAMA, "mamba_d_ssm": 64, "mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 12},
    ),
    "gemma": ("GemmaForCausalLM", _LLAMA),
    "gemma2": ("Gemma2ForCausalLM", {**_LLAMA, "sliding_window": 4}),
    "gemma3_text": ("Gemma3ForCausalLM", {**_LLAMA, "sliding_window": 4}),
    "glm": ("GlmForCausalLM", _LLAMA),
    "glm4": ("Glm4ForCausalLM", _LLAMA),
    "glm4_moe": (
        "Glm4MoeForCausalLM",
        {**_LLAMA, **_EXPERTS, "n_routed_experts": 4, "first_k_dense_replace": 1, "use_qk_norm": True},
    ),
    "gpt2": ("GPT2LMHeadModel", {**_GPT, "use_cache": False}),
    "gpt_bigcode": ("GPTBigCodeForCausalLM", {**_GPT, "use_cache": False, "multi_query": True}),
    "gpt_neo": (
        "GPTNeoForCausalLM",
        {
            **_BASE,
            "hidden_size": HIDDEN,
            "num_layers": 2,
            "num_heads": HEADS,
            "attention_types": [[["global", "local"], 1]],
        }
        | {"window_size": 4, "use_cache": False},
    ),
    "gpt_neox": ("GPTNeoXForCausalLM", {**_BERT, "use_cache": False}),
    "gpt_oss": ("GptOssForCausalLM", {**_LLAMA, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 4}),
    "gptj": ("GPTJForCausalLM", {**_GPT, "rotary_dim": 4, "use_cache": False}),
    "granite": ("GraniteForCausalLM", _LLAMA),
    "granitemoe": ("GraniteMoeForCausalLM", {**_LLAMA, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "helium": ("HeliumForCausalLM", _LLAMA),
    "hunyuan_v1_dense": ("HunYuanDenseV1ForCausalLM", _LLAMA),
    "jetmoe": (
        "JetMoeForCausalLM",
        {
            **_LLAMA,
            "kv_channels": HEAD_SIZE,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "num_key_value_heads": 3,
        },
    ),
    "lfm2": ("Lfm2ForCausalLM", {**_LLAMA, "layer_types": ["conv", "full_attention"], "block_multiple_of": 8}),
    "llama": ("LlamaForCausalLM", _LLAMA),
    "llama+eager": ("LlamaForCausalLM", {**_LLAMA, "attn_implementation": "eager"}),
    "llama+classify": ("LlamaForSequenceClassification", {**_LLAMA, "num_labels": 3}),
    "mamba": (
        "MambaForCausalLM",
        {
            **_SPECIAL,
            "vocab_size": VOCABULARY,
            "hidden_size": HIDDEN,
            "num_hidden_layers": 2,
            "state_size": 10,
            "time_step_rank": 3,
            "use_cache": False,
        },
    ),
    "mamba2": (
        "Mamba2ForCausalLM",
        {**_SPECIAL, "vocab_size": VOCABULARY, "hidden_size": HIDDEN, "num_hidden_layers": 2, "state_size": 10}
        | {"num_heads": 12, "head_dim": 8, "n_groups": 2, "chunk_size": 4, "use_cache": False},
    ),
    "mistral": ("MistralForCausalLM", {**_LLAMA, "sliding_window": 4}),
    "mixtral": ("MixtralForCausalLM", {**_LLAMA, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "mixtral+batched": (
        "MixtralForCausalLM",
        {**_LLAMA, "num_local_experts": 4, "num_experts_per_tok": 2, "experts_implementation": "batched_mm"},
    ),
    "mixtral+eager": (
        "MixtralForCausalLM",
        {**_LLAMA, "num_local_experts": 4, "num_experts_per_tok": 2, "experts_implementation": "eager"},
    ),
    "modernbert-decoder": ("ModernBertDecoderForCausalLM", {**_BERT, "use_cache": False, "local_attention": 4}),
    "mpt": (
        "MptForCausalLM",
        {**_SPECIAL, "vocab_size": VOCABULARY, "d_model": HIDDEN, "n_layers": 2, "n_heads": HEADS, "max_seq_len": 64},
    ),
    "nemotron": ("NemotronForCausalLM", _LLAMA),
    "olmo": ("OlmoForCausalLM", _LLAMA),
    "olmo2": ("Olmo2ForCausalLM", _LLAMA),
    "olmo3": ("Olmo3ForCausalLM", {**_LLAMA, "sliding_window": 4}),
    "olmoe": ("OlmoeForCausalLM", {**_LLAMA, "num_experts": 4, "num_experts_per_tok": 2}),
    "openai-gpt": ("OpenAIGPTLMHeadModel", _GPT),
    "opt": (
        "OPTForCausalLM",
        {
            **_BERT,
            "ffn_dim": FEED_FORWARD,
            "word_embed_proj_dim": 24,
            "do_layer_norm_before": False,
            "use_cache": False,
        },
    ),
    "persimmon": ("PersimmonForCausalLM", {**_LLAMA, "qk_layernorm": True}),
    "phi": ("PhiForCausalLM", {**_LLAMA, "partial_rotary_factor": 0.5, "qk_layernorm": True}),
    "phi3": ("Phi3ForCausalLM", {**_LLAMA, "partial_rotary_factor": 1.0}),
    "phimoe": ("PhimoeForCausalLM", {**_LLAMA, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen2": ("Qwen2ForCausalLM", _LLAMA),
    "qwen2_moe": (
        "Qwen2MoeForCausalLM",
        {**_LLAMA, **_EXPERTS, "num_experts": 4, "shared_expert_intermediate_size": 56},
    ),
    "qwen3": ("Qwen3ForCausalLM", {**_LLAMA, "head_dim": 10}),
    "qwen3+tied": ("Qwen3ForCausalLM", {**_LLAMA, "tie_word_embeddings": True}),
    "qwen3_moe": ("Qwen3MoeForCausalLM", {**_LLAMA, **_EXPERTS, "num_experts": 4}),
    "qwen3_next": (
        "Qwen3NextForCausalLM",
        {**_LLAMA, **_EXPERTS, **_HYBRID, "num_experts": 4, "shared_expert_intermediate_size": 56}
        | {"layer_types": ["linear_attention", "full_attention"]},
    ),
    "recurrent_gemma": (
        "RecurrentGemmaForCausalLM",
        {**_LLAMA, "num_hidden_layers": 3, "lru_width": HIDDEN, "attention_window_size": 8, "num_key_value_heads": 1},
    ),
    "rwkv": (
        "RwkvForCausalLM",
        {**_SPECIAL, "vocab_size": VOCABULARY, "hidden_size": HIDDEN, "num_hidden_layers": 2, "use_cache": False},
    ),
    "seed_oss": ("SeedOssForCausalLM", _LLAMA),
    "smollm3": ("SmolLM3ForCausalLM", {**_LLAMA, "no_rope_layers": [1, 0]}),
    "stablelm": ("StableLmForCausalLM", {**_LLAMA, "partial_rotary_factor": 0.5, "qk_layernorm": True}),
    "starcoder2": ("Starcoder2ForCausalLM", _LLAMA),
    "xglm": (
        "XGLMForCausalLM",
        {
            **_BASE,
            "d_model": HIDDEN,
            "num_layers": 2,
            "attention_heads": HEADS,
            "ffn_dim": FEED_FORWARD,
            "use_cache": False,
        },
    ),
}

_ENCODER_DECODERS: dict[str, tuple[str, Mapping[str, Any]]] = {
    "bart": ("BartForConditionalGeneration", _BART),
    "blenderbot": ("BlenderbotForConditionalGeneration", _BART),
    "led": ("LEDForConditionalGeneration", {**_BART, "attention_window": 4, "max_encoder_position_embeddings": 64}),
    "longt5": ("LongT5ForConditionalGeneration", {**_T5, "local_radius": 3}),
    "m2m_100": ("M2M100ForConditionalGeneration", _BART),
    "marian": ("MarianMTModel", {**_BART, "decoder_vocab_size": VOCABULARY}),
    "mbart": ("MBartForConditionalGeneration", _BART),
    "mt5": ("MT5ForConditionalGeneration", _T5),
    "nllb-moe": (
        "NllbMoeForConditionalGeneration",
        {**_BART, "num_experts": 4, "expert_capacity": 8, "encoder_sparse_step": 2, "decoder_sparse_step": 2},
    ),
    "pegasus": ("PegasusForConditionalGeneration", _BART),
    "pegasus_x": ("PegasusXForConditionalGeneration", {**_BART, "num_global_tokens": 3, "block_size": 4}),
    "plbart": ("PLBartForConditionalGeneration", _BART),
    "prophetnet": (
        "ProphetNetForConditionalGeneration",
        {
            **_BASE,
            "hidden_size": HIDDEN,
            "num_encoder_layers": 2,
            "num_decoder_layers": 2,
            "ngram": 2,
            "use_cache": False,
        }
        | {f"num_{side}_attention_heads": HEADS for side in ("encoder", "decoder")}
        | {f"{side}_ffn_dim": FEED_FORWARD for side in ("encoder", "decoder")},
    ),
    "switch_transformers": (
        "SwitchTransformersForConditionalGeneration",
        {**_T5, "num_experts": 4, "num_sparse_encoder_layers": 1, "num_sparse_decoder_layers": 1, "expert_capacity": 8},
    ),
    "t5": ("T5ForConditionalGeneration", _T5),
    "t5+gated": (
        "T5ForConditionalGeneration",
        {**_T5, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
    ),
    "umt5": ("UMT5ForConditionalGeneration", _T5),
}


def _ids() -> dict[str, Tensor]:
    return {"input_ids": token_ids()}


def _even_ids() -> dict[str, Tensor]:
    return {"input_ids": token_ids(8)}


def _masked_ids() -> dict[str, Tensor]:
    ids = token_ids()
    mask = ids.new_ones(ids.shape)
    mask[1, -2:] = 0
    return {"input_ids": ids, "attention_mask": mask}


def _both_ids() -> dict[str, Tensor]:
    return {"input_ids": token_ids(), "decoder_input_ids": token_ids(5)}


_INPUTS = {"bert": _masked_ids, "canine": lambda: {"input_ids": token_ids(32)}}
_INPUTS |= dict.fromkeys(("funnel", "longformer", "nystromformer", "mamba2"), _even_ids)


def text_models() -> list[ZooModel]:
    """Every text entry."""
    found = []
    for kind, table in (("encoder", _ENCODERS), ("decoder", _DECODERS)):
        for name, (class_name, config) in table.items():
            found.append(entry(name, kind, class_name, config, _INPUTS.get(name, _ids)))
    for name, (class_name, config) in _ENCODER_DECODERS.items():
        found.append(entry(name, "encoder-decoder", class_name, config, _both_ids))
    return found
