"""The record of a baking: what was scaled, and all replaced bytes, which is enough to undo it."""

import base64
from pathlib import Path
from typing import Annotated, Literal, Self

import numpy as np
from jaxtyping import UInt8
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from hq.errors import HQError
from hq.neurons.factors import Factors
from hq.suppress.bake.strided_scales import FORMATS, Patch, StridedScales

RECORD_VERSION: Literal[1] = 1
Natural = Annotated[int, Field(ge=0)]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ScaledNeuron(_Frozen):
    """A neuron, and the α that multiplies its activation."""

    layer: Natural
    index: Natural
    alpha: Annotated[float, Field(ge=0)]


class ReplacedBytes(_Frozen):
    """The numbers of strided scales before baking; `original` is their bytes in base64."""

    tensor: str
    format: Literal["F16", "BF16", "F32"]
    start: Natural
    step: Natural
    count: Annotated[int, Field(gt=0)]
    original: str

    @model_validator(mode="after")
    def _require_length(self) -> Self:
        content = base64.b64decode(self.original, validate=True)
        nbytes = self.count * FORMATS[self.format].nbytes
        if len(content) != nbytes:
            raise ValueError(
                f"{self.count} numbers of {self.tensor} need {nbytes} bytes, not {len(content)}"
            )
        return self

    @property
    def patch(self) -> Patch:
        """The patch that restores the original bytes."""
        scales = StridedScales(self.tensor, self.format, self.start, self.step, self.count)
        content = np.frombuffer(base64.b64decode(self.original), np.uint8)
        return Patch(scales, content.reshape(self.count, -1))

    @classmethod
    def of(cls, scales: StridedScales, original: UInt8[np.ndarray, "n nbytes"]) -> Self:
        """The entry for strided scales and their original bytes."""
        return cls(
            tensor=scales.tensor,
            format=scales.number_format.name,
            start=scales.start,
            step=scales.stride,
            count=scales.count,
            original=base64.b64encode(original.tobytes()).decode(),
        )


class BakeRecord(_Frozen):
    """One baking: the scaled neurons, the version of hq, and how to undo it.

    `exact` is true if each number's product with its α is a number of its format, so that nothing
    was rounded. `sha256` has the digest of each changed file before baking, `padding` the bytes
    before the tensors of a GGUF file in hexadecimal digits, and `kept` the replaced bytes.
    """

    schema_version: Literal[1] = RECORD_VERSION
    hq: str
    neurons: Annotated[tuple[ScaledNeuron, ...], Field(min_length=1)]
    exact: bool
    sha256: dict[str, str]
    padding: Annotated[str, Field(pattern="^([0-9a-f]{2})*$")] = ""
    kept: tuple[ReplacedBytes, ...]

    @property
    def factors(self) -> Factors:
        """α by (layer, index)."""
        return {(neuron.layer, neuron.index): neuron.alpha for neuron in self.neurons}

    @classmethod
    def parse(cls, text: str, where: str) -> Self:
        """Read a record from JSON. Raises HQError, which names `where`, if the text is invalid."""
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            field = ".".join(map(str, first["loc"])) or "the record"
            raise HQError(
                f"{where} has a baking record that this version of hq cannot read: {field}: "
                f"{first['msg']}."
            ) from error


def changed_since_baked(path: Path) -> HQError:
    """The error for a model that was edited after it was baked."""
    return HQError(
        f"{path} was changed after it was baked, so the original cannot be restored from it: use "
        "the model that `hq bake` wrote."
    )
