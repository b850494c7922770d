"""A packed checkpoint: what its config states, and its layers, checked against each other."""

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any

from pydantic import ValidationError
from torch import Tensor

from hq.errors import HQError, first_line
from hq.models.checkpoint import read_tensor, tensor_files
from hq.precisions.packed_checkpoints.layer import (
    ZERO_OFFSET,
    CompressedLayer,
    PackedLayer,
    PackingScheme,
)

CONFIG_FILES = ("config.json", "quantize_config.json", "quant_config.json")
COMPRESSED = "compressed-tensors"
PACKED_FORMAT = "pack-quantized"
_INTEGERS = "W4A16 or W8A16"  # schemes that are read
_GROUP_SIZE = {"group": None, "channel": -1}  # by strategy; -1: one group per row
_SAMPLED = 8  # projections from which the format of zero points is derived

_LAYERS = {"gptq": PackedLayer, "awq": PackedLayer, COMPRESSED: CompressedLayer}


class PackedCheckpoint:
    """A folder of packed weights. Raises HQError for a checkpoint that hq cannot read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.scheme = packing_scheme(path)
        self._layer_class = _LAYERS[self.scheme.method]
        self._files = tensor_files(path)

    @cached_property
    def names(self) -> list[str]:
        """Names of the quantized projections."""
        codes = f".{self._layer_class.PARTS[0]}"
        names = [name.removesuffix(codes) for name in self._files if name.endswith(codes)]
        if not names:
            raise HQError(
                f"{self.path} says {self.scheme}, but no tensor in it is packed: its config is "
                "that of another checkpoint."
            )
        return names

    def layer(self, name: str) -> PackedLayer:
        """One projection. Raises HQError if a part of it is missing."""
        return self._layer_class(name, self.scheme, self._parts(name), self._zero_offset)

    def layers(self) -> Iterator[PackedLayer]:
        """All quantized projections, one at a time."""
        return map(self.layer, self.names)

    def others(self) -> dict[str, Tensor]:
        """All tensors that are not part of a packed projection: embeddings, norms, biases."""
        packed = {f"{name}.{part}" for name in self.names for part in self._layer_class.PARTS}
        return {name: self._tensor(name) for name in self._files if name not in packed}

    def _parts(self, name: str) -> dict[str, Tensor]:
        parts = self._layer_class.PARTS
        for part in parts[: self._layer_class.REQUIRED[self.scheme.sym]]:
            if f"{name}.{part}" not in self._files:
                raise HQError(f"{self.path} lacks {name}.{part}: the checkpoint is incomplete.")
        return {
            part: self._tensor(f"{name}.{part}")
            for part in parts
            if f"{name}.{part}" in self._files
        }

    def _tensor(self, name: str) -> Tensor:
        return read_tensor(self._files[name], name)

    @cached_property
    def _zero_offset(self) -> int | None:
        """The offset of GPTQ's zero points, derived from the weights; None for other methods.

        Symmetric zero points are all the middle code; the mean code decides for others. Raises
        HQError if the weights contradict the format that the config states.
        """
        if self.scheme.method != "gptq":
            return None
        sampled = self.names[:: -(-len(self.names) // _SAMPLED)]
        layers = [self._layer_class(name, self.scheme, self._parts(name)) for name in sampled]
        for layer in layers:
            layer.require_shapes()
        derived = self._derived_offset(layers)
        stated = ZERO_OFFSET.get(self.scheme.format)
        if stated is not None and derived is not None and derived != stated:
            name = next(name for name, offset in ZERO_OFFSET.items() if offset == derived)
            raise HQError(
                f"{self.path} says checkpoint_format {self.scheme.format!r}, but its zero points "
                f"are those of {name!r}: correct its config, or every weight is off by one step."
            )
        return derived if stated is None else stated

    def _derived_offset(self, layers: Sequence[PackedLayer]) -> int | None:
        """The offset that fits the weights of the layers; None if neither fits clearly."""
        offsets = sorted(ZERO_OFFSET.values(), reverse=True)  # v1 first
        symmetric = [o for o in offsets if all(layer.zeros_are_symmetric(o) for layer in layers)]
        if symmetric:
            return symmetric[0]
        if self.scheme.sym and "sym" in self.scheme.model_fields_set:
            asymmetric = next(
                (
                    layer.name
                    for layer in layers
                    if not any(map(layer.zeros_are_symmetric, offsets))
                ),
                "some layers",
            )
            raise HQError(
                f"{self.path} says sym, but the zero points of {asymmetric} are not the middle "
                "code: correct its config."
            )
        distance = {o: median(abs(layer.mean_code(o)) for layer in layers) for o in offsets}
        best, other = sorted(offsets, key=lambda o: distance[o])
        return best if distance[best] + 0.5 < distance[other] else None


def packing_scheme(path: Path) -> PackingScheme:
    """How a checkpoint is quantized, as stated in config.json or in a file of its own.

    auto-gptq writes only quantize_config.json, which transformers does not read: it would load a
    random model. Raises HQError if nothing is stated, or something that hq cannot read.
    """
    stated = _stated(path)
    if stated is None:
        raise HQError(f"{path} does not say that it is quantized: name a packed checkpoint.")
    if str(stated.get("quant_method")).lower() == COMPRESSED:
        stated = compressed_settings(path, stated)
    _require_uniform(path, stated)
    try:
        scheme = PackingScheme.model_validate(stated)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        raise HQError(
            f"The quantization config of {path} cannot be used: {field}: {first['msg']}."
        ) from error
    _require_readable(path, scheme)
    return scheme


def compressed_settings(path: Path, stated: Mapping[str, Any]) -> dict[str, Any]:
    """Method, bits, group size and symmetry of a compressed-tensors config (llm-compressor).

    Raises HQError for a config that states more than packed integers, such as activations in 8
    bits: a model without them would be another model.
    """
    group = compressed_group(path, stated, (PACKED_FORMAT,), _INTEGERS)
    if group.get("input_activations"):
        raise unreadable(path, "quantizes input activations", _INTEGERS)
    weights = group["weights"]
    strategy, number_type = weights.get("strategy"), weights.get("type", "int")
    if strategy not in _GROUP_SIZE or number_type != "int":
        raise unreadable(path, f"has {number_type} weights by {strategy}", _INTEGERS)
    return {
        "method": COMPRESSED,
        "bits": weights.get("num_bits"),
        "group_size": _GROUP_SIZE[strategy] or weights.get("group_size"),
        "sym": weights.get("symmetric", True),
    }


def compressed_group(
    path: Path, stated: Mapping[str, Any], formats: Sequence[str], instead: str
) -> Mapping[str, Any]:
    """The scheme of a compressed-tensors config, of which `weights` is a mapping.

    Raises HQError if there are several schemes, for a format that is not one of `formats`, and for
    what would change the model: quantized outputs or key-value cache, rotations at run time,
    sparse weights.
    """
    groups = stated.get("config_groups")
    if not isinstance(groups, dict) or len(groups) != 1:
        count = len(groups) if isinstance(groups, dict) else "no"
        raise unreadable(path, f"has {count} groups of layers with schemes of their own", instead)
    (group,) = groups.values()
    if not isinstance(group, dict) or not isinstance(group.get("weights"), dict):
        raise unreadable(path, f"names the scheme {group!r} only", instead)
    stated_format = group.get("format") or stated.get("format")
    if stated_format not in formats:
        raise unreadable(path, f"is in the format {stated_format!r}, not {formats[0]!r}", instead)
    if group.get("output_activations"):
        raise unreadable(path, "quantizes output activations", instead)
    for key in ("transform_config", "kv_cache_scheme", "sparsity_config"):
        value = stated.get(key)
        is_dense = isinstance(value, dict) and value.get("format") == "dense"
        if value and not is_dense:
            raise unreadable(path, f"has a {key}", instead)
    return group


def compressed_weights(stated: Mapping[str, Any]) -> Mapping[str, Any]:
    """Format and weights of the only scheme of a compressed-tensors config, as far as stated."""
    groups = stated.get("config_groups")
    group = next(iter(groups.values()), None) if isinstance(groups, dict) else None
    group = group if isinstance(group, dict) else {}
    weights = group.get("weights")
    own_format = group.get("format") or stated.get("format") or PACKED_FORMAT
    return {"format": own_format, **(weights if isinstance(weights, dict) else {})}


def unreadable(path: Path, reason: str, instead: str) -> HQError:
    """The error of a compressed-tensors checkpoint of a scheme that hq does not read."""
    return HQError(f"{path} {reason}, which hq does not read: use {instead}.")


def _stated(path: Path) -> dict[str, Any] | None:
    for name in CONFIG_FILES:
        file = path / name
        if not file.is_file():
            continue
        try:
            values = json.loads(file.read_text(encoding="utf-8"))
        except (UnicodeDecodeError, json.JSONDecodeError) as error:
            raise HQError(f"{file} cannot be read: {first_line(error)}.") from error
        stated = values.get("quantization_config") if name == "config.json" else values
        if isinstance(stated, dict):
            return {"quant_method": "awq"} | stated if name == "quant_config.json" else stated
    return None


def _require_uniform(path: Path, stated: Mapping[str, Any]) -> None:
    """Raises HQError if some layers have other bits or groups than the rest.

    gptqmodel states them under `dynamic`, in which the pattern of a layer that is left dense begins
    with "-:", and auto-round under `extra_config`.
    """
    dynamic, extra = (stated.get(key) or {} for key in ("dynamic", "extra_config"))
    different = [name for name in dynamic if not name.startswith("-:")]
    different += [
        name
        for name, scheme in extra.items()
        if isinstance(scheme, dict) and scheme.get("bits", 16) not in (16, 32, stated.get("bits"))
    ]
    if different:
        raise HQError(
            f"{path} quantizes some layers differently from the rest ({different[0]} first): hq "
            "reads checkpoints with one number of bits only."
        )


def _require_readable(path: Path, scheme: PackingScheme) -> None:
    if scheme.method == COMPRESSED:
        return
    formats = ("", "gemm") if scheme.method == "awq" else ("", *ZERO_OFFSET)
    if scheme.format.lower() not in formats:
        raise HQError(
            f"{path} is in the {scheme.method} format {scheme.format!r}, which hq does not read: "
            f"save it as {formats[1]!r}."
        )
    if scheme.method == "awq" and scheme.bits != 4:
        raise HQError(
            f"{path} is AWQ with {scheme.bits} bits, which hq does not read: save it with 4 bits."
        )
