"""A PEFT folder for transformers, vLLM and other software that reads PEFT's layout.

ΔW_down = (α₀ − 1)·W_down[:, H]·Eᵀ: A, one-hot, selects (α₀ − 1)·h_H from h, and B has the columns
of the checkpoint. The output of a neuron is linear in h_i in every family: with a gate or without,
fused or not, with a bias or not. In rows of the up projection h_i is not always linear; GELU
without a gate would have no adapter.
"""

import json
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from hq.errors import HQError
from hq.models.architectures import Architecture, down_projections
from hq.models.auto import without_weights
from hq.models.checkpoint import architecture_at, quantization_of, text_config, whole_config
from hq.models.ffn_weights import weights_of
from hq.neurons.factors import Factors
from hq.neurons.neuron_set import ModelIdentity
from hq.storage.atomic import atomic_folder
from hq.storage.safetensors_bytes import safetensors_bytes
from hq.suppress.lora.delta import LoraDelta, lora_deltas

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
_EXPERTS_TO_PEFT = ("deepseek_v2", "deepseek_v3")  # PEFT converts each mlp.down_proj as experts


def write_peft_adapter(
    checkpoint: Path, model: ModelIdentity, factors: Factors, into: Path
) -> None:
    """Write the adapter that multiplies h_i of each (layer, index) by α₀ at scale 1.

    The folder `into` appears when it is complete. Raises HQError if `lora_deltas` does, for a
    family that hq does not know, and for a checkpoint that is quantized or lacks a weight.
    """
    deltas = lora_deltas(factors, model.space)
    require_dense_base(checkpoint)
    model_type = text_config(checkpoint).model_type
    if model_type in _EXPERTS_TO_PEFT:
        raise HQError(
            f"{checkpoint} is a {model_type} model, of which PEFT treats down projections as "
            "experts, so it cannot load an adapter of them: use `hq bake`."
        )
    family = architecture_at(checkpoint)
    names = _projections(checkpoint, family)
    read = weights_of(checkpoint, family)
    tensors: dict[str, Tensor] = {}
    for delta in deltas:
        columns = _columns(read(delta.layer, family.down), family, delta)
        prefix = f"base_model.model.{names[delta.layer]}"
        width = model.space.widths[delta.layer]
        tensors[f"{prefix}.lora_A.weight"] = torch.from_numpy(delta.one_hot(width))
        tensors[f"{prefix}.lora_B.weight"] = columns
    config = _config(checkpoint, family, {names[d.layer]: d.rank for d in deltas})
    metadata = {"format": "pt", "hq.source.fingerprint": model.fingerprint}
    weights = safetensors_bytes(tensors, metadata)
    with atomic_folder(into) as draft:
        (draft / CONFIG_FILE).write_bytes(json.dumps(config, indent=2).encode())
        (draft / WEIGHTS_FILE).write_bytes(weights)


def require_dense_base(checkpoint: Path) -> None:
    """Raises HQError for a quantized checkpoint."""
    if quantization_of(checkpoint) is not None:
        raise HQError(
            f"{checkpoint} is quantized, and a PEFT adapter is exact on dense weights only: name "
            "its source checkpoint, or use `hq bake`."
        )


def _projections(checkpoint: Path, family: Architecture) -> list[str]:
    """The name of each layer's down projection in the transformers model, built without weights.

    The tensors of a checkpoint may have other names.
    """
    model: Any = without_weights(whole_config(checkpoint))
    names = {module: name for name, module in model.named_modules()}
    return [names[down] for down in down_projections(model.get_decoder(), family)]


def _columns(
    stored: Float[Tensor, "rows columns"], family: Architecture, delta: LoraDelta
) -> Float[Tensor, "d_model rank"]:
    down = stored.T if family.transposed else stored
    return down[:, list(delta.neurons)].contiguous()


def _config(checkpoint: Path, family: Architecture, ranks: dict[str, int]) -> dict[str, Any]:
    """The config that PEFT reads; lora_alpha equals the rank, so their ratio, the scale, is 1."""
    rank = max(ranks.values())
    lower = {name: own for name, own in ranks.items() if own != rank}
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
