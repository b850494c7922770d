"""gptq-4, awq-4, compressed-4 and their kin: packed checkpoints, run exactly or by kernels.

Exact (`gptq-4`) is a dense float32 model of the very weights that are packed: what the format does
to a model, and no kernel's rounding. Native (`gptq-4-native`) is gptqmodel's own kernel.
"""

import copy
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedModel

from hq.errors import HQError
from hq.models.auto import model_class
from hq.precisions.base import PRECISIONS, Stored, compute_dtype, whole
from hq.precisions.packed_checkpoints.checkpoint import PackedCheckpoint
from hq.precisions.packed_checkpoints.layer import PackedLayer
from hq.precisions.packed_checkpoints.rounding import rounded

NATIVE = "-native"
_KERNEL_ERROR = 0.02  # what BF16 arithmetic may be off by, of a product's norm
_PROBES = 8
# How far weights may be from their source's, in errors of plain rounding. GPTQ and AWQ spend more
# on a weight to err less in the product: 1.1 to 1.3 of it on a real model, 1.5 in the worst layer.
# A zero point that is off by one step is 3.6.
_SPENT = 2.0
UNCHECKED = "not compared with its source"


@dataclass(frozen=True)
class Recipe:
    """What a packed precision is made by."""

    method: Literal["gptq", "awq", "compressed-tensors"]
    bits: int

    @property
    def made(self) -> bool:
        """Whether hq makes such checkpoints, and gptqmodel runs them; others are read only."""
        return self.method != "compressed-tensors"


RECIPES = {
    "gptq-4": Recipe("gptq", 4),
    "gptq-8": Recipe("gptq", 8),
    "gptq-3": Recipe("gptq", 3),
    "awq-4": Recipe("awq", 4),
    "compressed-4": Recipe("compressed-tensors", 4),
    "compressed-8": Recipe("compressed-tensors", 8),
}


def recipe_of(precision: str) -> Recipe | None:
    """The recipe of an exact or native packed precision; None for all others."""
    return RECIPES.get(precision.removesuffix(NATIVE))


class _Packed:
    """What was read from a packed checkpoint: each projection carries how it is stored there."""

    settings: Mapping[str, object] = {}

    def __init__(self, name: str, recipe: Recipe) -> None:
        self.name = name
        self.method = recipe.method  # what such a checkpoint's config calls it
        self._recipe = recipe

    def holds(self, module: nn.Module) -> bool:
        """Filled from packed codes."""
        return isinstance(getattr(module, "packed", None), Stored)

    def stored(self, module: nn.Module) -> Stored:
        """As the checkpoint packs it, whatever it takes here."""
        found: Any = module.packed
        assert isinstance(found, Stored)
        return found


class Exact(_Packed):
    """The packed weights, dequantized once into dense linears."""

    packages: tuple[str, ...] = ()

    def load(self, path: Path, device: torch.device) -> PreTrainedModel:
        """A dense model of what the checkpoint's codes stand for."""
        checkpoint = load_packed(path, self.name, self._recipe)
        stored: dict[str, Stored] = {}
        state = checkpoint.others()
        for layer in checkpoint.layers():
            dense = state[f"{layer.name}.weight"] = layer.dense()
            stored[layer.name] = _stored(layer, dense)
        model = _dense_model(path, state).to(device, compute_dtype(device))
        for name, module in model.named_modules():
            if name in stored:
                module.packed = stored[name]
        return model

    def layer(self, weight: Float[Tensor, "d_out d_in"]) -> nn.Module:
        """The weight, rounded to the nearest code of its group: without calibration."""
        linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device=weight.device)
        dense = rounded(weight.float(), self._recipe.bits, group=64, sym=True)
        linear.weight = nn.Parameter(dense.to(compute_dtype(weight.device)))
        return linear

    def dense(self, module: nn.Module) -> Tensor:
        """The weight itself, which is dequantized already."""
        weight = module.weight
        assert isinstance(weight, Tensor)
        return weight


class Native(_Packed):
    """The packed weights, multiplied by the kernel that gptqmodel chooses here."""

    packages: tuple[str, ...] = ("gptqmodel",)

    def load(self, path: Path, device: torch.device) -> PreTrainedModel:
        """Gptqmodel's model, each kernel checked against the weights it holds."""
        checkpoint = load_packed(path, self.name, self._recipe)
        library = gptqmodel(self.name)
        loaded = library.GPTQModel.load(str(path), device=str(device), dtype=torch.float16)
        model: PreTrainedModel = loaded.model.eval().requires_grad_(False)
        modules = dict(model.named_modules())
        for layer in checkpoint.layers():
            module = modules[layer.name]
            dense = layer.dense()
            # Kernels repack their weights at the first product, after which no one can read them.
            module.recovered = dense.half()
            module.packed = _stored(layer, dense)
            require_right(module, layer, dense, model.dtype)
        return model

    def layer(self, weight: Float[Tensor, "d_out d_in"]) -> nn.Module:
        """Not to be had: HQError. The library's kernels run checkpoints."""
        raise HQError(f"{self.name} runs checkpoints only, so no single layer can be tried.")

    def holds(self, module: nn.Module) -> bool:
        """Filled from packed codes, with what they stand for kept beside the kernel's own form."""
        return super().holds(module) and hasattr(module, "recovered")

    def dense(self, module: nn.Module) -> Tensor:
        """The weight as it was read from the checkpoint."""
        dense: Any = module.recovered
        assert isinstance(dense, Tensor)
        return dense.float()


def _stored(layer: PackedLayer, dense: Float[Tensor, "d_out d_in"]) -> Stored:
    size = layer.d_in * layer.d_out
    return Stored(str(layer.scheme), layer.nbytes, size, explained=_SPENT * layer.rounding(dense))


def mark_unchecked(model: nn.Module) -> None:
    """Has every table say that these packed weights were compared with no source."""
    for module in model.modules():
        found = getattr(module, "packed", None)
        if isinstance(found, Stored):
            holder: Any = module
            holder.packed = replace(found, storage=f"{found.storage}, {UNCHECKED}")


def require_right(
    module: nn.Module, layer: PackedLayer, dense: Float[Tensor, "d_out d_in"], dtype: torch.dtype
) -> None:
    """Raises HQError for a kernel whose product is not that of the weights it holds."""
    x = torch.randn(_PROBES, layer.d_in, generator=torch.Generator().manual_seed(0)).to(dtype)
    device = next(module.buffers()).device
    with torch.inference_mode():
        product = module(x.to(device)).float().cpu()
    bias = getattr(module, "bias", None)
    right = x.float() @ dense.T + (0 if bias is None else bias.float().cpu())
    error = float((product - right).norm() / right.norm())
    if not error <= _KERNEL_ERROR:
        raise HQError(
            f"The kernel {type(module).__name__} gives {layer.name} a product that is off by "
            f"{error:.0%}: it does not compute {layer.scheme}. Use the exact precision, without "
            f"{NATIVE!r}."
        )


def load_packed(path: Path, precision: str, recipe: Recipe) -> PackedCheckpoint:
    """The checkpoint. Raises HQError where it is of another method or another number of bits."""
    checkpoint = PackedCheckpoint(path)
    found = checkpoint.scheme
    if (found.method, found.bits) != (recipe.method, recipe.bits):
        raise HQError(
            f"{path} is {found}, not {precision}: refusing to report another precision under that "
            "name."
        )
    return checkpoint


def gptqmodel(precision: str) -> Any:
    """The package. Raises HQError when it is not installed."""
    for name in ("gptqmodel", "tokenicer", "logbar"):
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        import gptqmodel
    except ImportError as error:
        raise HQError(
            f"Precision {precision!r} needs gptqmodel: pip install 'hq[gptq]'."
        ) from error
    return gptqmodel


def _dense_model(path: Path, state: dict[str, Tensor]) -> PreTrainedModel:
    """A model with exactly these weights. HQError where some are missing or of another shape."""
    config = copy.deepcopy(AutoConfig.from_pretrained(path))
    for part in (config, config.get_text_config()):
        vars(part).pop("quantization_config", None)
    return whole(
        path, model_class(config), None, config=config, state_dict=state, dtype=torch.float32
    )


for _name, _recipe in RECIPES.items():
    PRECISIONS.add(_name, Exact(_name, _recipe))
    if _recipe.made:
        PRECISIONS.add(_name + NATIVE, Native(_name + NATIVE, _recipe))
