"""What a precision is to the torch backend: how it loads, is proven, and is dequantized."""

from pathlib import Path
from typing import Protocol

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from hq.checkpoint import first_line
from hq.errors import HQError
from hq.registry import Registry


class Precision(Protocol):
    """A named way to run one source checkpoint."""

    name: str
    packages: tuple[str, ...]  # what computes it, beside torch and transformers

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

    def scale_bytes(self, module: nn.Module) -> int:
        """Bytes of scales that are no parameter or buffer of the module."""
        ...


PRECISIONS: Registry[Precision] = Registry("precision")


def compute_dtype(device: torch.device) -> torch.dtype:
    """FP32 on a CPU, which has no FP16 arithmetic of its own, and FP16 elsewhere."""
    return torch.float32 if device.type == "cpu" else torch.float16


def from_pretrained(path: Path, device: torch.device, **options: object) -> PreTrainedModel:
    """Transformers' loading with hq's terms: safetensors only, every weight found, on `device`."""
    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            path,
            use_safetensors=True,
            device_map={"": device},
            output_loading_info=True,
            **options,
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise HQError(f"{path} cannot be loaded: {first_line(error)}.") from error
    if info["missing_keys"]:
        first = sorted(info["missing_keys"])[0]
        raise HQError(
            f"{path} lacks {len(info['missing_keys'])} weights of its architecture, {first} first: "
            "the checkpoint is incomplete."
        )
    loaded: PreTrainedModel = model.eval().requires_grad_(False)
    return loaded
