"""A GGUF adapter for stock llama.cpp, exact on the file that it is made for.

In a gated FFN, h_i is linear in row i of the up projection: ΔW_up = (α₀ − 1)·E·W_up[H]. A has these
rows as the base file stores them, so that llama.cpp computes up_i from A with the same arithmetic
as from the base, and B, one-hot, adds (α₀ − 1)·up_i to up_i. With another type, activations would
have another precision, and the difference would show in the logits. If llama.cpp repacks the rows
of the base for the processor (Q4_0), which it does not do with A, the last bit of up_i can differ.

Without a gate, or with a bias on up, h_i is not linear in that row, but the output is linear in
h_i: ΔW_down = (α₀ − 1)·W_down[:, H]·Eᵀ, with dequantized columns in B. This is correct up to
rounding: the product of a quantized base rounds h to 8 bits, and that of the adapter does not.
"""

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
from hq.neurons.factors import Factors
from hq.storage.atomic import atomic_file
from hq.suppress.lora.delta import LoraDelta, lora_deltas

_F32 = TYPES[0]
_TILE = 4  # rows that llama.cpp multiplies together; others are summed in another order
_NO_DIVISION = 0.0  # of adapter.lora.alpha: llama.cpp then does not divide by the rank


class _Product(NamedTuple):
    """ΔW = B·A of one tensor; the rows of A are blocks of a GGUF type, and B is float32."""

    tensor: str
    kind: GGMLType
    a: UInt8[np.ndarray, "rank nbytes"]
    b: Float[np.ndarray, "d_out rank"]


def write_gguf_adapter(base: GGUFFile, factors: Factors, into: Path) -> None:
    """Write the adapter that multiplies h_i of each (layer, index) by α₀ at scale 1.

    `into` appears when it is complete. Raises HQError if `lora_deltas` does, for a type of weights
    that the installed package `gguf` does not know, and if that package is missing.
    """
    package = gguf_package()
    deltas = lora_deltas(factors, base.n_layers, base.d_ff)
    with atomic_file(into) as path:
        writer = package.GGUFWriter(path, base.architecture)
        try:
            _describe(package, writer, base, deltas)
            for delta in deltas:
                _add(package, writer, _product(base, delta))
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
        finally:
            writer.close()


def _describe(package: ModuleType, writer: Any, base: GGUFFile, deltas: list[LoraDelta]) -> None:
    """Write the metadata that llama.cpp requires, and what the adapter scales."""
    keys, model = package.Keys, base.identity
    writer.add_type(package.GGUFType.ADAPTER)
    writer.add_string(keys.Adapter.TYPE, "lora")
    writer.add_float32(keys.Adapter.LORA_ALPHA, _NO_DIVISION)
    writer.add_name(f"{model.name} with scaled neurons")
    writer.add_base_model_count(1)
    writer.add_base_model_name(0, model.name)
    writer.add_string("hq.lora.base", base.fingerprint)
    writer.add_array("hq.lora.layers", [d.layer for d in deltas for _ in d.neurons])
    writer.add_array("hq.lora.neurons", [index for d in deltas for index in d.neurons])
    writer.add_array("hq.lora.alphas", [1 + c for d in deltas for c in d.coefficients])


def _product(base: GGUFFile, delta: LoraDelta) -> _Product:
    up = base.tensors[f"blk.{delta.layer}.ffn_up.weight"]
    offset = up.shape[1] - base.d_ff  # a fused gate comes first
    rows = np.array(delta.neurons) + offset
    if not _is_linear(base, up, rows):
        return _down_product(base, delta)
    padding = -delta.rank % _TILE if up.type.weights == 1 else 0
    a = np.pad(base.rows(up.name)[rows], ((0, padding), (0, 0)))
    b = np.pad(delta.one_hot(up.shape[1], offset), ((0, padding), (0, 0))).T
    return _Product(up.name, up.type, a, np.ascontiguousarray(b))


def _is_linear(base: GGUFFile, up: Tensor, rows: Int[np.ndarray, " rank"]) -> bool:
    """Whether h is linear in these rows of the up projection."""
    bias = up.name.replace("weight", "bias")
    biased = bias in base.tensors and base.dense(bias)[0, rows].any()
    gated = up.shape[1] > base.d_ff or up.name.replace("up", "gate") in base.tensors
    return gated and not biased


def _down_product(base: GGUFFile, delta: LoraDelta) -> _Product:
    name = f"blk.{delta.layer}.ffn_down.weight"
    columns = np.ascontiguousarray(base.dense(name)[:, delta.neurons])
    return _Product(name, _F32, delta.one_hot(base.d_ff).view(np.uint8), columns)


def _add(package: ModuleType, writer: Any, product: _Product) -> None:
    try:
        kind = package.GGMLQuantizationType(product.kind.number)
    except ValueError as error:
        raise HQError(
            f"The installed gguf package does not write {product.kind.name}: upgrade it."
        ) from error
    writer.add_tensor(f"{product.tensor}.lora_a", product.a, raw_dtype=kind)
    writer.add_tensor(f"{product.tensor}.lora_b", product.b)
