"""How checkpoints store the weight of a projection, and which stored numbers scale one row alone.

Dense weights, GPTQ, AWQ, compressed-tensors, and bitsandbytes' int8, nf4 and fp4.
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8

from hq.errors import HQError
from hq.models.checkpoint import StoredTensor
from hq.precisions.packed_checkpoints.checkpoint import PackedCheckpoint, packing_scheme
from hq.precisions.packed_checkpoints.layer import PackedLayer
from hq.precisions.packed_checkpoints.layout import WORD
from hq.registry import Registry
from hq.suppress.bake.strided_scales import StridedScales

_FLOATS = ("F32", "F16", "BF16")
_FOUR_BIT_TYPES = ("nf4", "fp4")


class StoredTensors(Protocol):
    """What a scheme needs of a checkpoint."""

    path: Path
    tensors: Mapping[str, StoredTensor]
    transposed: bool  # dense weights are [d_in, d_out]

    def tensor_bytes(self, tensor: str) -> UInt8[np.ndarray, " byte"]:
        """The bytes of a tensor."""
        ...


class StorageScheme(Protocol):
    """A way to store the weight of a projection, [d_out, d_in]."""

    def row_scales(self, store: StoredTensors, projection: str, row: int) -> StridedScales:
        """The stored numbers that a row is proportional to.

        Raises HQError if they scale other rows too.
        """
        ...

    def row_weights(
        self, store: StoredTensors, projection: str, row: int, scales: Float[np.ndarray, " n"]
    ) -> Float[np.ndarray, " d_in"]:
        """The weights of a row whose stored numbers are `scales`."""
        ...


class DenseScheme:
    """Plain floating-point numbers; some families store them transposed, [d_in, d_out]."""

    def row_scales(self, store: StoredTensors, projection: str, row: int) -> StridedScales:
        """The row itself."""
        return matrix_line(store.tensors[f"{projection}.weight"], row, store.transposed)

    def row_weights(
        self, store: StoredTensors, projection: str, row: int, scales: Float[np.ndarray, " d_in"]
    ) -> Float[np.ndarray, " d_in"]:
        """The numbers."""
        return scales


class PackedScheme:
    """GPTQ and AWQ: W = s·(q − z), the scales of output i in column i of `scales`."""

    def row_scales(self, store: StoredTensors, projection: str, row: int) -> StridedScales:
        """The scale of the row in each group of inputs.

        Raises HQError for formats that hq does not read: kernel formats (Marlin) permute scales.
        """
        packing_scheme(store.path)
        scales = store.tensors[f"{projection}.scales"]
        groups, d_out = scales.shape
        nbytes = _item_bytes(scales)
        return StridedScales(
            scales.name, float_format(scales), row * nbytes, d_out * nbytes, groups
        )

    def row_weights(
        self, store: StoredTensors, projection: str, row: int, scales: Float[np.ndarray, " group"]
    ) -> Float[np.ndarray, " d_in"]:
        """Codes minus zero points, times the scale of their group."""
        layer = _unscaled_outputs(PackedCheckpoint(store.path).layer(projection), row)
        codes = layer.dense()[row % WORD].numpy()
        weights: Float[np.ndarray, " d_in"] = codes * scales[_groups(layer)]
        return weights


def _unscaled_outputs(layer: PackedLayer, row: int) -> PackedLayer:
    """The 32 outputs around a row, which begin and end at a word boundary, with scales of 1."""
    first, bits = row // WORD, layer.scheme.bits
    outputs, words = (slice(first * n, (first + 1) * n) for n in (WORD, bits))
    tensors = dict(layer.tensors)
    tensors["qweight"] = tensors["qweight"][:, words if layer.scheme.method == "awq" else outputs]
    tensors["qzeros"] = tensors["qzeros"][:, words]
    tensors["scales"] = torch.ones_like(tensors["scales"][:, outputs])
    return replace(layer, tensors=tensors)


def _groups(layer: PackedLayer) -> Int[np.ndarray, " d_in"]:
    """The group of each input."""
    if "g_idx" in layer.tensors:
        return layer.tensors["g_idx"].numpy()
    return np.arange(layer.d_in) * len(layer.tensors["scales"]) // layer.d_in


class CompressedScheme:
    """compressed-tensors: W = s·(q − z), the scales of output i in row i of `weight_scale`."""

    def row_scales(self, store: StoredTensors, projection: str, row: int) -> StridedScales:
        """The scale of the row in each group. Raises HQError for formats that hq does not read."""
        packing_scheme(store.path)
        scales = store.tensors[f"{projection}.weight_scale"]
        nbytes, groups = _item_bytes(scales), scales.shape[1]
        return StridedScales(
            scales.name, float_format(scales), row * groups * nbytes, nbytes, groups
        )

    def row_weights(
        self, store: StoredTensors, projection: str, row: int, scales: Float[np.ndarray, " group"]
    ) -> Float[np.ndarray, " d_in"]:
        """Codes minus zero points, times the scale of their group."""
        layer = PackedCheckpoint(store.path).layer(projection)
        ones = {"weight_scale": torch.ones_like(layer.tensors["weight_scale"])}
        codes = replace(layer, tensors={**layer.tensors, **ones}).dense()[row].numpy()
        weights: Float[np.ndarray, " d_in"] = codes * scales.repeat(layer.d_in // len(scales))
        return weights


class Int8Scheme:
    """LLM.int8() of bitsandbytes: row r is SCB[r] / 127 times its codes."""

    def row_scales(self, store: StoredTensors, projection: str, row: int) -> StridedScales:
        """The one scale of the row."""
        return vector_number(store.tensors[f"{projection}.SCB"], row)

    def row_weights(
        self, store: StoredTensors, projection: str, row: int, scales: Float[np.ndarray, " one"]
    ) -> Float[np.ndarray, " d_in"]:
        """The codes, times the scale."""
        name = f"{projection}.weight"
        codes = store.tensor_bytes(name).view(np.int8).reshape(store.tensors[name].shape)[row]
        weights: Float[np.ndarray, " d_in"] = codes * scales / 127
        return weights


class FourBitScheme:
    """nf4 and fp4 of bitsandbytes: the rows one after the other, in blocks with one absmax each."""

    def row_scales(self, store: StoredTensors, projection: str, row: int) -> StridedScales:
        """The absmax of each block of the row.

        Raises HQError if a block extends into another row, or if absmax is quantized itself.
        """
        state = _quant_state(store, projection)
        d_in, block_size = state["shape"][1], state["blocksize"]
        absmax = store.tensors[f"{projection}.weight.absmax"]
        if absmax.dtype == "U8":
            raise HQError(
                f"{store.path} is double-quantized: the scales of {projection} are codes that "
                "share one scale with other rows; save it without bnb_4bit_use_double_quant."
            )
        if d_in % block_size:
            raise HQError(
                f"{store.path} has blocks of {block_size} weights and rows of {d_in} in "
                f"{projection}, so a block extends into another row: quantize with a block size "
                f"that divides {d_in}."
            )
        blocks, nbytes = d_in // block_size, _item_bytes(absmax)
        return StridedScales(
            absmax.name, float_format(absmax), row * blocks * nbytes, nbytes, blocks
        )

    def row_weights(
        self, store: StoredTensors, projection: str, row: int, scales: Float[np.ndarray, " block"]
    ) -> Float[np.ndarray, " d_in"]:
        """The value of each code, times the absmax of its block."""
        d_in = _quant_state(store, projection)["shape"][1]
        values = store.tensor_bytes(f"{projection}.weight.quant_map").view("<f4").astype(np.float64)
        packed = store.tensor_bytes(f"{projection}.weight")
        packed = packed[row * d_in // 2 : (row + 1) * d_in // 2]
        codes = np.stack([packed >> 4, packed & 15], axis=1).ravel()
        weights: Float[np.ndarray, " d_in"] = values[codes] * np.repeat(scales, d_in // len(scales))
        return weights


def _quant_state(store: StoredTensors, projection: str) -> dict[str, Any]:
    """The state that bitsandbytes stores beside codes: `blocksize`, and `shape` [d_out, d_in]."""
    for kind in _FOUR_BIT_TYPES:
        name = f"{projection}.weight.quant_state.bitsandbytes__{kind}"
        if name in store.tensors:
            try:
                state: dict[str, Any] = json.loads(store.tensor_bytes(name).tobytes())
                _, _ = state["shape"]
                _ = state["blocksize"] + 1
            except (ValueError, KeyError, TypeError) as error:
                raise HQError(f"{store.path} has a damaged {name}: save it again.") from error
            return state
    raise HQError(
        f"{store.path} lacks the quantization state of {projection}: save the checkpoint again."
    )


# By the suffix of a tensor that only this scheme has; `weight` is last, as others may have it too.
STORAGE_SCHEMES: Registry[StorageScheme] = Registry("storage scheme")
STORAGE_SCHEMES.add("qweight", PackedScheme())
STORAGE_SCHEMES.add("weight_packed", CompressedScheme())
STORAGE_SCHEMES.add("SCB", Int8Scheme())
STORAGE_SCHEMES.add("weight.absmax", FourBitScheme())
STORAGE_SCHEMES.add("weight", DenseScheme())


def storage_scheme(store: StoredTensors, projection: str) -> StorageScheme:
    """The scheme of a projection. Raises HQError for one that hq does not know."""
    for suffix in STORAGE_SCHEMES:
        if f"{projection}.{suffix}" in store.tensors:
            return STORAGE_SCHEMES[suffix]
    raise HQError(
        f"{store.path} lacks {projection}.weight: it is incomplete, or stored in a format that hq "
        "does not know."
    )


def matrix_line(matrix: StoredTensor, index: int, column: bool) -> StridedScales:
    """A row of a matrix of plain numbers, or a column."""
    rows, columns = matrix.shape
    number_format, nbytes = float_format(matrix), _item_bytes(matrix)
    if column:
        return StridedScales(matrix.name, number_format, index * nbytes, columns * nbytes, rows)
    return StridedScales(matrix.name, number_format, index * columns * nbytes, nbytes, columns)


def vector_number(vector: StoredTensor, index: int) -> StridedScales:
    """One number of a vector: of a bias, or of scales."""
    nbytes = _item_bytes(vector)
    return StridedScales(vector.name, float_format(vector), index * nbytes, nbytes, 1)


def float_format(tensor: StoredTensor) -> str:
    """The name of the format of a tensor of plain numbers. Raises HQError for other tensors."""
    if tensor.dtype not in _FLOATS:
        raise HQError(
            f"{tensor.file.parent} has {tensor.name} in {tensor.dtype}, into which α cannot be "
            "baked: save it in float32, float16 or bfloat16."
        )
    return tensor.dtype


def _item_bytes(tensor: StoredTensor) -> int:
    return (tensor.end - tensor.start) // int(np.prod(tensor.shape))
