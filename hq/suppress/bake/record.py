"""What baking did to a model, and every byte that it replaced: enough to undo it."""

import base64
from typing import Annotated, Literal, Self

import numpy as np
from jaxtyping import UInt8
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from hq.errors import HQError
from hq.suppress.bake.numbers import FORMATS
from hq.suppress.bake.strided_scales import Patch, StridedScales

SCHEMA_VERSION: Literal[1] = 1
Natural = Annotated[int, Field(ge=0)]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Scaled(_Frozen):
    """A neuron and the α that its product was multiplied by."""

    layer: Natural
    index: Natural
    alpha: Annotated[float, Field(ge=0)]


class ReplacedBytes(_Frozen):
    """A strip's numbers as they were; `original` is their bytes in base64."""

    tensor: str
    format: Literal["F16", "BF16", "F32"]
    start: Natural
    step: Natural
    count: Annotated[int, Field(gt=0)]
    original: str

    @model_validator(mode="after")
    def _whole(self) -> Self:
        content = base64.b64decode(self.original, validate=True)
        if len(content) != self.count * FORMATS[self.format].nbytes:
            raise ValueError(f"{self.count} numbers of {self.tensor} are not whole")
        return self

    @property
    def patch(self) -> Patch:
        """What puts them back."""
        strip = StridedScales(self.tensor, self.format, self.start, self.step, self.count)
        content = np.frombuffer(base64.b64decode(self.original), np.uint8)
        return Patch(strip, content.reshape(self.count, -1))

    @classmethod
    def of(cls, strip: StridedScales, original: UInt8[np.ndarray, "n nbytes"]) -> Self:
        """The strip, with its bytes."""
        return cls(
            tensor=strip.tensor,
            format=strip.form.name,
            start=strip.start,
            step=strip.step,
            count=strip.count,
            original=base64.b64encode(original.tobytes()).decode(),
        )


class BakeRecord(_Frozen):
    """One baking: of which neurons, by which hq, and how to undo it.

    `exact` says that every number's product with its α is a number of its format, so that nothing
    was rounded. `sha256` is that of each file which changed, as it was before; `padding` the bytes
    before a GGUF file's tensors, in hexadecimal digits.
    """

    schema_version: Literal[1] = SCHEMA_VERSION
    hq: str
    neurons: Annotated[tuple[Scaled, ...], Field(min_length=1)]
    exact: bool
    sha256: dict[str, str]
    padding: Annotated[str, Field(pattern="^([0-9a-f]{2})*$")] = ""
    kept: tuple[ReplacedBytes, ...]

    @property
    def factors(self) -> dict[tuple[int, int], float]:
        """α by (layer, index)."""
        return {(n.layer, n.index): n.alpha for n in self.neurons}

    @classmethod
    def parse(cls, text: str, where: str) -> Self:
        """The record in a JSON text; HQError, naming `where` it stands, for what is none."""
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            place = ".".join(map(str, first["loc"])) or "the record"
            raise HQError(
                f"{where} holds a record of baking that this hq cannot read: {place}: "
                f"{first['msg']}."
            ) from error
