"""bitsandbytes' saved int8, nf4 and fp4: a scale a row, or a scale a block of a row."""

import json
from typing import Any

import numpy as np
from jaxtyping import Float

from hq.errors import HQError
from hq.suppress.bake.scheme import SCHEMES, StoredTensors, number_format
from hq.suppress.bake.strided_scales import StridedScales

_KINDS = ("nf4", "fp4")


class EightBit:
    """LLM.int8(): row r is SCB[r] / 127 times its integers."""

    def strip(self, store: StoredTensors, projection: str, row: int) -> StridedScales:
        """The row's one scale."""
        scales = store.tensors[f"{projection}.SCB"]
        size = (scales.end - scales.start) // scales.shape[0]
        return StridedScales(scales.name, number_format(scales), row * size, size, 1)

    def row(
        self, store: StoredTensors, projection: str, row: int, numbers: Float[np.ndarray, " one"]
    ) -> Float[np.ndarray, " d_in"]:
        """Its integers, scaled."""
        name = f"{projection}.weight"
        codes = store.stored(name).view(np.int8).reshape(store.tensors[name].shape)[row]
        weights: Float[np.ndarray, " d_in"] = codes * numbers / 127
        return weights


class FourBit:
    """nf4 and fp4: the weights, row after row, in blocks that share one absmax."""

    def strip(self, store: StoredTensors, projection: str, row: int) -> StridedScales:
        """The row's blocks. HQError where a block reaches into another row, or absmax is packed."""
        state = _state(store, projection)
        d_in, size = state["shape"][1], state["blocksize"]
        absmax = store.tensors[f"{projection}.weight.absmax"]
        if absmax.dtype == "U8":
            raise HQError(
                f"{store.path} is double-quantized: the scales of {projection} are codes with one "
                "scale for many rows. Save it without bnb_4bit_use_double_quant."
            )
        if d_in % size:
            raise HQError(
                f"{store.path} has blocks of {size} weights and rows of {d_in} in {projection}, so "
                f"a block reaches into another row: quantize with a block size that divides {d_in}."
            )
        form = number_format(absmax)
        blocks = d_in // size
        nbytes = (absmax.end - absmax.start) // absmax.shape[0]
        return StridedScales(absmax.name, form, row * blocks * nbytes, nbytes, blocks)

    def row(
        self, store: StoredTensors, projection: str, row: int, numbers: Float[np.ndarray, " block"]
    ) -> Float[np.ndarray, " d_in"]:
        """The values of its codes, scaled; the first of two codes is in a byte's upper half."""
        d_in = _state(store, projection)["shape"][1]
        values = store.stored(f"{projection}.weight.quant_map").view("<f4").astype(np.float64)
        packed = store.stored(f"{projection}.weight")[row * d_in // 2 : (row + 1) * d_in // 2]
        codes = np.stack([packed >> 4, packed & 15], axis=1).ravel()
        weights: Float[np.ndarray, " d_in"] = values[codes] * np.repeat(
            numbers, d_in // len(numbers)
        )
        return weights


def _state(store: StoredTensors, projection: str) -> dict[str, Any]:
    """What bitsandbytes says beside the codes: blocksize and shape, [d_out, d_in]."""
    for kind in _KINDS:
        name = f"{projection}.weight.quant_state.bitsandbytes__{kind}"
        if name in store.tensors:
            try:
                state: dict[str, Any] = json.loads(store.stored(name).tobytes())
                _, _ = state["shape"]
                _ = state["blocksize"] + 1
            except (ValueError, KeyError, TypeError) as error:
                raise HQError(f"{store.path} has a damaged {name}: save it again.") from error
            return state
    raise HQError(f"{store.path} does not say how {projection} is quantized: save it again.")


SCHEMES.add("SCB", EightBit())
SCHEMES.add("weight.absmax", FourBit())
