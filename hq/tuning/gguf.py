"""The LoRA as a GGUF adapter, for stock llama.cpp."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from hq.gguf.write import gguf_package
from hq.models.architectures import Architecture
from hq.storage.atomic import atomic_file
from hq.tuning.adapter import deltas


def write_gguf_lora(
    architecture: str, name: str, family: Architecture, adapter: Mapping[str, Tensor], into: Path
) -> None:
    """Write A and B in float32, for GGUF files of the checkpoint that the LoRA was trained on.

    `architecture` is llama.cpp's name, and `name` that of the checkpoint. Projections of the FFN
    have the same layout in both formats. `into` appears when it is complete. Raises HQError if the
    package gguf is missing.
    """
    package = gguf_package()
    keys = package.Keys
    parts = list(deltas(adapter))
    with atomic_file(into) as path:
        writer = package.GGUFWriter(path, architecture)
        try:
            writer.add_type(package.GGUFType.ADAPTER)
            writer.add_string(keys.Adapter.TYPE, "lora")
            writer.add_float32(keys.Adapter.LORA_ALPHA, float(len(parts[0][1])))
            writer.add_name(f"{name} tuned")
            writer.add_base_model_count(1)
            writer.add_base_model_name(0, name)
            for target, a, b in parts:
                tensor = _name(target, family)
                writer.add_tensor(f"{tensor}.lora_a", a.contiguous().numpy())
                writer.add_tensor(f"{tensor}.lora_b", b.contiguous().numpy())
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
        finally:
            writer.close()


def _name(target: str, family: Architecture) -> str:
    """llama.cpp's name of a target's weight."""
    inside = target[target.rindex(f"{family.layers}.") + len(family.layers) + 1 :]
    layer, _, path = inside.partition(".")
    parts = {family.down: "ffn_down", family.up: "ffn_up", family.gate: "ffn_gate"}
    return f"blk.{layer}.{parts[path]}.weight"
