"""Machine code that reads llama.cpp's tensors: what compiled callbacks share.

Importing this module loads llama.cpp, as the offsets of a tensor's fields are those of its build.
"""

from collections.abc import Callable
from typing import Any, TypeAlias, TypeVar, cast

import numba as nb
import numpy as np
from numba.core import types
from numba.extending import intrinsic

from hq.llamacpp.library import load_library
from hq.llamacpp.state import Field


def _as_pointer(_: Any, address: Any) -> Any:
    """Cast an integer to a pointer."""

    def generate(context: Any, builder: Any, __: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], context.get_value_type(types.voidptr))

    return types.voidptr(address), generate


_pointer: Any = intrinsic(_as_pointer)
_view: Any = nb.carray  # type: ignore[attr-defined]  # documented, but not exported
Ints: TypeAlias = Any  # int64[n], as numba sees it
Floats: TypeAlias = Any  # float32[n]


_GGML, _LAYOUT = load_library().ggml, load_library().layout
NAME, NE, NB, SRC, DATA, _BUFFER = (
    _LAYOUT.name,
    _LAYOUT.ne,
    _LAYOUT.nb,
    _LAYOUT.src,
    _LAYOUT.data,
    _LAYOUT.buffer,
)
_is_host = _GGML.ggml_backend_buffer_is_host
_fetch, put = _GGML.ggml_backend_tensor_get, _GGML.ggml_backend_tensor_set
_F = TypeVar("_F", bound=Callable[..., Any])


def compiled(function: _F) -> _F:
    """Compile a function. Sums may be reordered to vectorise; NaN and infinity are kept."""
    compiled: Any = nb.njit(fastmath={"reassoc", "contract"}, error_model="numpy")(function)
    return cast(_F, compiled)


@compiled
def words(at: int, count: int) -> Ints:
    """Integers of 64 bits at an address."""
    return _view(_pointer(nb.uint64(at)), (count,), np.int64)


@compiled
def floats(at: int, count: int) -> Floats:
    """Floats of 32 bits at an address."""
    return _view(_pointer(nb.uint64(at)), (count,), np.float32)


@compiled
def numbers_of(tensor: int, state: Ints, count: int) -> Any:
    """The first `count` values of a tensor of 32-bit integers, as `values_of`."""
    at = words(tensor + DATA, 1)[0]
    if state[Field.COPY]:
        _fetch(tensor, state[Field.SCRATCH_AT], 0, 4 * count)
        at = state[Field.SCRATCH_AT]
    return _view(_pointer(nb.uint64(at)), (count,), np.int32)


@compiled
def layer_of(name_at: int, prefix_at: int, length: int, layers: int) -> int:
    """The layer number after the prefix; -1 if the name or the number does not match."""
    name = _view(_pointer(nb.uint64(name_at)), (64,), np.uint8)
    prefix = _view(_pointer(nb.uint64(prefix_at)), (length,), np.uint8)
    for k in range(length):
        if name[k] != prefix[k]:
            return -1
    layer, k = 0, length
    while k < 64 and name[k] != 0:
        if name[k] < 48 or name[k] > 57:
            return -1
        layer = layer * 10 + (name[k] - 48)
        k += 1
    return layer if k > length and layer < layers else -1


@compiled
def rows_of(tensor: int, width: int) -> int:
    """Number of rows of a dense float32 tensor of this width; -1 for any other tensor."""
    ne, strides = words(tensor + NE, 4), words(tensor + NB, 4)
    rows = ne[1] * ne[2] * ne[3]
    dense = strides[0] == 4 and (rows == 1 or strides[1] == 4 * width)
    return rows if dense and ne[0] == width else -1


@compiled
def reachable(tensor: int, state: Ints) -> Any:
    """Whether the tensor is copied or is in host memory."""
    buffer = words(tensor + _BUFFER, 1)[0]
    return state[Field.COPY] != 0 or buffer == 0 or _is_host(buffer)


@compiled
def values_of(tensor: int, state: Ints, count: int) -> Floats:
    """The tensor's values, where the CPU can read and write them."""
    if state[Field.COPY]:
        _fetch(tensor, state[Field.SCRATCH_AT], 0, 4 * count)
        return floats(state[Field.SCRATCH_AT], count)
    return floats(words(tensor + DATA, 1)[0], count)
