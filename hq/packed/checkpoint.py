"""A GPTQ or AWQ checkpoint: what its config states, and its layers, checked against each other."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from pydantic import AliasChoices, BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from hq.checkpoint import first_line, read_tensor, tensor_files
from hq.errors import HQError
from hq.packed.layout import WORD, awq_dense, gptq_dense

CONFIG_FILES = ("config.json", "quantize_config.json", "quant_config.json")
_PARTS = ("qweight", "qzeros", "scales", "g_idx")
_ZERO_OFFSET = {"gptq": 1, "gptq_v2": 0}


class Scheme(BaseModel):
    """How a checkpoint says that its layers are quantized."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    method: Literal["gptq", "awq"] = Field(
        default="gptq", validation_alias=AliasChoices("quant_method", "method")
    )
    bits: Literal[2, 3, 4, 8] = Field(validation_alias=AliasChoices("bits", "w_bit"))
    group_size: int = Field(validation_alias=AliasChoices("group_size", "q_group_size"))
    desc_act: bool = False
    sym: bool = True
    format: str = Field(
        default="", validation_alias=AliasChoices("checkpoint_format", "version", "format")
    )

    def __str__(self) -> str:
        """As tables name it: gptq 4 bit g64 sym."""
        group = f"g{self.group_size}" if self.group_size > 0 else "one group"
        marks = " act-order" if self.desc_act else ""
        symmetric = "sym" if self.sym and self.method == "gptq" else "asym"
        return f"{self.method} {self.bits} bit {group} {symmetric}{marks}"


@dataclass(frozen=True)
class PackedLayer:
    """One quantized projection as it is stored."""

    name: str
    scheme: Scheme
    tensors: Mapping[str, Tensor]

    @property
    def nbytes(self) -> int:
        """Bytes of codes, zero points, scales and order."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    @property
    def d_in(self) -> int:
        """Inputs."""
        rows = self.tensors["qweight"].shape[0]
        return rows if self.scheme.method == "awq" else rows * WORD // self.scheme.bits

    @property
    def d_out(self) -> int:
        """Outputs."""
        return self.tensors["scales"].shape[1]

    def dense(self) -> Float[Tensor, "d_out d_in"]:
        """The weights that the codes stand for, float32. HQError where tensors do not fit."""
        self._require_fit()
        part = self.tensors
        if self.scheme.method == "awq":
            found = awq_dense(part["qweight"], part["qzeros"], part["scales"])
        else:
            offset = _ZERO_OFFSET[self.scheme.format or "gptq"]
            found = gptq_dense(
                part["qweight"],
                part["qzeros"],
                part["scales"],
                part.get("g_idx", self._ordered()),
                self.scheme.bits,
                offset,
            )
        if not torch.isfinite(found).all():
            raise HQError(f"{self.name} has scales that are not finite: quantize it again.")
        return found

    def _ordered(self) -> Tensor:
        """g_idx where a checkpoint leaves it out: groups in order."""
        return torch.arange(self.d_in) // self._group

    @property
    def _group(self) -> int:
        return self.scheme.group_size if self.scheme.group_size > 0 else self.d_in

    def _require_fit(self) -> None:
        bits, groups = self.scheme.bits, -(-self.d_in // self._group)
        awq = self.scheme.method == "awq"
        wanted = {
            "qweight": (self.d_in, self.d_out * bits // WORD)
            if awq
            else (self.d_in * bits // WORD, self.d_out),
            "qzeros": (groups, -(-self.d_out * bits // WORD)),
            "scales": (groups, self.d_out),
        } | ({"g_idx": (self.d_in,)} if "g_idx" in self.tensors else {})
        for part, shape in wanted.items():
            found = tuple(self.tensors[part].shape)
            if found != shape:
                raise HQError(
                    f"{self.name}.{part} has the shape {found}, not {shape}: its config says "
                    f"{self.scheme}, which is of another checkpoint."
                )
        order = self.tensors.get("g_idx")
        if order is not None and not 0 <= int(order.min()) <= int(order.max()) < groups:
            raise HQError(
                f"{self.name}.g_idx names group {int(order.max())} of {groups}: the checkpoint is "
                "damaged, copy it again."
            )


class PackedCheckpoint:
    """A folder of packed weights. HQError for one that is none, or that this cannot read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.scheme = scheme_of(path)
        self._places = tensor_files(path)

    @cached_property
    def names(self) -> list[str]:
        """The quantized projections."""
        found = [n.removesuffix(".qweight") for n in self._places if n.endswith(".qweight")]
        if not found:
            raise HQError(
                f"{self.path} says {self.scheme}, but no tensor in it is packed: it is another "
                "checkpoint's config."
            )
        return found

    def layer(self, name: str) -> PackedLayer:
        """One projection. HQError where a part of it is missing."""
        for part in _PARTS[:3]:
            if f"{name}.{part}" not in self._places:
                raise HQError(f"{self.path} lacks {name}.{part}: the checkpoint is incomplete.")
        parts = {p: self._tensor(f"{name}.{p}") for p in _PARTS if f"{name}.{p}" in self._places}
        return PackedLayer(name, self.scheme, parts)

    def layers(self) -> Iterator[PackedLayer]:
        """All of them, one at a time."""
        return map(self.layer, self.names)

    def others(self) -> dict[str, Tensor]:
        """Every tensor that belongs to no packed projection: embeddings, norms, biases."""
        packed = {f"{name}.{part}" for name in self.names for part in _PARTS}
        return {name: self._tensor(name) for name in self._places if name not in packed}

    def _tensor(self, name: str) -> Tensor:
        return read_tensor(self._places[name], name)


def scheme_of(path: Path) -> Scheme:
    """What a folder says of how it is quantized: in config.json, or in a file of its own.

    auto-gptq writes quantize_config.json alone, of which transformers takes no notice: it would
    load a random model. Raises HQError where nothing is said, or something that hq cannot read.
    """
    stated = _stated(path)
    if stated is None:
        raise HQError(f"{path} does not say that it is quantized: it is no GPTQ or AWQ checkpoint.")
    try:
        scheme = Scheme.model_validate(stated)
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


def _require_readable(path: Path, scheme: Scheme) -> None:
    formats = ("", "gemm") if scheme.method == "awq" else ("", *_ZERO_OFFSET)
    if scheme.format.lower() not in formats:
        raise HQError(
            f"{path} is in the {scheme.method} format {scheme.format!r}, which hq does not read: "
            f"save it as {formats[1]!r}."
        )
    if scheme.method == "awq" and scheme.bits != 4:
        raise HQError(f"{path} is AWQ of {scheme.bits} bits, which hq does not read: save 4.")
