"""The interface of a precision: how it loads, verifies and dequantizes weights for torch."""

import logging
import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from torch import Tensor, nn

from hq.errors import HQError, first_line
from hq.models.auto import model_class
from hq.models.checkpoint import (
    DENSE_DTYPES,
    quantization_config,
    quantization_of,
    tensors_of,
    whole_config,
)
from hq.models.placement import AUTO
from hq.registry import Registry

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_log = logging.getLogger("hq")
_DENSE_TYPES = ("float64", "float32", "float16", "bfloat16")


@dataclass(frozen=True, slots=True)
class StoredWeight:
    """How the weight of a projection is stored."""

    storage: str  # a dtype, or the scheme of packed weights
    nbytes: int  # of codes, scales and zero points in memory
    weights: int  # number of weights
    packed_nbytes: int = 0  # with codes packed, if memory holds each in more bits than it has
    explained: float = math.inf  # relative error of the weights that their scales explain

    @property
    def shipped_nbytes(self) -> int:
        """Bytes in a file: floats ship in FP16 (a CPU holds FP32), and codes ship packed."""
        if self.storage in _DENSE_TYPES:
            return 2 * self.weights
        return self.packed_nbytes or self.nbytes


class Precision(Protocol):
    """A named way to run a checkpoint on torch."""

    name: str
    packages: tuple[str, ...]  # that compute it, besides torch and transformers
    settings: Mapping[str, object]  # of quantization that the name does not state

    def load(self, path: Path, device: torch.device) -> "PreTrainedModel":
        """The model at this precision, on `device`."""
        ...

    def layer(self, weight: Float[Tensor, "d_out d_in"]) -> nn.Module:
        """One projection with this weight, quantized on the weight's device."""
        ...

    def is_precision_of(self, module: nn.Module) -> bool:
        """Whether the weight of this projection is stored at this precision."""
        ...

    def dense(self, module: nn.Module) -> Float[Tensor, "stored_rows stored_columns"]:
        """The dequantized weight of the projection, in the module's own layout."""
        ...

    def stored(self, module: nn.Module) -> StoredWeight:
        """How the weight of the projection is stored, scales included."""
        ...


@runtime_checkable
class Distributes(Protocol):
    """A precision that also loads on all GPUs at once."""

    def load_distributed(self, path: Path) -> "PreTrainedModel":
        """The model, its layers distributed by accelerate over all GPUs and the CPU's memory."""
        ...


@runtime_checkable
class MadeByLayer(Protocol):
    """A precision that needs no other weight of the model to make a projection."""

    @property
    def replaces(self) -> tuple[type[nn.Module], ...]:
        """Classes of projections that `Precision.layer` replaces."""
        ...

    def loaded_in(self, device: torch.device) -> torch.dtype:
        """The type in which `load` reads the checkpoint, before it quantizes."""
        ...

    def layer(self, weight: Float[Tensor, "d_out d_in"]) -> nn.Module:
        """One projection with this weight, as in `Precision`."""
        ...


PRECISIONS: Registry[Precision] = Registry("precision", "hq.precisions")


@runtime_checkable
class OwnArithmetic(Protocol):
    """A precision that computes on a GPU in another type than FP16."""

    arithmetic: torch.dtype


def compute_dtype(device: torch.device, precision: object = None) -> torch.dtype:
    """FP32 on a CPU; on a GPU FP16, or the precision's own type (BF16)."""
    if device.type == "cpu":
        return torch.float32
    return precision.arithmetic if isinstance(precision, OwnArithmetic) else torch.float16


@runtime_checkable
class ReadsQuantized(Protocol):
    """A precision that also, or only, loads checkpoints that are quantized already."""

    def reads(self, quantization: Mapping[str, Any]) -> bool:
        """Whether a checkpoint with this quantization config is stored at this precision."""
        ...


def own_precisions(quantization: Mapping[str, Any]) -> list[str]:
    """Names of the precisions that load a checkpoint with this quantization config."""
    loaders = ((name, PRECISIONS[name]) for name in PRECISIONS)
    return [n for n, p in loaders if isinstance(p, ReadsQuantized) and p.reads(quantization)]


def require_precision(path: Path, precision: str) -> Mapping[str, Any] | None:
    """The quantization config of a checkpoint that loads at `precision`; None if it is dense.

    Raises HQError for a checkpoint that is quantized in another way, by its config or by the types
    of its weights. On a CPU, transformers dequantizes some formats (FP8) while it loads them, so
    the model looks dense; without the config, it reads codes as weights.
    """
    quantization = quantization_config(path)
    if quantization is not None:
        own = own_precisions(quantization)
        if precision not in own:
            instead = f"name its own precision ({', '.join(own)})" if own else "name its source"
            raise HQError(
                f"{path} is quantized already ({quantization_of(path)}), so it does not run as "
                f"{precision}: {instead}."
            )
        return quantization
    for tensor in tensors_of(path).values():
        if tensor.name.endswith(WEIGHT_NAMES) and tensor.dtype not in DENSE_DTYPES:
            raise HQError(
                f"{path} has {tensor.name} in {tensor.dtype}, so it is quantized, and its config "
                f"does not say how: it does not run as {precision}; name its source."
            )
    return None


WEIGHT_NAMES = (".weight", ".qweight", ".weight_packed")


def load_distributed(precision: Precision, path: Path) -> "PreTrainedModel":
    """Load a model with its layers on all GPUs and, where these are full, in the CPU's memory.

    Logs a warning if weights are not on a GPU. Raises HQError for a precision that runs on one
    device only, and for a model that fits neither the GPUs nor the CPU's memory.
    """
    if not isinstance(precision, Distributes):
        able = [name for name in PRECISIONS if isinstance(PRECISIONS[name], Distributes)]
        raise HQError(
            f"Precision {precision.name!r} runs on one device: use cuda or cpu in place of 'auto', "
            f"or a precision that can be distributed ({', '.join(able)})."
        )
    model = precision.load_distributed(path)
    held = Counter(str(place) for place in model.hf_device_map.values())
    if held["disk"]:
        raise HQError(
            f"{path} fits neither the GPUs nor the memory of the CPU: use a precision with fewer "
            "bits, or a machine with more memory."
        )
    if held["cpu"]:
        _log.warning(
            "%s does not fit the memory of the GPUs: %d of its %d parts stay in the memory of the "
            "CPU and are copied to a GPU in each forward pass, which is slow.",
            path,
            held["cpu"],
            held.total(),
        )
    return model


def from_pretrained(
    path: Path, device: torch.device | Literal["auto"], **options: object
) -> "PreTrainedModel":
    """Load a checkpoint with transformers: safetensors only, every weight found, on `device`."""
    device_map = device if device == AUTO else {"": device}
    options = {"use_safetensors": True, "device_map": device_map, **options}
    return load_complete(path, model_class(whole_config(path)), path, **options)


# Buffers of old checkpoints that are computed today, and towers of other modalities.
_UNUSED = re.compile(
    r"rotary_emb\.inv_freq$|\.attn\.(masked_)?bias$|\.position_ids$"
    r"|(^|\.)(vision_tower|vision_model|visual|audio_tower|multi_modal_projector|embed_vision)\."
)


def load_complete(
    path: Path, transformers_class: Any, source: Path | None, **options: object
) -> "PreTrainedModel":
    """A frozen model of a transformers class, loaded from `source` or from options.

    Raises HQError, which names `path`, if weights are missing or not used.
    """
    try:
        model, info = transformers_class.from_pretrained(
            source, output_loading_info=True, **options
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise HQError(f"{path} cannot be loaded: {first_line(error)}.") from error
    if info["missing_keys"]:
        first = sorted(info["missing_keys"])[0]
        raise HQError(
            f"{path} lacks {len(info['missing_keys'])} weights of its architecture, {first} first: "
            "the checkpoint is incomplete."
        )
    unexpected = sorted(key for key in info["unexpected_keys"] if not _UNUSED.search(key))
    if unexpected:
        raise HQError(
            f"{path} has {len(unexpected)} weights that its architecture does not use, "
            f"{unexpected[0]} first: config.json is of another model, or lacks a setting."
        )
    loaded: PreTrainedModel = model.eval().requires_grad_(False)
    return loaded
