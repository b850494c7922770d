"""fp16, the reference: weights rounded to FP16; arithmetic in FP32 on a CPU, in FP16 on a GPU."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from hq.precisions.base import StoredWeight, compute_dtype, from_pretrained, require_precision

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class FP16:
    """Dense half-precision weights."""

    name = "fp16"
    packages: tuple[str, ...] = ()
    settings: Mapping[str, object] = {}

    def load(self, path: Path, device: torch.device) -> "PreTrainedModel":
        """The model, loaded in FP16 first, so that wider weights are rounded as they would ship."""
        require_precision(path, self.name)
        model = from_pretrained(path, device, dtype=torch.float16)
        return model.to(compute_dtype(device))

    def layer(self, weight: Tensor) -> nn.Module:
        """A linear with this weight, rounded to FP16."""
        linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device=weight.device)
        linear.weight = nn.Parameter(weight.half().to(compute_dtype(weight.device)))
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
