"""gptq-4, awq-4, compressed-4 and the like: packed checkpoints, run exactly or by native kernels.

An exact precision (`gptq-4`) is a dense float32 model of the packed weights: the effect of the
format, without the rounding of a kernel. A native one (`gptq-4-native`) runs gptqmodel's kernel.
"""

import copy
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hq.errors import HQError
from hq.models.auto import model_class
from hq.models.checkpoint import quantization_config
from hq.precisions.base import (
    Precision,
    StoredWeight,
    compute_dtype,
    load_complete,
    own_precisions,
    require_precision,
)
from hq.precisions.packed_checkpoints.checkpoint import (
    COMPRESSED,
    PACKED_FORMAT,
    PackedCheckpoint,
    compressed_weights,
)
from hq.precisions.packed_checkpoints.layer import PackedLayer

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NATIVE = "-native"
UNCHECKED = "not compared with its source"
_MAX_KERNEL_ERROR = 0.02  # of BF16 arithmetic, relative to the norm of a product
_KERNEL_INPUTS = 8  # random inputs on which a kernel is checked
# Error of weights that the format explains, relative to that of rounding to the nearest. GPTQ and
# AWQ raise the error of weights to lower that of products: 1.1 to 1.3 on a real model, 1.5 in the
# worst layer. A zero point that is off by one step gives 3.6.
_EXPLAINED = 2.0


@dataclass(frozen=True)
class Recipe:
    """The quantization method and bits of a packed precision."""

    method: Literal["gptq", "awq", "compressed-tensors"]
    bits: int

    @property
    def has_quantizer(self) -> bool:
        """Whether hq quantizes to it, and gptqmodel runs it; other formats are only read."""
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


def packed_precisions() -> list[Precision]:
    """The exact precision of each recipe, and the native one if gptqmodel runs it."""
    precisions: list[Precision] = []
    for name, recipe in RECIPES.items():
        precisions.append(Exact(name, recipe))
        if recipe.has_quantizer:
            precisions.append(Native(name + NATIVE, recipe))
    return precisions


@dataclass(frozen=True, slots=True)
class PackedWeight:
    """The weight of a projection as a packed checkpoint stores it."""

    stored: StoredWeight
    dense: Float[Tensor, "d_out d_in"] | None  # FP16, for kernels, which repack their weights


_WEIGHTS: WeakKeyDictionary[nn.Module, PackedWeight] = WeakKeyDictionary()


def packed_weight(module: nn.Module) -> PackedWeight | None:
    """The packed weight that a projection was loaded from; None for all other modules."""
    return _WEIGHTS.get(module)


def record(module: nn.Module, stored: StoredWeight) -> None:
    """State how the weight of a projection is stored that was dequantized."""
    _WEIGHTS[module] = PackedWeight(stored, dense=None)


def mark_unchecked(model: nn.Module) -> bool:
    """State in the audit that the packed weights of a model were not compared with their source.

    Returns whether there are any.
    """
    packed = {m: w for m in model.modules() if (w := packed_weight(m)) is not None}
    for module, weight in packed.items():
        storage = f"{weight.stored.storage}, {UNCHECKED}"
        _WEIGHTS[module] = replace(weight, stored=replace(weight.stored, storage=storage))
    return bool(packed)


class _Packed:
    """A model whose packed weights are recorded beside its modules."""

    settings: Mapping[str, object] = {}

    def is_precision_of(self, module: nn.Module) -> bool:
        """Whether the projection was loaded from packed codes."""
        return packed_weight(module) is not None

    def stored(self, module: nn.Module) -> StoredWeight:
        """How the checkpoint packs the weight; in memory it may be larger."""
        weight = packed_weight(module)
        assert weight is not None
        return weight.stored


class Dequantized(_Packed):
    """Packed weights, dequantized once into dense linears."""

    packages: tuple[str, ...] = ()

    def dense(self, module: nn.Module) -> Tensor:
        """The weight itself, which is dequantized already."""
        weight = module.weight
        assert isinstance(weight, Tensor)
        return weight


class _OfRecipe:
    """A precision of integer codes, named by its recipe."""

    def __init__(self, name: str, recipe: Recipe) -> None:
        self.name = name
        self._recipe = recipe

    def reads(self, quantization: Mapping[str, Any]) -> bool:
        """Whether a checkpoint states this method, and this number of bits if it states one."""
        method, bits = self._recipe.method, self._recipe.bits
        if str(quantization.get("quant_method")).lower() != method:
            return False
        stated = quantization.get("bits", quantization.get("w_bit", bits))
        if method != COMPRESSED:
            return bool(stated == bits)
        weights = compressed_weights(quantization)
        return (
            weights["format"] == PACKED_FORMAT
            and weights.get("type", "int") == "int"
            and weights.get("num_bits", stated) in (bits, None)
        )


class Exact(_OfRecipe, Dequantized):
    """Integer codes, dequantized once into dense linears."""

    def load(self, path: Path, device: torch.device) -> "PreTrainedModel":
        """A dense model of the weights that the checkpoint's codes represent."""
        checkpoint = load_packed(path, self.name, self._recipe)
        stored: dict[str, StoredWeight] = {}
        state = checkpoint.others()
        for layer in checkpoint.layers():
            dense = state[f"{layer.name}.weight"] = layer.dense()
            stored[layer.name] = _stored(layer, dense)
        return load_dequantized(path, state, stored, device)

    def layer(self, weight: Float[Tensor, "d_out d_in"]) -> nn.Module:
        """A linear with each weight rounded to the nearest code of its group, not calibrated."""
        linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device=weight.device)
        dense = round_to_nearest(weight.float(), self._recipe.bits, group=64, sym=True)
        linear.weight = nn.Parameter(dense.to(compute_dtype(weight.device)))
        return linear


class Native(_OfRecipe, _Packed):
    """Packed weights, multiplied by the kernel that gptqmodel selects on this machine."""

    packages: tuple[str, ...] = ("gptqmodel",)

    def load(self, path: Path, device: torch.device) -> "PreTrainedModel":
        """The model of gptqmodel, with each kernel checked against its weights."""
        checkpoint = load_packed(path, self.name, self._recipe)
        gptqmodel = import_gptqmodel(self.name)
        loaded = gptqmodel.GPTQModel.load(str(path), device=str(device), dtype=torch.float16)
        model: PreTrainedModel = loaded.model.eval().requires_grad_(False)
        modules = dict(model.named_modules())
        for layer in checkpoint.layers():
            module = modules[layer.name]
            dense = layer.dense()
            # Kernels repack their weights at the first product, so a copy is read later.
            _WEIGHTS[module] = PackedWeight(_stored(layer, dense), dense.half())
            require_correct_kernel(module, layer, dense, model.dtype)
        return model

    def layer(self, weight: Float[Tensor, "d_out d_in"]) -> nn.Module:
        """Raises HQError: the kernels of the library run whole checkpoints."""
        raise HQError(f"{self.name} runs checkpoints only, so no single layer can be tried.")

    def is_precision_of(self, module: nn.Module) -> bool:
        """Whether the projection is a kernel that was loaded from packed codes."""
        weight = packed_weight(module)
        return weight is not None and weight.dense is not None

    def dense(self, module: nn.Module) -> Tensor:
        """The weight as it was read from the checkpoint."""
        weight = packed_weight(module)
        assert weight is not None
        assert weight.dense is not None
        return weight.dense.float()


def _stored(layer: PackedLayer, dense: Float[Tensor, "d_out d_in"]) -> StoredWeight:
    explained = _EXPLAINED * layer.rounding_error(dense)
    return StoredWeight(
        str(layer.scheme), layer.nbytes, layer.d_in * layer.d_out, explained=explained
    )


def require_correct_kernel(
    module: nn.Module, layer: PackedLayer, dense: Float[Tensor, "d_out d_in"], dtype: torch.dtype
) -> None:
    """Raises HQError for a kernel that does not multiply by the weights it has."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(_KERNEL_INPUTS, layer.d_in, generator=generator).to(dtype)
    device = next(module.buffers()).device
    with torch.inference_mode():
        product = module(x.to(device)).float().cpu()
    bias = getattr(module, "bias", None)
    expected = x.float() @ dense.T + (0 if bias is None else bias.float().cpu())
    error = float((product - expected).norm() / expected.norm())
    if not error <= _MAX_KERNEL_ERROR:
        raise HQError(
            f"The product of kernel {type(module).__name__} in {layer.name} is off by {error:.0%}, "
            f"so it does not compute {layer.scheme}: use the exact precision, without {NATIVE!r}."
        )


def load_packed(path: Path, precision: str, recipe: Recipe) -> PackedCheckpoint:
    """The checkpoint. Raises HQError if its method or number of bits is not the recipe's."""
    if recipe_of(precision) and own_precisions(quantization_config(path) or {}):
        require_precision(path, precision)
    checkpoint = PackedCheckpoint(path)
    scheme = checkpoint.scheme
    if (scheme.method, scheme.bits) != (recipe.method, recipe.bits):
        raise HQError(
            f"{path} is {scheme}, not {precision}: name the precision that the checkpoint has."
        )
    return checkpoint


def import_gptqmodel(precision: str) -> Any:
    """The package gptqmodel. Raises HQError if it is not installed."""
    quiet_gptqmodel()
    try:
        import gptqmodel
    except ImportError as error:
        raise HQError(
            f"Precision {precision!r} needs gptqmodel: pip install 'hq[gptq]'."
        ) from error
    return gptqmodel


def quiet_gptqmodel() -> None:
    """Let gptqmodel and its parts log errors only: importing it logs a banner."""
    for name in ("gptqmodel", "tokenicer", "logbar"):
        logging.getLogger(name).setLevel(logging.ERROR)


def round_to_nearest(
    weight: Float[Tensor, "d_out d_in"], bits: int, group: int, sym: bool
) -> Float[Tensor, "d_out d_in"]:
    """Weights rounded to the nearest of the 2^bits levels of their row and group of inputs.

    With `sym` the levels are symmetric around zero; otherwise they span the range of the group.
    Raises HQError if `group` does not divide the number of inputs.
    """
    if weight.shape[1] % group:
        raise HQError(f"Groups of {group} do not divide {weight.shape[1]} inputs.")
    groups = weight.view(len(weight), -1, group)
    high, top = groups.amax(-1, keepdim=True), (1 << bits) - 1
    low = groups.amin(-1, keepdim=True)
    if sym:
        high = torch.maximum(high.abs(), low.abs())
        low = -high
    low, high = low.clamp(max=0), high.clamp(min=0)  # so that zero is a level
    scale = ((high - low) / top).clamp(min=torch.finfo(weight.dtype).tiny)
    zero = (top + 1) / 2 * torch.ones_like(low) if sym else (-low / scale).round()
    codes = (groups / scale + zero).round().clamp(0, top)
    dense: Tensor = (scale * (codes - zero)).flatten(1)
    return dense


def load_dequantized(
    path: Path, state: dict[str, Tensor], stored: Mapping[str, StoredWeight], device: torch.device
) -> "PreTrainedModel":
    """A dense model with exactly these weights, some of which are `stored` packed.

    Raises HQError if weights are missing or do not fit.
    """
    from transformers import AutoConfig

    config = copy.deepcopy(AutoConfig.from_pretrained(path))
    for part in (config, config.get_text_config()):
        vars(part).pop("quantization_config", None)
    model = load_complete(
        path, model_class(config), None, config=config, state_dict=state, dtype=torch.float32
    )
    model.to(device, compute_dtype(device))
    for name, module in model.named_modules():
        if name in stored:
            record(module, stored[name])
    return model
