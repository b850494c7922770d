"""A PEFT folder for transformers, vLLM and whatever else reads PEFT's layout.

ΔW_down = (α₀ − 1)·W_down[:, H]·Eᵀ: A, one-hot, takes (α₀ − 1)·h_H out of h, and B holds the
checkpoint's own columns. What a neuron writes is linear in h_i in every family: with a gate or
without one, fused with it, biased or not. What it reads is not, so rows of the up projection would
need an exception for each of these, and GELU without a gate would have no adapter at all.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors.torch import save
from torch import Tensor

from hq.errors import HQError
from hq.models.architectures import Architecture, down_projections
from hq.models.auto import without_weights
from hq.models.checkpoint import architecture_at, quantization_of, text_config, whole_config
from hq.models.ffn_weights import weights_of
from hq.neurons.neuron_set import ModelIdentity
from hq.storage.atomic import atomic_folder
from hq.suppress.lora.delta import LoraDelta, lora_deltas

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
_EXPERTS_TO_PEFT = ("deepseek_v2", "deepseek_v3")  # PEFT converts every mlp.down_proj of these


def write(
    checkpoint: Path, model: ModelIdentity, factors: Mapping[tuple[int, int], float], into: Path
) -> None:
    """Writes the adapter that, at scale 1, makes h_i of each (layer, index) its α₀·h_i.

    The folder `into` appears when it is whole. Raises HQError for what `lora_deltas` refuses, a
    family that hq does not know, a quantized checkpoint, and one that lacks a weight.
    """
    found = lora_deltas(factors, model.space)
    require_dense(checkpoint)
    model_type = text_config(checkpoint).model_type
    if model_type in _EXPERTS_TO_PEFT:
        raise HQError(
            f"{checkpoint} is a {model_type} model, whose down projections PEFT takes for those of "
            "experts, so that it cannot load an adapter of them: use `hq bake`."
        )
    family = architecture_at(checkpoint)
    names = _projections(checkpoint, family)
    read = weights_of(checkpoint, family)
    tensors: dict[str, Tensor] = {}
    for change in found:
        columns = _columns(read(change.layer, family.down), family, change)
        prefix = f"base_model.model.{names[change.layer]}"
        width = model.space.widths[change.layer]
        tensors[f"{prefix}.lora_A.weight"] = torch.from_numpy(change.one_hot(width))
        tensors[f"{prefix}.lora_B.weight"] = columns
    said = _config(checkpoint, family, {names[c.layer]: c.rank for c in found})
    weights = save(tensors, {"format": "pt", "hq.source.fingerprint": model.fingerprint})
    with atomic_folder(into) as draft:
        (draft / CONFIG_FILE).write_bytes(json.dumps(said, indent=2).encode())
        (draft / WEIGHTS_FILE).write_bytes(weights)


def require_dense(checkpoint: Path) -> None:
    """Raises HQError for a quantized checkpoint."""
    if quantization_of(checkpoint) is not None:
        raise HQError(
            f"{checkpoint} is quantized, and a PEFT adapter is exact on dense weights only: name "
            "the checkpoint that it was made from, or use `hq bake`."
        )


def _projections(checkpoint: Path, family: Architecture) -> list[str]:
    """The name of each layer's down projection in transformers' model, made without its weights.

    A checkpoint may give its tensors other names.
    """
    model: Any = without_weights(whole_config(checkpoint))
    names = {module: name for name, module in model.named_modules()}
    return [names[down] for down in down_projections(model.get_decoder(), family)]


def _columns(
    stored: Float[Tensor, "rows columns"], family: Architecture, change: LoraDelta
) -> Float[Tensor, "d_model rank"]:
    down = stored.T if family.transposed else stored
    return down[:, list(change.neurons)].contiguous()


def _config(checkpoint: Path, family: Architecture, ranks: dict[str, int]) -> dict[str, Any]:
    """What PEFT asks for. lora_alpha is the rank, by which it is divided, so the scale is 1."""
    rank = max(ranks.values())
    lower = {name: of for name, of in ranks.items() if of != rank}
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": str(checkpoint),
        "inference_mode": True,
        "target_modules": list(ranks),
        "r": rank,
        "lora_alpha": rank,
        "rank_pattern": lower,
        "alpha_pattern": lower,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": family.transposed,
    }
