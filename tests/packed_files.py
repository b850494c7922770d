"""Tiny packed checkpoints, packed here by the formats' definition, code by code."""

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests import tiny, tiny_tokenizers

AWQ_NIBBLES = (0, 2, 4, 6, 1, 3, 5, 7)  # which column each nibble of a word holds


@dataclass(frozen=True)
class Packing:
    """How a tiny checkpoint is packed."""

    method: str = "gptq"
    bits: int = 4
    group: int = 64
    sym: bool = True
    desc_act: bool = False
    format: str = "gptq"

    @property
    def config(self) -> dict[str, object]:
        """As config.json states it."""
        if self.method == "awq":
            return {
                "quant_method": "awq",
                "bits": self.bits,
                "group_size": self.group,
                "zero_point": True,
                "version": "gemm",
            }
        if self.method == "compressed-tensors":
            return {
                "quant_method": "compressed-tensors",
                "format": "pack-quantized",
                "quantization_status": "compressed",
                "ignore": ["lm_head"],
                "kv_cache_scheme": None,
                "sparsity_config": {},
                "transform_config": {},
                "config_groups": {
                    "group_0": {
                        "targets": ["Linear"],
                        "input_activations": None,
                        "output_activations": None,
                        "weights": {
                            "num_bits": self.bits,
                            "type": "int",
                            "symmetric": self.sym,
                            "strategy": "group",
                            "group_size": self.group,
                            "dynamic": False,
                            "actorder": None,
                        },
                    }
                },
            }
        return {
            "quant_method": "gptq",
            "bits": self.bits,
            "group_size": self.group,
            "sym": self.sym,
            "desc_act": self.desc_act,
            "checkpoint_format": self.format,
            # The library reads asymmetric ones of format v1 only if it wrote them itself.
            "meta": {"quantizer": ["gptqmodel:7.6.0"]},
        }


PACKINGS = {
    "gptq-4": Packing(),
    "gptq-8": Packing(bits=8),
    "gptq-3": Packing(bits=3),
    "awq-4": Packing(method="awq", sym=False, format="gemm"),
    "compressed-4": Packing(method="compressed-tensors"),
    "compressed-8": Packing(method="compressed-tensors", bits=8),
}
MADE = [name for name in PACKINGS if not name.startswith("compressed")]  # by gptqmodel

ASYMMETRIC = [
    Packing(bits=bits, sym=False, desc_act=desc_act, format=format)
    for bits in (2, 3, 4, 8)
    for desc_act in (False, True)
    for format in ("gptq", "gptq_v2")
]


def stream(codes: list[int], bits: int) -> list[int]:
    """Codes, lowest bits first, as signed 32-bit words."""
    whole = sum(code << bits * place for place, code in enumerate(codes))
    words = [whole >> 32 * i & 0xFFFFFFFF for i in range(len(codes) * bits // 32)]
    return [signed(word) for word in words]


def signed(word: int) -> int:
    """As int32 holds it."""
    word &= 0xFFFFFFFF
    return word - (1 << 32) if word >> 31 else word


def quantized(
    weight: Tensor, packing: Packing, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Codes [d_in, d_out], zero points and FP16 scales [group, d_out], group of each input."""
    d_in, top = weight.shape[1], (1 << packing.bits) - 1
    order = torch.arange(d_in)
    if packing.desc_act:
        order = torch.randperm(d_in, generator=torch.Generator().manual_seed(seed))
    groups = d_in // packing.group
    g_idx = torch.empty(d_in, dtype=torch.int32)
    g_idx[order] = torch.arange(d_in, dtype=torch.int32) // packing.group
    codes = torch.empty(d_in, weight.shape[0], dtype=torch.int64)
    zeros = torch.empty(groups, weight.shape[0], dtype=torch.int64)
    scales = torch.empty(groups, weight.shape[0], dtype=torch.float16)
    for g in range(groups):
        part = weight[:, g_idx == g].float()
        low, high = part.amin(1).clamp(max=0), part.amax(1).clamp(min=0)
        if packing.sym:
            high = torch.maximum(high, -low)
            low = -high
        scales[g] = ((high - low) / top).half()
        zeros[g] = (
            (top + 1) // 2 if packing.sym else (-low / scales[g].float()).round().clamp(0, top)
        )
        codes[g_idx == g] = (
            (part / scales[g].float()[:, None] + zeros[g][:, None]).round().clamp(0, top).long().T
        )
    return codes, zeros, scales, g_idx


def tensors(weight: Tensor, packing: Packing) -> tuple[dict[str, Tensor], Tensor]:
    """A projection's packed tensors, and the weight that they stand for."""
    codes, zeros, scales, g_idx = quantized(weight, packing)
    dense = (scales.float()[g_idx.long()] * (codes - zeros[g_idx.long()])).T.contiguous()
    if packing.method == "awq":
        return {"qweight": awq_words(codes), "qzeros": awq_words(zeros), "scales": scales}, dense
    if packing.method == "compressed-tensors":
        return compressed(codes, zeros, scales, packing), dense
    qweight = torch.tensor([stream(column.tolist(), packing.bits) for column in codes.T]).T
    return {
        "qweight": qweight.int().contiguous(),
        "qzeros": zero_words(zeros, packing),
        "scales": scales,
        "g_idx": g_idx,
    }, dense


def compressed(codes: Tensor, zeros: Tensor, scales: Tensor, packing: Packing) -> dict[str, Tensor]:
    """Outputs as rows; zero points, where there are any, packed along the outputs."""
    packed = torch.tensor([stream(row.tolist(), packing.bits) for row in codes.T])
    parts = {
        "weight_packed": packed.int(),
        "weight_scale": scales.T.contiguous(),
        "weight_shape": torch.tensor(codes.T.shape),
    }
    if not packing.sym:
        words = torch.tensor([stream(row.tolist(), packing.bits) for row in zeros]).T
        parts["weight_zero_point"] = words.int().contiguous()
    return parts


def zero_words(zeros: Tensor, packing: Packing) -> Tensor:
    """v1 stores one less: of each zero point alone with 3 bits, of whole words with the others."""
    bits, v1 = packing.bits, packing.format == "gptq"
    if bits == 3:
        rows = [stream([(z - v1) % 8 for z in row], 3) for row in zeros.tolist()]
    else:
        ones = sum(1 << s for s in range(0, 32, bits)) if v1 else 0
        rows = [[signed(w - ones) for w in stream(row, bits)] for row in zeros.tolist()]
    return torch.tensor(rows).int()


def awq_words(codes: Tensor) -> Tensor:
    """Rows of codes, eight columns a word, in AWQ's order."""
    rows = []
    for row in codes.tolist():
        blocks: Iterator[list[int]] = (row[i : i + 8] for i in range(0, len(row), 8))
        rows.append(
            [signed(sum(block[c] << 4 * n for n, c in enumerate(AWQ_NIBBLES))) for block in blocks]
        )
    return torch.tensor(rows).int()


def save(family: str, folder: Path, packing: Packing) -> Path:
    """A tiny model's checkpoint, packed."""
    source = folder.with_name(f"{folder.name}-source")
    tiny.save(family, source)
    # The library opens no checkpoint without a tokenizer.
    tiny_tokenizers.byte_level(tiny.VOCABULARY, every_byte=False).save_pretrained(source)
    save_packed(source, folder, packing)
    shutil.rmtree(source)
    return folder


def save_packed(
    source: Path,
    folder: Path,
    packing: Packing,
    change: Callable[[str, Tensor], Tensor] | None = None,
) -> Path:
    """A dense checkpoint, packed; `change` edits its weights before, by name."""
    shutil.copytree(source, folder)
    state = {}
    for name, tensor in load_file(source / "model.safetensors").items():
        edited = change(name, tensor).contiguous() if change else tensor
        if "layers" in name and tensor.ndim == 2:
            module = name.removesuffix(".weight")
            parts, _ = tensors(edited, packing)
            state |= {f"{module}.{part}": value for part, value in parts.items()}
        else:
            state[name] = edited
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(
        json.dumps(config | {"quantization_config": packing.config}), encoding="utf-8"
    )
    return folder
