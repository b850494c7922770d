"""The eval callback as machine code: no Python runs while llama.cpp computes.

llama.cpp asks about every node of its graph (ask), and hands back the computed ones that were
answered yes. This callback says yes to the FFN products (and, where ‖W_down·h‖ is wanted, to the
down projections), scales chosen coordinates in place, and reads: the contributions of watched
neurons, or the span means of CETT of all of them. It is compiled once a process by numba.

All it knows stands in one int64 array, its user data, addressed by the names in
hq/llamacpp/state.py.
Importing this module loads llama.cpp and compiles the callback, which takes seconds.
"""

from collections.abc import Callable
from typing import Any, TypeAlias, TypeVar, cast

import numba as nb
import numpy as np
from numba.core import types
from numba.extending import intrinsic

from hq.llamacpp.library import library
from hq.llamacpp.state import CallbackMode, Fault, Field


def _as_pointer(_: Any, address: Any) -> Any:
    """An integer as a pointer."""

    def generate(context: Any, builder: Any, __: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], context.get_value_type(types.voidptr))

    return types.voidptr(address), generate


_pointer: Any = intrinsic(_as_pointer)
_view: Any = nb.carray  # type: ignore[attr-defined]  # numba says so in its documentation
Ints: TypeAlias = Any  # int64[n], as numba sees it
Floats: TypeAlias = Any  # float32[n]


_GGML, _LAYOUT = library().ggml, library().layout
_NAME, _NE, _NB, _SRC, _DATA, _BUFFER = (
    _LAYOUT.name,
    _LAYOUT.ne,
    _LAYOUT.nb,
    _LAYOUT.src,
    _LAYOUT.data,
    _LAYOUT.buffer,
)
_is_host = _GGML.ggml_backend_buffer_is_host
_fetch, _put = _GGML.ggml_backend_tensor_get, _GGML.ggml_backend_tensor_set
_SIZE = len(Field)
_F = TypeVar("_F", bound=Callable[..., Any])


def _compiled(function: _F) -> _F:
    """Sums may be reordered, so that they vectorise; NaN and infinity keep their meaning."""
    made: Any = nb.njit(fastmath={"reassoc", "contract"}, error_model="numpy")(function)
    return cast(_F, made)


@_compiled
def _words(at: int, count: int) -> Ints:
    return _view(_pointer(nb.uint64(at)), (count,), np.int64)


@_compiled
def _floats(at: int, count: int) -> Floats:
    return _view(_pointer(nb.uint64(at)), (count,), np.float32)


@_compiled
def _layer_of(name_at: int, prefix_at: int, length: int, layers: int) -> int:
    """The number after the prefix, and -1 for another name or number."""
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


@_compiled
def _rows_of(tensor: int, width: int) -> int:
    """Rows of a dense float32 tensor of this width, -1 for any other."""
    ne, strides = _words(tensor + _NE, 4), _words(tensor + _NB, 4)
    rows = ne[1] * ne[2] * ne[3]
    dense = strides[0] == 4 and (rows == 1 or strides[1] == 4 * width)
    return rows if dense and ne[0] == width else -1


@_compiled
def _reachable(tensor: int, state: Ints) -> Any:
    """Whether the tensor is copied, or lies in memory that the CPU addresses."""
    buffer = _words(tensor + _BUFFER, 1)[0]
    return state[Field.COPY] != 0 or buffer == 0 or _is_host(buffer)


@_compiled
def _values(tensor: int, state: Ints, count: int) -> Floats:
    """The tensor's values where the CPU can read and write them."""
    if state[Field.COPY]:
        _fetch(tensor, state[Field.SCRATCH_AT], 0, 4 * count)
        return _floats(state[Field.SCRATCH_AT], count)
    return _floats(_words(tensor + _DATA, 1)[0], count)


@_compiled
def _scale(state: Ints, layer: int, h: Floats, rows: int) -> None:
    starts = _words(state[Field.SCALE_START_AT], state[Field.LAYERS] + 1)
    indices = _words(state[Field.SCALE_INDEX_AT], starts[state[Field.LAYERS]])
    factors = _floats(state[Field.SCALE_FACTOR_AT], starts[state[Field.LAYERS]])
    width = state[Field.D_FF]
    for row in range(rows):
        for k in range(starts[layer], starts[layer + 1]):
            h[row * width + indices[k]] *= factors[k]


@_compiled
def _total(h: Floats, norms: Floats) -> Any:
    """Σ_j |h_j| · norm_j."""
    whole = np.float32(0)
    for j in range(len(norms)):
        whole += abs(h[j]) * norms[j]
    return whole


@_compiled
def _length(vector: Floats) -> Any:
    square = np.float32(0)
    for j in range(len(vector)):
        square += vector[j] * vector[j]
    return np.sqrt(square)


@_compiled
def _watch(state: Ints, layer: int, token: int, h: Floats, norms: Floats, whole: Any) -> None:
    starts = _words(state[Field.WATCH_START_AT], state[Field.LAYERS] + 1)
    indices = _words(state[Field.WATCH_INDEX_AT], state[Field.WATCHED])
    out = _floats(state[Field.WATCH_VALUE_AT], (token + 1) * state[Field.WATCHED])
    for k in range(starts[layer], starts[layer + 1]):
        out[token * state[Field.WATCHED] + k] = abs(h[indices[k]]) * norms[indices[k]]
    _floats(state[Field.WATCH_WHOLE_AT], (token + 1) * state[Field.LAYERS])[
        token * state[Field.LAYERS] + layer
    ] = whole


@_compiled
def _add(
    state: Ints, layer: int, token: int, measure: int, h: Floats, norms: Floats, whole: Any
) -> None:
    """Adds a token's CETT by one measure to the means of its exchange."""
    if measure < 0 or whole == 0:  # a token whose layer does nothing has no shares
        return
    spans, width = state[Field.SPANS], state[Field.D_FF]
    row = _words(state[Field.TRACE_ROW_AT], token + 1)[token]
    weights = _floats(state[Field.TRACE_WEIGHT_AT], (token + 1) * spans)
    for span in range(spans):
        weight = weights[token * spans + span]
        if weight != 0:
            share = weight / whole
            place = ((row * state[Field.MEASURES] + measure) * spans + span) * state[Field.LAYERS]
            out = _floats(state[Field.TRACE_VALUE_AT] + 4 * (place + layer) * width, width)
            for j in range(width):
                out[j] += share * (abs(h[j]) * norms[j])


@_compiled
def _counts(state: Ints, token: int) -> Any:
    """Whether a token has a weight in any span."""
    spans = state[Field.SPANS]
    weights = _floats(state[Field.TRACE_WEIGHT_AT], (token + 1) * spans)
    return (weights[token * spans :] != 0).any()


@_compiled
def _read(state: Ints, layer: int, job: int, h: Floats, rows: int, down: Floats) -> None:
    width, d_model = state[Field.D_FF], len(down) // rows
    norms = _floats(state[Field.NORMS_AT] + 4 * layer * width, width)
    outputs = _words(state[Field.OUTPUT_AT], state[Field.OUTPUTS])
    for row in range(rows):
        token = row if rows == state[Field.TOKENS] else outputs[row]
        if not job & CallbackMode.WATCH and not _counts(state, token):
            continue
        mine = h[row * width : (row + 1) * width]
        whole = _total(mine, norms) if state[Field.SUM] >= 0 else np.float32(0)
        output = _length(down[row * d_model : (row + 1) * d_model])
        if job & CallbackMode.WATCH:
            _watch(state, layer, token, mine, norms, whole if state[Field.SUM] >= 0 else output)
        if job & CallbackMode.TRACE:
            _add(state, layer, token, state[Field.SUM], mine, norms, whole)
            _add(state, layer, token, state[Field.OUTPUT], mine, norms, output)
            _add(state, layer, token, state[Field.CONTRIBUTION], mine, norms, np.float32(1))


@_compiled
def _at_product(state: Ints, layer: int, job: int, tensor: int, rows: int) -> None:
    h = _values(tensor, state, rows * state[Field.D_FF])
    if job & CallbackMode.SCALE:
        _scale(state, layer, h, rows)
        if state[Field.COPY]:
            _put(tensor, state[Field.SCRATCH_AT], 0, 4 * len(h))
    if job & ~CallbackMode.SCALE:
        _read(state, layer, job, h, rows, h[:0])


@_compiled
def _at_down(state: Ints, layer: int, job: int, tensor: int, rows: int) -> None:
    """Reads h together with ‖W_down·h‖: the input of a node is still in memory."""
    d_model = state[Field.D_MODEL]
    if _rows_of(tensor, d_model) != rows:
        state[Field.FAULT] = Fault.SHAPE
        return
    if not _reachable(tensor, state):
        state[Field.FAULT] = Fault.PLACE
        return
    h = _values(_words(tensor + _SRC, 2)[1], state, rows * state[Field.D_FF])
    if state[Field.COPY]:
        h = h.copy()  # the scratch is needed again
    _read(state, layer, job, h, rows, _values(tensor, state, rows * d_model))


@_compiled
def _fault(state: Ints, product: int, rows: int) -> Fault:
    """Why a product cannot be read, before any array of ours is touched: they have TOKENS rows."""
    if rows < 0:
        return Fault.SHAPE
    if rows > 0 and rows != state[Field.TOKENS] and rows != state[Field.OUTPUTS]:
        return Fault.ROWS
    return Fault.NONE if _reachable(product, state) else Fault.PLACE


@nb.cfunc(types.boolean(types.uint64, types.boolean, types.uint64))
def _callback(address: int, ask: bool, user: int) -> bool:
    tensor: Any = np.int64(address)
    state = _words(user, _SIZE)
    down = False
    layer = _layer_of(
        tensor + _NAME,
        state[Field.PRODUCT_AT],
        state[Field.PRODUCT_LENGTH],
        state[Field.LAYERS],
    )
    if layer < 0 and state[Field.READ_AT_DOWN]:
        layer = _layer_of(
            tensor + _NAME,
            state[Field.DOWN_AT],
            state[Field.DOWN_LENGTH],
            state[Field.LAYERS],
        )
        down = True
    if layer < 0:
        return not ask
    job = _words(state[Field.JOBS_AT], state[Field.LAYERS])[layer]
    if down:
        job &= ~CallbackMode.SCALE
    elif state[Field.READ_AT_DOWN]:
        job &= CallbackMode.SCALE
    if not job:
        return not ask
    if ask:
        return True
    product = _words(tensor + _SRC, 2)[1] if down else tensor
    rows = _rows_of(product, state[Field.D_FF])
    _words(state[Field.VISITS_AT], state[Field.LAYERS])[layer] += 1
    fault = _fault(state, product, rows)
    if fault != Fault.NONE:
        state[Field.FAULT] = fault
    elif rows > 0:
        if down:
            _at_down(state, layer, job, tensor, rows)
        else:
            _at_product(state, layer, job, tensor, rows)
    return True


def address() -> int:
    """The callback's address."""
    found: Any = _callback
    return int(found.address)
