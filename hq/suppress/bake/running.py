"""A checkpoint run in float32 on a CPU with neurons scaled by hooks: baking is compared with it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from hq.backends.transformers.hooks import scaled
from hq.models.architectures import down_projections
from hq.models.checkpoint import architecture_at, tensor_files, text_config
from hq.neurons.prompt_response import PromptResponse
from hq.precisions.base import from_pretrained
from hq.precisions.bitsandbytes import package
from hq.precisions.packed import Exact, Recipe
from hq.precisions.packed_checkpoints.checkpoint import PackedCheckpoint
from hq.suppress.bake.model import Factors

_CPU = torch.device("cpu")


def run(
    path: Path, exchanges: Sequence[PromptResponse], scalings: Sequence[Factors]
) -> list[Float[np.ndarray, "token vocab"]]:
    """Logits of all responses' tokens, under each scaling at run time.

    Raises HQError for a checkpoint that cannot be loaded, or lacks the package that runs it.
    """
    architecture = architecture_at(path)
    space = architecture.space(text_config(path))
    model = loaded(path)
    downs = down_projections(model.get_decoder(), architecture)
    found = []
    for factors in scalings:
        with torch.inference_mode(), scaled(model, downs, factors, space):
            rows = [_logits(model, exchange) for exchange in exchanges]
        found.append(torch.cat(rows).numpy())
    return found


def _logits(model: Any, exchange: PromptResponse) -> torch.Tensor:
    logits: torch.Tensor = model(torch.tensor([exchange.ids])).logits[0]
    return logits[len(exchange.prompt) - 1 : -1]


def loaded(path: Path) -> Any:
    """As it is stored, computing in float32; packed weights as what they stand for."""
    names = tensor_files(path)
    if any(name.endswith((".qweight", ".weight_packed")) for name in names):
        scheme = PackedCheckpoint(path).scheme
        recipe = Recipe(scheme.method, scheme.bits)
        return Exact(str(scheme), recipe).load(path, _CPU)
    if any(name.endswith((".SCB", ".absmax")) for name in names):
        kind = package("bitsandbytes").nn.Linear4bit
        model = from_pretrained(path, _CPU, dtype=torch.float32)
        for module in model.modules():
            if isinstance(module, kind):
                module.support_avx512bf16_for_cpu = False  # as hq.precisions.bitsandbytes says
        return model
    return from_pretrained(path, _CPU, dtype=torch.float32)
