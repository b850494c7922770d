"""A GGUF adapter for stock llama.cpp, exact on the very file that it is made for.

In a gated FFN h_i is linear in row i of the up projection: ΔW_up = (α₀ − 1)·E·W_up[H]. A holds
these rows as the base file stores them, so that llama.cpp computes up_i from A by the arithmetic
that it uses for the base, and B, one-hot, adds (α₀ − 1)·up_i to up_i. Rows in another type would
meet activations of another precision, and what is left of up_i would show in the logits. Where
llama.cpp repacks the base's rows for the processor (Q4_0), which it does not do to A, the last bit
of up_i can differ.

Without a gate, or with a bias on up, h_i is not linear in that row. What it writes is linear in
h_i: ΔW_down = (α₀ − 1)·W_down[:, H]·Eᵀ, with dequantized columns in B. That is right up to
rounding; a quantized base's own product rounds h to 8 bits, and the adapter's does not.
"""

from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int, UInt8

from hq.errors import HQError
from hq.gguf.file import GGUFFile
from hq.gguf.header import Tensor
from hq.gguf.types import TYPES, GGMLType
from hq.gguf.write import gguf_package
from hq.storage.atomic import atomic_file
from hq.suppress.lora.delta import LoraDelta, lora_deltas

_F32 = TYPES[0]
_TILE = 4  # llama.cpp multiplies dense matrices in tiles of rows; a rest is summed in another order
_NO_DIVISION = 0.0  # as adapter.lora.alpha: llama.cpp then does not divide by the rank


class _Product(NamedTuple):
    """ΔW = B·A of one tensor. A is rows of whole blocks of a type; B is float32."""

    tensor: str
    kind: GGMLType
    a: UInt8[np.ndarray, "rank nbytes"]
    b: Float[np.ndarray, "d_out rank"]


def write(base: GGUFFile, factors: Mapping[tuple[int, int], float], into: Path) -> None:
    """Writes the adapter that, at scale 1, makes h_i of each (layer, index) its α₀·h_i.

    `into` appears when it is whole. Raises HQError for what `lora_deltas` refuses, a type of
    weights that the installed `gguf` does not know, and where that is missing.
    """
    package = gguf_package()
    found = lora_deltas(factors, base.identity.space)
    with atomic_file(into) as path:
        writer = package.GGUFWriter(path, base.architecture)
        try:
            _describe(package, writer, base, found)
            for change in found:
                _add(package, writer, _product(base, change))
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
        finally:
            writer.close()


def _describe(package: ModuleType, writer: Any, base: GGUFFile, found: list[LoraDelta]) -> None:
    """What llama.cpp asks of an adapter, and what people may ask of this one."""
    keys, model = package.Keys, base.identity
    writer.add_type(package.GGUFType.ADAPTER)
    writer.add_string(keys.Adapter.TYPE, "lora")
    writer.add_float32(keys.Adapter.LORA_ALPHA, _NO_DIVISION)
    writer.add_name(f"{model.name} with scaled neurons")
    writer.add_base_model_count(1)
    writer.add_base_model_name(0, model.name)
    writer.add_string("hq.suppress.lora.base", base.fingerprint)
    writer.add_array("hq.suppress.lora.layers", [c.layer for c in found for _ in c.neurons])
    writer.add_array("hq.suppress.lora.neurons", [i for c in found for i in c.neurons])
    writer.add_array("hq.suppress.lora.alphas", [1 + gain for c in found for gain in c.gains])


def _product(base: GGUFFile, change: LoraDelta) -> _Product:
    up = base.tensors[f"blk.{change.layer}.ffn_up.weight"]
    offset = up.shape[1] - base.d_ff  # a fused gate comes first
    rows = np.array(change.neurons) + offset
    if not _linear(base, up, rows):
        return _of_down(base, change)
    spare = -change.rank % _TILE if up.type.weights == 1 else 0
    a = np.pad(base.rows(up.name)[rows], ((0, spare), (0, 0)))
    b = np.pad(change.one_hot(up.shape[1], offset), ((0, spare), (0, 0))).T
    return _Product(up.name, up.type, a, np.ascontiguousarray(b))


def _linear(base: GGUFFile, up: Tensor, rows: Int[np.ndarray, " rank"]) -> bool:
    """Whether the products of these rows of the up projection are linear in them."""
    bias = up.name.replace("weight", "bias")
    biased = bias in base.tensors and base.dense(bias)[0, rows].any()
    gated = up.shape[1] > base.d_ff or up.name.replace("up", "gate") in base.tensors
    return gated and not biased


def _of_down(base: GGUFFile, change: LoraDelta) -> _Product:
    name = f"blk.{change.layer}.ffn_down.weight"
    columns = np.ascontiguousarray(base.dense(name)[:, change.neurons])
    return _Product(name, _F32, change.one_hot(base.d_ff).view(np.uint8), columns)


def _add(package: ModuleType, writer: Any, product: _Product) -> None:
    try:
        kind = package.GGMLQuantizationType(product.kind.number)
    except ValueError as error:
        raise HQError(
            f"The installed gguf package does not write {product.kind.name}: upgrade it."
        ) from error
    writer.add_tensor(f"{product.tensor}.lora_a", product.a, raw_dtype=kind)
    writer.add_tensor(f"{product.tensor}.lora_b", product.b)
