"""fp16, the reference, and bf16: weights in 16 bits; arithmetic in FP32 on a CPU, else in 16."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from hq.models.placement import AUTO
from hq.precisions.base import StoredWeight, compute_dtype, from_pretrained, require_precision

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class FP16:
    """Dense weights in FP16 (5 bits of exponent, 11 of precision)."""

    name = "fp16"
    arithmetic = torch.float16  # of the weights, and on a GPU also of the products
    packages: tuple[str, ...] = ()
    settings: Mapping[str, object] = {}
    replaces: tuple[type[nn.Module], ...] = ()

    def loaded_in(self, device: torch.device) -> torch.dtype:
        """The type to which weights are rounded."""
        return self.arithmetic

    def load(self, path: Path, device: torch.device) -> "PreTrainedModel":
        """The model, loaded in 16 bits first, so that wider weights are rounded as they ship."""
        require_precision(path, self.name)
        model = from_pretrained(path, device, dtype=self.arithmetic)
        computed = compute_dtype(device, self)
        # Also without effect on weights, a cast would round the frequencies of rotary embeddings.
        return model if computed == self.arithmetic else model.to(computed)

    def load_distributed(self, path: Path) -> "PreTrainedModel":
        """The model on all GPUs, where it is computed in the type of its weights."""
        require_precision(path, self.name)
        return from_pretrained(path, AUTO, dtype=self.arithmetic)

    def layer(self, weight: Tensor) -> nn.Module:
        """A linear with this weight, rounded to 16 bits."""
        linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
        rounded = weight.to(self.arithmetic)
        linear.weight = nn.Parameter(rounded.to(compute_dtype(weight.device, self)))
        return linear

    def is_precision_of(self, module: nn.Module) -> bool:
        """Whether the weight is a dense floating-point matrix."""
        weight = getattr(module, "weight", None)
        return isinstance(weight, Tensor) and weight.is_floating_point() and weight.ndim == 2

    def stored_experts(self, module: nn.Module) -> StoredWeight | None:
        """The 3-D weights in memory; None if they are codes."""
        weights = [module.gate_up_proj, module.down_proj]
        if not all(isinstance(w, Tensor) and w.is_floating_point() for w in weights):
            return None
        dtype = str(weights[0].dtype).removeprefix("torch.")
        sizes = [(int(w.nbytes), int(w.numel())) for w in weights if isinstance(w, Tensor)]
        nbytes, count = (sum(of) for of in zip(*sizes, strict=True))
        return StoredWeight(dtype, nbytes, count)

    def dense(self, module: nn.Module) -> Tensor:
        """The weight itself."""
        weight = module.weight
        assert isinstance(weight, Tensor)
        return weight

    def stored(self, module: nn.Module) -> StoredWeight:
        """The weight in memory, which is FP32 on a CPU."""
        weight = module.weight
        assert isinstance(weight, Tensor)
        dtype = str(weight.dtype).removeprefix("torch.")
        return StoredWeight(dtype, weight.nbytes, weight.numel())


class BF16(FP16):
    """Dense weights in BF16 (8 bits of exponent, 8 of precision), rounded once from the file's."""

    name = "bf16"
    arithmetic = torch.bfloat16

    def is_precision_of(self, module: nn.Module) -> bool:
        """Whether the weight is a dense matrix of BF16 values."""
        return super().is_precision_of(module) and _is_bf16(module.weight)

    def stored_experts(self, module: nn.Module) -> StoredWeight | None:
        """The 3-D weights in memory; None unless they are BF16 values."""
        weights = (module.gate_up_proj, module.down_proj)
        return super().stored_experts(module) if all(map(_is_bf16, weights)) else None


def _is_bf16(weight: object) -> bool:
    """Whether the weights are BF16, or FP32 whose last 16 bits are zero."""
    assert isinstance(weight, Tensor)
    if weight.dtype != torch.float32:
        return weight.dtype == torch.bfloat16
    # A matrix at a time, or an expert's: the bits need as much memory as the weights.
    parts = weight if weight.ndim == 3 else (weight,)
    return not any(bool((part.view(torch.int32) & 0xFFFF).any()) for part in parts)
