"""One projection of a packed checkpoint, as it is stored, and the weights that it stands for."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float, Int
from pydantic import AliasChoices, BaseModel, ConfigDict, Field, field_validator
from torch import Tensor

from hq.errors import HQError
from hq.precisions.packed_checkpoints.layout import (
    WORD,
    awq_dense,
    compressed_dense,
    gptq_dense,
    gptq_zeros,
    unpack,
)

ZERO_OFFSET = {"gptq": 1, "gptq_v2": 0}  # what format v1 subtracts from a zero point
_BITS = (2, 3, 4, 8)


class PackingScheme(BaseModel):
    """How a checkpoint says that its layers are quantized."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    method: Literal["gptq", "awq", "compressed-tensors"] = Field(
        default="gptq", validation_alias=AliasChoices("quant_method", "method")
    )
    bits: Literal[2, 3, 4, 8] = Field(validation_alias=AliasChoices("bits", "w_bit"))
    group_size: int = Field(validation_alias=AliasChoices("group_size", "q_group_size"))
    desc_act: bool = False
    static_groups: bool = False  # groups are in the order of inputs even with desc_act
    sym: bool = True
    format: str = Field(
        default="", validation_alias=AliasChoices("checkpoint_format", "version", "format")
    )

    @field_validator("method", "format", mode="before")
    @classmethod
    def _any_case(cls, value: object) -> object:
        return value.lower() if isinstance(value, str) else value

    def __str__(self) -> str:
        """As tables name it: gptq 4 bit g64 sym."""
        group = f"g{self.group_size}" if self.group_size > 0 else "one group"
        marks = " act-order" if self.desc_act else ""
        symmetric = "sym" if self.sym and self.method != "awq" else "asym"
        return f"{self.method} {self.bits} bit {group} {symmetric}{marks}"


@dataclass(frozen=True)
class PackedLayer:
    """One quantized projection as it is stored."""

    PARTS: ClassVar[tuple[str, ...]] = ("qweight", "qzeros", "scales", "g_idx")
    SCALES: ClassVar = "scales"
    NEEDED: ClassVar = {True: 3, False: 3}  # how many of them none lacks, symmetric or not

    name: str
    scheme: PackingScheme
    tensors: Mapping[str, Tensor]
    zero_offset: int | None = None  # as derived from the weights; None: as the config states

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
        self.require_fit()
        dense = self._dense()
        if not torch.isfinite(dense).all():
            raise HQError(f"{self.name} has scales that are not finite: quantize it again.")
        return dense

    def require_fit(self) -> None:
        """Raises HQError where a tensor is of another shape than the config says."""
        for part, shape in self._wanted().items():
            found = tuple(self.tensors[part].shape)
            if found != shape and self._other_bits() is not None:
                raise HQError(
                    f"{self.name} is packed in {self._other_bits()} bits, but its config says "
                    f"{self.scheme}: hq reads checkpoints of one number of bits only."
                )
            if found != shape:
                raise HQError(
                    f"{self.name}.{part} has the shape {found}, not {shape}: its config says "
                    f"{self.scheme}, which is of another checkpoint."
                )

    def rounding(self, dense: Float[Tensor, "d_out d_in"]) -> float:
        """The relative error that rounding to the nearest code gives, from scales and weights.

        A code's error is uniform, so its standard deviation is the scale over the root of 12.
        """
        scales = self.tensors[self.SCALES].float()
        return float(scales.square().mean().sqrt() / dense.square().mean().sqrt()) / 12**0.5

    def zeros_fit(self, offset: int) -> bool:
        """Whether, read with this offset, all zero points lie in the middle: symmetric ones do."""
        zeros = gptq_zeros(self.tensors["qzeros"], self.scheme.bits, self.d_out, offset)
        return bool((zeros == 1 << self.scheme.bits - 1).all())

    def mean_code(self, offset: int) -> float:
        """Mean of the codes less their zero points: near 0 when these are read rightly, else ±1.

        Weights of a projection are spread around zero. Measured on real ones (50 matrices,
        asymmetric): within 0.02 at 4 bits, and within 0.25 at 8.
        """
        codes = unpack(self.tensors["qweight"], self.scheme.bits, self.d_in)
        zeros = gptq_zeros(self.tensors["qzeros"], self.scheme.bits, self.d_out, offset)
        return float(codes.double().mean() - zeros.double().mean())

    def _dense(self) -> Float[Tensor, "d_out d_in"]:
        part = self.tensors
        if self.scheme.method == "awq":
            return awq_dense(part["qweight"], part["qzeros"], part["scales"])
        offset = self.zero_offset
        if offset is None:
            offset = ZERO_OFFSET[self.scheme.format or "gptq"]
        return gptq_dense(
            part["qweight"], part["qzeros"], part["scales"], self._order(), self.scheme.bits, offset
        )

    def _order(self) -> Int[Tensor, " d_in"]:
        """The group of each input. HQError where the stored order cannot be the checkpoint's."""
        groups, ordered = len(self.tensors["scales"]), self._ordered()
        order = self.tensors.get("g_idx")
        if order is None and self.scheme.desc_act and groups > 1:
            raise HQError(
                f"{self.name}.g_idx is missing, without which nobody knows the order of inputs "
                "(desc_act): copy the checkpoint again."
            )
        if order is None:
            return ordered
        last = int(order.max())
        if not 0 <= int(order.min()) <= last < groups:
            raise HQError(
                f"{self.name}.g_idx names group {last} of {groups}: the checkpoint is damaged, "
                "copy it again."
            )
        found, wanted = (torch.bincount(each, minlength=groups) for each in (order, ordered))
        if not torch.equal(found, wanted):
            worst = int((found - wanted).abs().argmax())
            raise HQError(
                f"{self.name}.g_idx puts {found[worst]} inputs into group {worst}, not "
                f"{wanted[worst]}: the order was lost, copy the checkpoint again."
            )
        lost = self.scheme.desc_act and not self.scheme.static_groups
        if lost and groups > 1 and torch.equal(order.long(), ordered):
            raise HQError(
                f"{self.name}.g_idx has the inputs in their own order, but its config says "
                "desc_act: the order was lost, or static_groups is missing in the config."
            )
        return order

    def _other_bits(self) -> int | None:
        """The bits of the codes, by their zero points' words, where the config has others."""
        if self.scheme.method == "awq":
            return None
        words = self.tensors["qzeros"].shape[-1]
        fitting = [bits for bits in _BITS if -(-self.d_out * bits // WORD) == words]
        return fitting[0] if len(fitting) == 1 and fitting[0] != self.scheme.bits else None

    def _ordered(self) -> Tensor:
        """g_idx where a checkpoint leaves it out: groups in order."""
        return torch.arange(self.d_in) // self._group

    @property
    def _group(self) -> int:
        return self.scheme.group_size if self.scheme.group_size > 0 else self.d_in

    def _wanted(self) -> dict[str, tuple[int, ...]]:
        """The shape of each part."""
        bits, groups = self.scheme.bits, -(-self.d_in // self._group)
        awq = self.scheme.method == "awq"
        return {
            "qweight": (self.d_in, self.d_out * bits // WORD)
            if awq
            else (self.d_in * bits // WORD, self.d_out),
            "qzeros": (groups, -(-self.d_out * bits // WORD)),
            "scales": (groups, self.d_out),
        } | ({"g_idx": (self.d_in,)} if "g_idx" in self.tensors else {})


@dataclass(frozen=True)
class CompressedLayer(PackedLayer):
    """One projection as compressed-tensors packs it: outputs are rows."""

    PARTS: ClassVar[tuple[str, ...]] = (
        *("weight_packed", "weight_scale", "weight_shape"),
        *("weight_zero_point", "weight_g_idx"),
    )
    SCALES: ClassVar = "weight_scale"
    NEEDED: ClassVar = {True: 3, False: 4}

    @property
    def d_in(self) -> int:
        """Inputs."""
        return self.tensors["weight_packed"].shape[-1] * WORD // self.scheme.bits

    @property
    def d_out(self) -> int:
        """Outputs."""
        return self.tensors["weight_packed"].shape[0]

    def _dense(self) -> Float[Tensor, "d_out d_in"]:
        part = self.tensors
        shape = part["weight_shape"].tolist()
        if shape != [self.d_out, self.d_in] or self.d_in % self._group:
            raise HQError(
                f"{self.name} is of the shape {shape}, which does not fill whole words and groups "
                f"of {self.scheme}: hq does not read such a checkpoint."
            )
        order = part.get("weight_g_idx")  # -1 throughout: set up, and never used
        if order is not None and not ((order == -1).all() or torch.equal(order, self._ordered())):
            raise HQError(
                f"{self.name} has its inputs in another order (weight_g_idx), which hq does not "
                "read: quantize with actorder 'weight' or none."
            )
        zeros = None if self.scheme.sym else part["weight_zero_point"]
        return compressed_dense(
            part["weight_packed"], part["weight_scale"], zeros, self.scheme.bits
        )

    def _other_bits(self) -> int | None:
        d_in = int(self.tensors["weight_shape"][-1])
        bits, rest = divmod(self.tensors["weight_packed"].shape[-1] * WORD, d_in)
        return bits if not rest and bits in _BITS and bits != self.scheme.bits else None

    def _wanted(self) -> dict[str, tuple[int, ...]]:
        groups = -(-self.d_in // self._group)
        zeros = (-(-self.d_out * self.scheme.bits // WORD), groups)
        return {
            "weight_packed": (self.d_out, self.d_in * self.scheme.bits // WORD),
            "weight_scale": (self.d_out, groups),
            "weight_shape": (2,),
        } | ({} if self.scheme.sym else {"weight_zero_point": zeros})
