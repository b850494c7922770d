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
from hq.precisions.packed_checkpoints import compressed
from hq.precisions.packed_checkpoints.layer import (
    ZERO_OFFSET,
    CompressedLayer,
    PackedLayer,
    PackingScheme,
)

CONFIG_FILES = ("config.json", "quantize_config.json", "quant_config.json")
_LOOKED_AT = 8  # projections from which the format is derived


_LAYERS = {"gptq": PackedLayer, "awq": PackedLayer, compressed.METHOD: CompressedLayer}


class PackedCheckpoint:
    """A folder of packed weights. HQError for one that is none, or that this cannot read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.scheme = packing_scheme(path)
        self._kind = _LAYERS[self.scheme.method]
        self._places = tensor_files(path)

    @cached_property
    def names(self) -> list[str]:
        """The quantized projections."""
        codes = f".{self._kind.PARTS[0]}"
        found = [n.removesuffix(codes) for n in self._places if n.endswith(codes)]
        if not found:
            raise HQError(
                f"{self.path} says {self.scheme}, but no tensor in it is packed: it is another "
                "checkpoint's config."
            )
        return found

    def layer(self, name: str) -> PackedLayer:
        """One projection. HQError where a part of it is missing."""
        return self._kind(name, self.scheme, self._parts(name), self._zero_offset)

    def _parts(self, name: str) -> dict[str, Tensor]:
        for part in self._kind.PARTS[: self._kind.NEEDED[self.scheme.sym]]:
            if f"{name}.{part}" not in self._places:
                raise HQError(f"{self.path} lacks {name}.{part}: the checkpoint is incomplete.")
        places = {part: f"{name}.{part}" for part in self._kind.PARTS}
        return {p: self._tensor(place) for p, place in places.items() if place in self._places}

    @cached_property
    def _zero_offset(self) -> int | None:
        """How GPTQ's zero points are to be read, derived from the weights; None for others.

        Symmetric ones all are the middle code. Of others the codes' mean tells. HQError where the
        weights contradict the format that the config states.
        """
        if self.scheme.method != "gptq":
            return None
        some = self.names[:: -(-len(self.names) // _LOOKED_AT)]
        layers = [self._kind(name, self.scheme, self._parts(name)) for name in some]
        for layer in layers:
            layer.require_fit()
        found = self._offset_of(layers)
        stated = ZERO_OFFSET.get(self.scheme.format)
        if stated is not None and found is not None and found != stated:
            name = next(name for name, offset in ZERO_OFFSET.items() if offset == found)
            raise HQError(
                f"{self.path} says checkpoint_format {self.scheme.format!r}, but its zero points "
                f"are those of {name!r}: correct its config, or every weight is off by one step."
            )
        return stated if found is None else found

    def _offset_of(self, layers: Sequence[PackedLayer]) -> int | None:
        """The offset that the layers' weights fit; None where they fit none clearly."""
        offsets = sorted(ZERO_OFFSET.values(), reverse=True)  # v1 first
        fitting = [o for o in offsets if all(layer.zeros_fit(o) for layer in layers)]
        if fitting:
            return fitting[0]
        if self.scheme.sym and "sym" in self.scheme.model_fields_set:
            odd = next(
                (x.name for x in layers if not any(map(x.zeros_fit, offsets))), "some layers"
            )
            raise HQError(
                f"{self.path} says sym, but the zero points of {odd} are not the middle code: "
                "correct its config."
            )
        off = {o: median(abs(layer.mean_code(o)) for layer in layers) for o in offsets}
        best, other = sorted(offsets, key=lambda o: off[o])
        return best if off[best] + 0.5 < off[other] else None

    def layers(self) -> Iterator[PackedLayer]:
        """All of them, one at a time."""
        return map(self.layer, self.names)

    def others(self) -> dict[str, Tensor]:
        """Every tensor that belongs to no packed projection: embeddings, norms, biases."""
        packed = {f"{name}.{part}" for name in self.names for part in self._kind.PARTS}
        return {name: self._tensor(name) for name in self._places if name not in packed}

    def _tensor(self, name: str) -> Tensor:
        return read_tensor(self._places[name], name)


def packing_scheme(path: Path) -> PackingScheme:
    """What a folder says of how it is quantized: in config.json, or in a file of its own.

    auto-gptq writes quantize_config.json alone, of which transformers takes no notice: it would
    load a random model. Raises HQError where nothing is said, or something that hq cannot read.
    """
    stated = _stated(path)
    if stated is None:
        raise HQError(f"{path} does not say that it is quantized: it is no packed checkpoint.")
    if str(stated.get("quant_method")).lower() == compressed.METHOD:
        stated = compressed.flat(path, stated)
    _require_uniform(path, stated)
    try:
        scheme = PackingScheme.model_validate(stated)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise HQError(
            f"The quantization config of {path} cannot be used: {where}: {first['msg']}."
        ) from error
    _require_readable(path, scheme)
    return scheme


def _stated(path: Path) -> dict[str, Any] | None:
    for name in CONFIG_FILES:
        file = path / name
        if not file.is_file():
            continue
        try:
            values = json.loads(file.read_text(encoding="utf-8"))
        except (UnicodeDecodeError, json.JSONDecodeError) as error:
            raise HQError(f"{file} cannot be read: {first_line(error)}.") from error
        found = values.get("quantization_config") if name == "config.json" else values
        if isinstance(found, dict):
            return {"quant_method": "awq"} | found if name == "quant_config.json" else found
    return None


def _require_uniform(path: Path, stated: Mapping[str, Any]) -> None:
    """Raises HQError where some layers have bits or groups of their own.

    gptqmodel says so under `dynamic`, where a pattern that begins with "-:" is of a layer left
    dense, and auto-round under `extra_config`.
    """
    dynamic, extra = (stated.get(key) or {} for key in ("dynamic", "extra_config"))
    own = [name for name in dynamic if not name.startswith("-:")]
    own += [
        name
        for name, scheme in extra.items()
        if isinstance(scheme, dict) and scheme.get("bits", 16) not in (16, 32, stated.get("bits"))
    ]
    if own:
        raise HQError(
            f"{path} quantizes some layers in another way than the rest ({own[0]} first): hq reads "
            "checkpoints of one number of bits only."
        )


def _require_readable(path: Path, scheme: PackingScheme) -> None:
    if scheme.method == compressed.METHOD:
        return
    formats = ("", "gemm") if scheme.method == "awq" else ("", *ZERO_OFFSET)
    if scheme.format.lower() not in formats:
        raise HQError(
            f"{path} is in the {scheme.method} format {scheme.format!r}, which hq does not read: "
            f"save it as {formats[1]!r}."
        )
    if scheme.method == "awq" and scheme.bits != 4:
        raise HQError(f"{path} is AWQ of {scheme.bits} bits, which hq does not read: save 4.")
