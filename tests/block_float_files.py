"""Tiny checkpoints of FP8, NVFP4 and MXFP4, made here by the formats' definitions."""

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

COMPRESSED = {
    "quant_method": "compressed-tensors",
    "quantization_status": "compressed",
    "ignore": ["lm_head"],
    "kv_cache_scheme": None,
    "sparsity_config": {},
    "transform_config": {},
}
DYNAMIC = {"num_bits": 8, "type": "float", "strategy": "token", "dynamic": True, "symmetric": True}


@dataclass(frozen=True)
class Blocks:
    """How a tiny checkpoint is stored."""

    precision: str
    config: dict[str, Any]
    block: tuple[int, int]  # 0: the whole dimension
    scale: str = "weight_scale"
    scale_dtype: torch.dtype = torch.float32

    def size(self, weight: Tensor) -> tuple[int, int]:
        """Outputs and inputs that share a scale."""
        rows, columns = (b or s for b, s in zip(self.block, weight.shape, strict=True))
        return rows, columns


def compressed(format: str, activations: object = None, **weights: object) -> dict[str, Any]:
    """A config of compressed-tensors with one scheme."""
    stated = {"symmetric": True, "dynamic": False} | weights
    group = {"targets": ["Linear"], "weights": stated, "input_activations": activations}
    return COMPRESSED | {"format": format, "config_groups": {"group_0": group}}


def fp8(strategy: str, activations: object = None, **weights: object) -> dict[str, Any]:
    """A config of compressed-tensors with FP8 weights; W8A16 has a format of its own."""
    name = "float-quantized" if activations else "naive-quantized"
    return compressed(name, activations, num_bits=8, type="float", strategy=strategy, **weights)


def fine_grained(block: list[int] | None, **more: object) -> dict[str, Any]:
    """A config of DeepSeek-V3 and Qwen3-FP8."""
    return {
        "quant_method": "fp8",
        "fmt": "e4m3",
        "activation_scheme": "dynamic",
        "weight_block_size": block,
    } | more


KINDS = {
    "fp8-tensor": Blocks("fp8", fp8("tensor"), (0, 0), scale_dtype=torch.bfloat16),
    "fp8-channel": Blocks("fp8", fp8("channel", DYNAMIC), (1, 0)),
    "fp8-block": Blocks("fp8", fp8("block", block_structure=[32, 64]), (32, 64)),
    "fp8-incomplete-blocks": Blocks("fp8", fp8("block", block_structure=[48, 40]), (48, 40)),
    "fine-grained": Blocks("fp8", fine_grained([32, 32]), (32, 32), "weight_scale_inv"),
    "fine-grained-tensor": Blocks("fp8", fine_grained(None), (0, 0), "weight_scale_inv"),
    "nvfp4": Blocks(
        "nvfp4",
        compressed(
            "nvfp4-pack-quantized",
            num_bits=4,
            type="float",
            strategy="tensor_group",
            group_size=16,
        ),
        (1, 16),
    ),
    "mxfp4": Blocks(
        "mxfp4",
        compressed(
            "mxfp4-pack-quantized", num_bits=4, type="float", strategy="group", group_size=32
        ),
        (1, 32),
    ),
}


def e4m3(byte: int) -> float:
    """The number that a float8_e4m3fn byte represents, by its definition."""
    sign, exponent, mantissa = -1 if byte >> 7 else 1, byte >> 3 & 15, byte & 7
    if exponent == 15 and mantissa == 7:
        return float("nan")
    if exponent == 0:
        return sign * mantissa / 8 * 2.0**-6
    return float(sign * (1 + mantissa / 8) * 2.0 ** (exponent - 7))


E4M3 = torch.tensor([e4m3(byte) for byte in range(256)], dtype=torch.float64)
E2M1 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6], dtype=torch.float64)
E2M1 = torch.cat([E2M1, -E2M1])


def tiles(weight: Tensor, size: tuple[int, int]) -> Iterator[tuple[int, int, Tensor]]:
    """Each block and its place in the grid; the last ones may be smaller."""
    for i, rows in enumerate(weight.split(size[0])):
        for j, block in enumerate(rows.split(size[1], 1)):
            yield i, j, block


def tensors(weight: Tensor, kind: Blocks) -> tuple[dict[str, Tensor], Tensor]:
    """A projection's tensors, and the float32 weight that they represent."""
    weight, size = weight.double(), kind.size(weight)
    grid = [-(-s // b) for s, b in zip(weight.shape, size, strict=True)]
    largest = torch.zeros(grid, dtype=torch.float64)
    for i, j, block in tiles(weight, size):
        largest[i, j] = block.abs().max() or 1
    parts: dict[str, Tensor] = {}
    if kind.precision == "fp8":
        stored = (largest / 448).to(kind.scale_dtype)
        scales = stored.float()
        parts[kind.scale] = stored if kind.block != (0, 0) else stored.reshape(1)
    elif kind.precision == "nvfp4":
        whole = (6 * 448 / weight.abs().max()).float().reshape(1)
        stored = (largest / 6 * whole).to(torch.float8_e4m3fn)
        scales = E4M3[stored.view(torch.uint8).long()].float() / whole
        parts |= {"weight_scale": stored, "weight_global_scale": whole}
    else:
        exponents = (largest / 6).log2().ceil()
        scales = (2.0**exponents).float()
        parts["weight_scale"] = (exponents + 127).to(torch.uint8)
    codes = torch.empty(weight.shape, dtype=torch.uint8)
    dense = torch.empty(weight.shape)
    table = E4M3 if kind.precision == "fp8" else E2M1
    for i, j, block in tiles(weight, size):
        places = slice(i * size[0], (i + 1) * size[0]), slice(j * size[1], (j + 1) * size[1])
        scaled = (block / scales[i, j]).float()
        if kind.precision == "fp8":
            codes[places] = scaled.clamp(-448, 448).to(torch.float8_e4m3fn).view(torch.uint8)
        else:
            codes[places] = (scaled[..., None] - table).abs().argmin(-1).to(torch.uint8)
        dense[places] = table[codes[places].long()].float() * scales[i, j]
    if kind.precision == "fp8":
        parts["weight"] = codes.view(torch.float8_e4m3fn)
    else:
        parts["weight_packed"] = codes[:, ::2] | codes[:, 1::2] << 4
    return parts, dense


def save(source: Path, folder: Path, kind: Blocks) -> dict[str, Tensor]:
    """Write a dense checkpoint in this format; return the weight of each projection."""
    shutil.copytree(source, folder)
    state, dense = {}, {}
    for name, tensor in load_file(source / "model.safetensors").items():
        if "layers" in name and tensor.ndim == 2:
            module = name.removesuffix(".weight")
            parts, dense[module] = tensors(tensor, kind)
            state |= {f"{module}.{part}": value.contiguous() for part, value in parts.items()}
        else:
            state[name] = tensor
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    edit_config(folder, lambda config: config.update(quantization_config=kind.config))
    return dense


def edit_config(folder: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    """Change config.json in place."""
    file = folder / "config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    edit(config)
    file.write_text(json.dumps(config), encoding="utf-8")


def edit_tensors(folder: Path, edit: Callable[[dict[str, Tensor]], object]) -> None:
    """Change the tensors of a checkpoint in place."""
    file = folder / "model.safetensors"
    state = dict(load_file(file))
    edit(state)
    save_file(state, file, metadata={"format": "pt"})
