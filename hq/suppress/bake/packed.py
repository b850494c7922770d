"""Packed weights: output i has a scale of its own in every group of inputs.

GPTQ and AWQ have them in column i of `scales`, compressed-tensors in row i of `weight_scale`.
"""

from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float, Int

from hq.precisions.packed_checkpoints.checkpoint import PackedCheckpoint, packing_scheme
from hq.precisions.packed_checkpoints.layer import PackedLayer
from hq.precisions.packed_checkpoints.layout import WORD
from hq.suppress.bake.scheme import SCHEMES, StoredTensors, number_format
from hq.suppress.bake.strided_scales import StridedScales


class Packed:
    """Weights are s·(q − z): codes and zero points stay."""

    def strip(self, store: StoredTensors, projection: str, row: int) -> StridedScales:
        """The row's scale in each group. HQError for a format whose scales stand in another order.

        Kernels of other formats (marlin) permute them; hq reads none of those.
        """
        packing_scheme(store.path)
        scales = store.tensors[f"{projection}.scales"]
        form = number_format(scales)
        groups, d_out = scales.shape
        size = (scales.end - scales.start) // (groups * d_out)
        return StridedScales(scales.name, form, row * size, d_out * size, groups)

    def row(
        self, store: StoredTensors, projection: str, row: int, numbers: Float[np.ndarray, " group"]
    ) -> Float[np.ndarray, " d_in"]:
        """The codes less their zero points, times the scale of their group."""
        layer = _around(PackedCheckpoint(store.path).layer(projection), row)
        codes = layer.dense()[row % WORD].numpy()
        weights: Float[np.ndarray, " d_in"] = codes * numbers[_groups(layer)]
        return weights


def _around(layer: PackedLayer, row: int) -> PackedLayer:
    """Only the 32 outputs around one, which begin and end with a word, and scales of 1."""
    first, bits = row // WORD, layer.scheme.bits
    outputs, words = (slice(first * n, (first + 1) * n) for n in (WORD, bits))
    part = dict(layer.tensors)
    part["qweight"] = part["qweight"][:, words if layer.scheme.method == "awq" else outputs]
    part["qzeros"] = part["qzeros"][:, words]
    part["scales"] = torch.ones_like(part["scales"][:, outputs])
    return replace(layer, tensors=part)


def _groups(layer: PackedLayer) -> Int[np.ndarray, " d_in"]:
    """The group of each input."""
    if "g_idx" in layer.tensors:
        return layer.tensors["g_idx"].numpy()
    return np.arange(layer.d_in) * len(layer.tensors["scales"]) // layer.d_in


class Compressed:
    """The same in rows: codes stay."""

    def strip(self, store: StoredTensors, projection: str, row: int) -> StridedScales:
        """The row's scale in each group. HQError for a format that hq does not read."""
        packing_scheme(store.path)
        scales = store.tensors[f"{projection}.weight_scale"]
        form = number_format(scales)
        d_out, groups = scales.shape
        size = (scales.end - scales.start) // (groups * d_out)
        return StridedScales(scales.name, form, row * groups * size, size, groups)

    def row(
        self, store: StoredTensors, projection: str, row: int, numbers: Float[np.ndarray, " group"]
    ) -> Float[np.ndarray, " d_in"]:
        """The codes, less what stands for zero, times the scale of their group."""
        layer = PackedCheckpoint(store.path).layer(projection)
        ones = {"weight_scale": torch.ones_like(layer.tensors["weight_scale"])}
        codes = replace(layer, tensors={**layer.tensors, **ones}).dense()[row].numpy()
        weights: Float[np.ndarray, " d_in"] = codes * numbers.repeat(layer.d_in // len(numbers))
        return weights


SCHEMES.add("qweight", Packed())
SCHEMES.add("weight_packed", Compressed())
