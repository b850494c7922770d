"""What a precision is to the torch backend: how it loads, is proven, and is dequantized."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import PreTrainedModel

from hq.errors import HQError, first_line
from hq.models.auto import model_class
from hq.models.checkpoint import quantization_of, tensors_of, whole_config
from hq.registry import Registry


@dataclass(frozen=True, slots=True)
class Stored:
    """How a projection's weight is stored."""

    storage: str  # a dtype, or a scheme of packing
    nbytes: int  # codes, scales and zero points
    weights: int  # how many numbers that stands for
    packed: int = 0  # bytes with the codes packed, where each is held in more bits than it has
    explained: float = math.inf  # relative error of weights that the scales stored here explain

    @property
    def ships(self) -> int:
        """Bytes that it ships in: a CPU holds in FP32 what ships in FP16, 4 bits in a byte."""
        if self.storage.startswith(("float", "bfloat")):
            return 2 * self.weights
        return self.packed or self.nbytes


class Precision(Protocol):
    """A named way to run one source checkpoint."""

    name: str
    packages: tuple[str, ...]  # what computes it, beside torch and transformers
    settings: Mapping[str, object]  # what it is quantized with, where its name does not say

    def load(self, path: Path, device: torch.device) -> PreTrainedModel:
        """The model at this precision, on `device`."""
        ...

    def layer(self, weight: Float[Tensor, "d_out d_in"]) -> nn.Module:
        """One projection with this weight, quantized on the weight's device."""
        ...

    def holds(self, module: nn.Module) -> bool:
        """Whether this projection really is stored at this precision."""
        ...

    def dense(self, module: nn.Module) -> Float[Tensor, "stored_rows stored_columns"]:
        """The projection's dequantized weight, laid out as the module lays it out."""
        ...

    def stored(self, module: nn.Module) -> "Stored":
        """How the projection's weight is stored, its scales counted."""
        ...


PRECISIONS: Registry[Precision] = Registry("precision", "hq.precisions")


def compute_dtype(device: torch.device) -> torch.dtype:
    """FP32 on a CPU, which has no FP16 arithmetic of its own, and FP16 elsewhere."""
    return torch.float32 if device.type == "cpu" else torch.float16


def require_dense(path: Path, precision: str) -> None:
    """Raises HQError for a checkpoint that is quantized, by its config or by its weights' types.

    On a CPU transformers dequantizes some of them (FP8) while loading, and the model then looks
    like any dense one; without the config it reads the codes as if they were weights.
    """
    method = quantization_of(path)
    if method is not None:
        own = [name for name in PRECISIONS if getattr(PRECISIONS[name], "method", "") == method]
        instead = f"name its own precision ({', '.join(own)})" if own else "name its source"
        raise HQError(
            f"{path} is quantized already ({method}), so it does not run as {precision}: {instead}."
        )
    for tensor in tensors_of(path).values():
        if tensor.name.endswith(_WEIGHTS) and tensor.dtype not in _DENSE:
            raise HQError(
                f"{path} holds {tensor.name} as {tensor.dtype}, so it is quantized, and its config "
                f"does not say how: it does not run as {precision}; name its source."
            )


_DENSE = frozenset({"BF16", "F16", "F32", "F64"})
_WEIGHTS = (".weight", ".qweight", ".weight_packed")


def from_pretrained(path: Path, device: torch.device, **options: object) -> PreTrainedModel:
    """Transformers' loading with hq's terms: safetensors only, every weight found, on `device`."""
    placed = {"use_safetensors": True, "device_map": {"": device}}
    return whole(path, model_class(whole_config(path)), path, **placed, **options)


# Buffers that old checkpoints carry and that are computed today, and towers of other modalities.
_HARMLESS = re.compile(
    r"rotary_emb\.inv_freq$|\.attn\.(masked_)?bias$|\.position_ids$"
    r"|(^|\.)(vision_tower|vision_model|visual|audio_tower|multi_modal_projector|embed_vision)\."
)


def whole(path: Path, kind: Any, source: Path | None, **options: object) -> PreTrainedModel:
    """A model of a transformers class, frozen. HQError where `path` does not fill all of it."""
    try:
        model, info = kind.from_pretrained(source, output_loading_info=True, **options)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise HQError(f"{path} cannot be loaded: {first_line(error)}.") from error
    if info["missing_keys"]:
        first = sorted(info["missing_keys"])[0]
        raise HQError(
            f"{path} lacks {len(info['missing_keys'])} weights of its architecture, {first} first: "
            "the checkpoint is incomplete."
        )
    unexpected = sorted(key for key in info["unexpected_keys"] if not _HARMLESS.search(key))
    if unexpected:
        raise HQError(
            f"{path} has {len(unexpected)} weights that its architecture does not use, "
            f"{unexpected[0]} first: config.json is of another model, or lacks a setting."
        )
    loaded: PreTrainedModel = model.eval().requires_grad_(False)
    return loaded
