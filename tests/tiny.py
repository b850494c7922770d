"""Tiny random models, one of each family: seeded, and saved as the FP16 checkpoints that hq reads.

Every weight is random, biases and norms too, so that nothing is right by being zero or one. Widths
are multiples of 64, bitsandbytes' block. Windows are shorter than the texts, so that they matter.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import transformers as hf

from hq.gguf.quantize import quantize
from hq.gguf.write import write_gguf
from hq.models.checkpoint import checkpoint_identity
from hq.neurons.prompt_response import PromptResponse
from tests import tiny_tokenizers

VOCABULARY = 128
LAYERS = 3
D_FF = 128

_SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": D_FF,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
_GEMMA = _SHAPE | {"head_dim": 16, "sliding_window": 8}
_VISION = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}

FAMILIES: dict[str, Callable[[], hf.PretrainedConfig]] = {
    "llama": lambda: hf.LlamaConfig(**_SHAPE),
    "mistral": lambda: hf.MistralConfig(**_SHAPE, sliding_window=8),
    "qwen2": lambda: hf.Qwen2Config(**_SHAPE),
    "qwen3": lambda: hf.Qwen3Config(**_SHAPE, head_dim=16),
    "gemma2": lambda: hf.Gemma2Config(**_GEMMA),
    "gemma3_text": lambda: hf.Gemma3TextConfig(**_GEMMA),
    "gemma3": lambda: hf.Gemma3Config(text_config=_GEMMA, vision_config=_VISION),
    "phi3": lambda: hf.Phi3Config(**_SHAPE, pad_token_id=0),
    "gpt2": lambda: hf.GPT2Config(
        vocab_size=VOCABULARY, n_embd=64, n_layer=LAYERS, n_head=4, n_positions=128, n_inner=D_FF
    ),
    "opt": lambda: hf.OPTConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        word_embed_proj_dim=64,
        ffn_dim=D_FF,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        max_position_embeddings=128,
    ),
}

# Llamas whose heads fill the blocks of a quantized K-V cache; llama.cpp rotates heads of 64.
WIDE_HEADS = {
    f"llama-{width}": partial(hf.LlamaConfig, **_SHAPE, head_dim=width) for width in (32, 64)
}

# Mixtures of experts, whose layers have D_FF neurons in all.
_MIXTURE = {"num_hidden_layers": LAYERS, "num_experts_per_tok": 2, "pad_token_id": 0}
_EXPERTS = {"eos_token_id": 1, **_SHAPE, **_MIXTURE, "num_experts": 4}
MIXTURES: dict[str, Callable[[], hf.PretrainedConfig]] = {
    "mixtral": lambda: hf.MixtralConfig(
        **_SHAPE | _MIXTURE | {"intermediate_size": D_FF // 4}, num_local_experts=4
    ),
    "qwen2_moe": lambda: hf.Qwen2MoeConfig(
        **_EXPERTS | {"num_experts": 3},
        moe_intermediate_size=D_FF // 4,
        shared_expert_intermediate_size=D_FF // 4,
        mlp_only_layers=[1],
    ),
    "qwen3_moe": lambda: hf.Qwen3MoeConfig(
        **_EXPERTS, moe_intermediate_size=D_FF // 4, head_dim=16, norm_topk_prob=True
    ),
    "olmoe": lambda: hf.OlmoeConfig(
        **_EXPERTS | {"intermediate_size": D_FF // 4, "num_key_value_heads": 4}
    ),
    "gpt_oss": lambda: hf.GptOssConfig(
        **_EXPERTS | {"intermediate_size": D_FF // 4},
        num_local_experts=4,
        head_dim=16,
        sliding_window=8,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        rope_parameters={"rope_type": "default", "rope_theta": 1e4},
    ),
}

# Those that llama.cpp runs, which has no dense layers in Qwen2-MoE.
MIXTURES_IN_LLAMACPP: dict[str, Callable[[], hf.PretrainedConfig]] = {
    **{name: MIXTURES[name] for name in ("mixtral", "qwen3_moe", "olmoe")},
    "qwen2_moe-every": lambda: hf.Qwen2MoeConfig(
        **_EXPERTS | {"num_experts": 3},
        moe_intermediate_size=D_FF // 4,
        shared_expert_intermediate_size=D_FF // 4,
    ),
}


def model(family: str, seed: int = 0, **changes: int) -> hf.PreTrainedModel:
    """A random model whose weights are FP16 values, held in FP32; `changes` are of its config."""
    config = (FAMILIES | WIDE_HEADS | MIXTURES | MIXTURES_IN_LLAMACPP)[family]()
    config.update(changes)
    return randomized(hf.AutoModelForCausalLM.from_config(config).eval(), seed)


def randomized(made: hf.PreTrainedModel, seed: int) -> hf.PreTrainedModel:
    """The model with every weight random, an FP16 value."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in made.parameters():
            centre = 1.0 if parameter.ndim == 1 and parameter.mean() > 0.5 else 0.0
            noise = 0.15 * torch.randn(parameter.shape, generator=generator)
            parameter.copy_((centre + noise).half())
    return made


def save(family: str, folder: Path, seed: int = 0) -> Path:
    """An FP16 checkpoint of it in `folder`."""
    model(family, seed).half().save_pretrained(folder)
    return folder


def save_gguf(family: str, path: Path, kind: str) -> Path:
    """The same model as a GGUF file; a sliding window, which llama.cpp may lack, is left out."""
    folder = path.with_suffix("")
    save(family, folder)
    if family == "mistral":
        config = folder / "config.json"
        config.write_text(
            config.read_text(encoding="utf-8").replace(
                '"sliding_window": 8', '"sliding_window": null'
            ),
            encoding="utf-8",
        )
    tiny_tokenizers.byte_level(VOCABULARY, every_byte=False).save_pretrained(folder)
    dense = kind if kind in ("f32", "f16") else "f16"
    whole = path.with_name(f"{family}-{dense}.gguf")
    if not whole.exists():
        write_gguf(folder, whole, dense, checkpoint_identity(folder))
    if kind != dense:
        quantize(whole, path, kind)
    return path


def exchanges(count: int = 6, shared: int = 5, seed: int = 0) -> list[PromptResponse]:
    """Random exchanges of mixed lengths whose prompts begin with the same `shared` tokens."""
    generator = torch.Generator().manual_seed(seed)

    def draw(low: int, high: int) -> tuple[int, ...]:
        length = int(torch.randint(low, high, (1,), generator=generator))
        return tuple(torch.randint(5, VOCABULARY, (length,), generator=generator).tolist())

    prefix = draw(shared, shared + 1)
    # Each prompt goes on with a token of its own, so that exactly `shared` tokens are shared.
    return [PromptResponse((*prefix, 5 + i, *draw(2, 9)), draw(1, 7)) for i in range(count)]
