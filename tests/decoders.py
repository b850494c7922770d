"""A tiny config of every supported architecture, with and without a record, and of rejected ones.

The widths are those of `tests.tiny`, so that the same random texts fit. The ids of special tokens
do not occur in these texts.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import transformers as hf
from transformers import CONFIG_MAPPING

from hq.models.auto import model_class
from tests import tiny

Config = Callable[[], hf.PretrainedConfig]
_SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_SHAPE = {
    "vocab_size": tiny.VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": tiny.D_FF,
    "num_hidden_layers": tiny.LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 128,
    **_SPECIAL,
}
_WITHOUT_HEAD_DIM = {key: value for key, value in _SHAPE.items() if key != "head_dim"}
_GPT = {
    "vocab_size": tiny.VOCABULARY,
    "n_embd": 64,
    "n_layer": tiny.LAYERS,
    "n_head": 4,
    "n_inner": tiny.D_FF,
    "n_positions": 128,
    **_SPECIAL,
}
_LATENT = {
    "num_key_value_heads": 4,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "qk_head_dim": 16,
    "v_head_dim": 16,
}
_FEW_EXPERTS = {
    "n_routed_experts": 4,
    "n_group": 1,
    "topk_group": 1,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
}
_MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_n_groups": 1}
_PER_LAYER = {"hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": tiny.VOCABULARY}
_MROPE = {
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]}
}
_VISION = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
_QWEN_VISION = {
    "depth": 1,
    "hidden_size": 64,
    "embed_dim": 16,
    "num_heads": 2,
    "intermediate_size": 16,
    "out_hidden_size": 64,
    "mlp_ratio": 1,
}
_QWEN_TOKENS = {
    "image_token_id": 3,
    "video_token_id": 3,
    "vision_start_token_id": 3,
    "vision_end_token_id": 3,
}


def _of(model_type: str, shape: dict[str, Any] = _SHAPE, **changes: Any) -> Config:
    return lambda: CONFIG_MAPPING[model_type](**{**shape, **changes})


def _wrapper(model_type: str, text: Config | dict[str, Any], vision: Any, **changes: Any) -> Config:
    """A multimodal model around a language model."""
    return lambda: CONFIG_MAPPING[model_type](
        text_config=text() if callable(text) else text,
        vision_config=vision() if callable(vision) else vision,
        **changes,
    )


def _plain(*model_types: str) -> dict[str, Config]:
    return {model_type: _of(model_type) for model_type in model_types}


_LLAMA, _QWEN2 = _of("llama"), _of("qwen2", _WITHOUT_HEAD_DIM)
_SIGLIP = _of("siglip_vision_model", _VISION)

RECORDED: dict[str, Config] = {
    **_plain("apertus", "arcee", "cohere", "cohere2", "cwm", "ernie4_5", "exaone4", "gemma"),
    **_plain("gemma2", "gemma3_text", "glm", "glm4", "granite", "granite_swa", "helium"),
    **_plain("hunyuan_v1_dense", "hyperclovax", "internlm3", "llama", "ministral", "ministral3"),
    **_plain("mistral", "nanochat", "nemotron", "olmo3", "qwen3", "seed_oss", "smollm3"),
    **_plain("vaultgemma", "iquestcoder"),
    **{
        name: _of(name, _WITHOUT_HEAD_DIM)
        for name in (
            "bitnet",
            "diffllama",
            "gpt_neox",
            "jais2",
            "olmo",
            "olmo2",
            "persimmon",
            "phi",
            "phi3",
            "qwen2",
            "starcoder2",
            "biogpt",
        )
    },
    "minicpm3": _of("minicpm3", _WITHOUT_HEAD_DIM, **_LATENT),
    "youtu": _of("youtu", _WITHOUT_HEAD_DIM, **_LATENT),
    "bloom": _of(
        "bloom", {"vocab_size": tiny.VOCABULARY, **_SPECIAL}, hidden_size=64, n_layer=3, n_head=4
    ),
    "mpt": _of("mpt", {"vocab_size": tiny.VOCABULARY}, d_model=64, n_layers=3, n_heads=4),
    "gpt2": _of("gpt2", _GPT),
    "gpt_bigcode": _of("gpt_bigcode", _GPT),
    "gptj": _of("gptj", _GPT, rotary_dim=8),
    "codegen": _of("codegen", _GPT, rotary_dim=8),
    "gpt_neo": _of(
        "gpt_neo",
        {"vocab_size": tiny.VOCABULARY, **_SPECIAL},
        hidden_size=64,
        num_layers=4,
        num_heads=4,
        intermediate_size=tiny.D_FF,
        attention_types=[[["global", "local"], 2]],
        max_position_embeddings=128,
    ),
    "opt": _of("opt", _WITHOUT_HEAD_DIM, ffn_dim=tiny.D_FF, word_embed_proj_dim=64),
    "xglm": _of(
        "xglm",
        {"vocab_size": tiny.VOCABULARY, **_SPECIAL},
        d_model=64,
        ffn_dim=tiny.D_FF,
        num_layers=3,
        attention_heads=4,
        max_position_embeddings=128,
    ),
    # Wrappers around a language model that has a record
    "mistral3": _wrapper("mistral3", _of("mistral"), _of("pixtral", _VISION), image_token_index=3),
    "llava": _wrapper("llava", _LLAMA, _of("clip_vision_model", _VISION), image_token_index=3),
    "smolvlm": _wrapper("smolvlm", _LLAMA, _VISION, image_token_id=3),
    "idefics3": _wrapper("idefics3", _LLAMA, _VISION, image_token_id=3),
    "internvl": _wrapper(
        "internvl",
        _QWEN2,
        _VISION | {"image_size": [28, 28], "patch_size": [14, 14]},
        image_token_id=3,
    ),
    "paligemma2": _wrapper(
        "paligemma", _of("gemma2"), _SIGLIP, image_token_index=3, projection_dim=64
    ),
    "aya_vision": _wrapper("aya_vision", _of("cohere2"), _SIGLIP, image_token_index=3),
    "gemma3": _wrapper("gemma3", _SHAPE, _VISION),
    "qwen2_vl": _wrapper("qwen2_vl", _WITHOUT_HEAD_DIM | _MROPE, _QWEN_VISION, **_QWEN_TOKENS),
    "qwen2_5_vl": _wrapper("qwen2_5_vl", _WITHOUT_HEAD_DIM | _MROPE, _QWEN_VISION, **_QWEN_TOKENS),
    "qwen3_vl": _wrapper(
        "qwen3_vl",
        _SHAPE | _MROPE,
        _QWEN_VISION
        | {"hidden_size": 16, "num_position_embeddings": 16, "deepstack_visual_indexes": [0]},
        **_QWEN_TOKENS,
    ),
}

DETECTED: dict[str, Config] = {
    "deepseek_v2": _of("deepseek_v2", _WITHOUT_HEAD_DIM, **_LATENT, first_k_dense_replace=3),
    "deepseek_v3": _of("deepseek_v3", _WITHOUT_HEAD_DIM, **_LATENT, first_k_dense_replace=3),
    "doge": _of("doge", _WITHOUT_HEAD_DIM),
    "falcon": _of("falcon", _WITHOUT_HEAD_DIM, ffn_hidden_size=tiny.D_FF),
    "falcon-alibi": _of("falcon", _WITHOUT_HEAD_DIM, ffn_hidden_size=tiny.D_FF, alibi=True),
    "falcon-40b": _of(
        "falcon",
        _WITHOUT_HEAD_DIM,
        ffn_hidden_size=tiny.D_FF,
        new_decoder_architecture=True,
        num_kv_heads=2,
    ),
    "gemma3n_text": _of(
        "gemma3n_text",
        num_hidden_layers=4,
        intermediate_size=[tiny.D_FF] * 4,
        layer_types=["sliding_attention", "full_attention"] * 2,
        num_kv_shared_layers=2,
        laurel_rank=8,
        altup_num_inputs=2,
        activation_sparsity_pattern=[0.0] * 4,
        **_PER_LAYER,
    ),
    "gemma4_text": _of(
        "gemma4_text",
        global_head_dim=16,
        num_kv_shared_layers=0,
        hidden_size_per_layer_input=0,
    ),
    "gpt_neox_japanese": _of(
        "gpt_neox_japanese",
        {k: v for k, v in _WITHOUT_HEAD_DIM.items() if k != "intermediate_size"},
        intermediate_multiple_size=2,
    ),
    "granitemoehybrid": _of(
        "granitemoehybrid",
        _WITHOUT_HEAD_DIM,
        num_local_experts=0,
        shared_intermediate_size=tiny.D_FF,
        layer_types=["attention"] * 3,
        position_embedding_type="rope",
    ),
    "llama4_text": _of("llama4_text", intermediate_size_mlp=tiny.D_FF, moe_layers=[]),
    "stablelm": _of("stablelm", _WITHOUT_HEAD_DIM),
    "stablelm-parallel": _of("stablelm", _WITHOUT_HEAD_DIM, use_parallel_residual=True),
}

# Mixtures of experts, all with a record.
MIXTURES: dict[str, Config] = dict(tiny.MIXTURES)

# Model types without identifiable neurons, with words of the error message.
REJECTED: dict[str, tuple[Config, str]] = {
    "deepseek_v3": (
        _of("deepseek_v3", _WITHOUT_HEAD_DIM, **_LATENT, **_FEW_EXPERTS, first_k_dense_replace=1),
        "mixture of experts",
    ),
    "llama4_text": (_of("llama4_text", num_local_experts=2), "mixture of experts"),
    "mamba": (_of("mamba", state_size=8), "carry a state"),
    "falcon_h1": (_of("falcon_h1", mamba_d_ssm=128, **_MAMBA), "carry a state"),
    "bamba": (_of("bamba", **_MAMBA, attn_layer_indices=[1]), "carry a state"),
    "lfm2": (_of("lfm2", layer_types=["conv", "full_attention", "conv"]), "carry a state"),
    "qwen3_5_text": (
        _of("qwen3_5_text", layer_types=["linear_attention"] * 2 + ["full_attention"]),
        "carry a state",
    ),
}

# Layers of 128, 128, 256 and 256 neurons.
RAGGED: dict[str, Config] = {
    "gemma4_text": _of(
        "gemma4_text",
        num_hidden_layers=4,
        global_head_dim=16,
        layer_types=["sliding_attention", "full_attention"] * 2,
        num_kv_shared_layers=2,
        use_double_wide_mlp=True,
        **_PER_LAYER,
    ),
    "gemma3n_text": _of(
        "gemma3n_text",
        num_hidden_layers=4,
        intermediate_size=[128, 128, 256, 256],
        layer_types=["sliding_attention", "full_attention"] * 2,
        num_kv_shared_layers=2,
        activation_sparsity_pattern=[0.0] * 4,
        **_PER_LAYER,
    ),
}


def model(config: hf.PretrainedConfig, seed: int = 0) -> Any:
    """A random model with FP16 values as FP32 weights, as `tests.tiny.model` makes it."""
    return tiny.randomized(model_class(config)._from_config(config).eval(), seed)


def save(config: hf.PretrainedConfig, folder: Path) -> Path:
    """An FP16 checkpoint of it in `folder`."""
    model(config).half().save_pretrained(folder)
    return folder
