"""The eval callback in machine code: no Python runs while llama.cpp computes.

llama.cpp calls it for every node of its graph before the node is computed (`ask`), and again after
it if the answer was true. The callback answers true for the nodes that hold h, and for those that
hold W_down·h if ‖W_down·h‖ is needed. It scales chosen neurons in place, and reads the
contributions of watched neurons or the span means of CETT of all neurons.

Its user data is one int64 array, laid out as in `hq.llamacpp.state`. numba compiles the callback
when this module is imported, which takes seconds and loads llama.cpp.
"""

from collections.abc import Callable
from typing import Any, TypeAlias, TypeVar, cast

import numba as nb
import numpy as np
from numba.core import types
from numba.extending import intrinsic

from hq.llamacpp.library import load_library
from hq.llamacpp.state import Fault, Field, LayerAction


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
    """Compile a function. Sums may be reordered to vectorise; NaN and infinity are kept."""
    compiled: Any = nb.njit(fastmath={"reassoc", "contract"}, error_model="numpy")(function)
    return cast(_F, compiled)


@_compiled
def _words(at: int, count: int) -> Ints:
    return _view(_pointer(nb.uint64(at)), (count,), np.int64)


@_compiled
def _floats(at: int, count: int) -> Floats:
    return _view(_pointer(nb.uint64(at)), (count,), np.float32)


@_compiled
def _layer_of(name_at: int, prefix_at: int, length: int, layers: int) -> int:
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


@_compiled
def _rows_of(tensor: int, width: int) -> int:
    """Number of rows of a dense float32 tensor of this width; -1 for any other tensor."""
    ne, strides = _words(tensor + _NE, 4), _words(tensor + _NB, 4)
    rows = ne[1] * ne[2] * ne[3]
    dense = strides[0] == 4 and (rows == 1 or strides[1] == 4 * width)
    return rows if dense and ne[0] == width else -1


@_compiled
def _reachable(tensor: int, state: Ints) -> Any:
    """Whether the tensor is copied or is in host memory."""
    buffer = _words(tensor + _BUFFER, 1)[0]
    return state[Field.COPY] != 0 or buffer == 0 or _is_host(buffer)


@_compiled
def _values(tensor: int, state: Ints, count: int) -> Floats:
    """The tensor's values, where the CPU can read and write them."""
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
    total = np.float32(0)
    for j in range(len(norms)):
        total += abs(h[j]) * norms[j]
    return total


@_compiled
def _length(vector: Floats) -> Any:
    square = np.float32(0)
    for j in range(len(vector)):
        square += vector[j] * vector[j]
    return np.sqrt(square)


@_compiled
def _watch(state: Ints, layer: int, token: int, h: Floats, norms: Floats, denominator: Any) -> None:
    starts = _words(state[Field.WATCH_START_AT], state[Field.LAYERS] + 1)
    indices = _words(state[Field.WATCH_INDEX_AT], state[Field.WATCHED])
    out = _floats(state[Field.WATCH_VALUE_AT], (token + 1) * state[Field.WATCHED])
    for k in range(starts[layer], starts[layer + 1]):
        out[token * state[Field.WATCHED] + k] = abs(h[indices[k]]) * norms[indices[k]]
    _floats(state[Field.WATCH_DENOMINATOR_AT], (token + 1) * state[Field.LAYERS])[
        token * state[Field.LAYERS] + layer
    ] = denominator


@_compiled
def _add(
    state: Ints, layer: int, token: int, measure: int, h: Floats, norms: Floats, denominator: Any
) -> None:
    """Add a token's CETT by one measure, times its weights, to the means of its row."""
    if measure < 0 or denominator == 0:  # CETT is zero where the layer's output is zero
        return
    spans, width = state[Field.SPANS], state[Field.D_FF]
    row = _words(state[Field.TRACE_ROW_AT], token + 1)[token]
    weights = _floats(state[Field.TRACE_WEIGHT_AT], (token + 1) * spans)
    for span in range(spans):
        weight = weights[token * spans + span]
        if weight != 0:
            share = weight / denominator
            offset = ((row * state[Field.MEASURES] + measure) * spans + span) * state[Field.LAYERS]
            out = _floats(state[Field.TRACE_VALUE_AT] + 4 * (offset + layer) * width, width)
            for j in range(width):
                out[j] += share * (abs(h[j]) * norms[j])


@_compiled
def _is_weighted(state: Ints, token: int) -> Any:
    """Whether a token has a weight in any span."""
    spans = state[Field.SPANS]
    weights = _floats(state[Field.TRACE_WEIGHT_AT], (token + 1) * spans)
    return (weights[token * spans :] != 0).any()


@_compiled
def _read(state: Ints, layer: int, actions: int, h: Floats, rows: int, output: Floats) -> None:
    """Read h, and the norm of `output` (W_down·h), which is empty if it is not needed."""
    width, d_model = state[Field.D_FF], len(output) // rows
    norms = _floats(state[Field.NORMS_AT] + 4 * layer * width, width)
    outputs = _words(state[Field.OUTPUT_TOKEN_AT], state[Field.OUTPUTS])
    for row in range(rows):
        token = row if rows == state[Field.TOKENS] else outputs[row]
        if not actions & LayerAction.WATCH and not _is_weighted(state, token):
            continue
        token_h = h[row * width : (row + 1) * width]
        total = _total(token_h, norms) if state[Field.SUM_MEASURE] >= 0 else np.float32(0)
        length = _length(output[row * d_model : (row + 1) * d_model])
        if actions & LayerAction.WATCH:
            denominator = total if state[Field.SUM_MEASURE] >= 0 else length
            _watch(state, layer, token, token_h, norms, denominator)
        if actions & LayerAction.TRACE:
            one = np.float32(1)
            _add(state, layer, token, state[Field.SUM_MEASURE], token_h, norms, total)
            _add(state, layer, token, state[Field.OUTPUT_MEASURE], token_h, norms, length)
            _add(state, layer, token, state[Field.CONTRIBUTION_MEASURE], token_h, norms, one)


@_compiled
def _at_h(state: Ints, layer: int, actions: int, tensor: int, rows: int) -> None:
    """Scale h, and read it if the layer's output is not needed."""
    h = _values(tensor, state, rows * state[Field.D_FF])
    if actions & LayerAction.SCALE:
        _scale(state, layer, h, rows)
        if state[Field.COPY]:
            _put(tensor, state[Field.SCRATCH_AT], 0, 4 * len(h))
    if actions & ~LayerAction.SCALE:
        _read(state, layer, actions, h, rows, h[:0])


@_compiled
def _at_output(state: Ints, layer: int, actions: int, tensor: int, rows: int) -> None:
    """Read h together with W_down·h: the input of a computed node is still in memory."""
    d_model = state[Field.D_MODEL]
    if _rows_of(tensor, d_model) != rows:
        state[Field.FAULT] = Fault.SHAPE
        return
    if not _reachable(tensor, state):
        state[Field.FAULT] = Fault.MEMORY
        return
    h = _values(_words(tensor + _SRC, 2)[1], state, rows * state[Field.D_FF])
    if state[Field.COPY]:
        h = h.copy()  # the output is copied into the same scratch
    _read(state, layer, actions, h, rows, _values(tensor, state, rows * d_model))


@_compiled
def _fault(state: Ints, h: int, rows: int) -> Fault:
    """Why h cannot be read; checked before any array is written, as arrays have TOKENS rows."""
    if rows < 0:
        return Fault.SHAPE
    if rows > 0 and rows != state[Field.TOKENS] and rows != state[Field.OUTPUTS]:
        return Fault.ROWS
    return Fault.NONE if _reachable(h, state) else Fault.MEMORY


@nb.cfunc(types.boolean(types.uint64, types.boolean, types.uint64))
def _callback(address: int, ask: bool, user: int) -> bool:
    tensor: Any = np.int64(address)
    state = _words(user, _SIZE)
    at_output = False
    layer = _layer_of(
        tensor + _NAME,
        state[Field.H_NAME_AT],
        state[Field.H_NAME_LENGTH],
        state[Field.LAYERS],
    )
    if layer < 0 and state[Field.READ_AT_OUTPUT]:
        layer = _layer_of(
            tensor + _NAME,
            state[Field.OUTPUT_NAME_AT],
            state[Field.OUTPUT_NAME_LENGTH],
            state[Field.LAYERS],
        )
        at_output = True
    if layer < 0:
        return not ask
    actions = _words(state[Field.ACTIONS_AT], state[Field.LAYERS])[layer]
    if at_output:
        actions &= ~LayerAction.SCALE
    elif state[Field.READ_AT_OUTPUT]:
        actions &= LayerAction.SCALE
    if not actions:
        return not ask
    if ask:
        return True
    h = _words(tensor + _SRC, 2)[1] if at_output else tensor
    rows = _rows_of(h, state[Field.D_FF])
    _words(state[Field.VISITS_AT], state[Field.LAYERS])[layer] += 1
    fault = _fault(state, h, rows)
    if fault != Fault.NONE:
        state[Field.FAULT] = fault
    elif rows > 0:
        if at_output:
            _at_output(state, layer, actions, tensor, rows)
        else:
            _at_h(state, layer, actions, tensor, rows)
    return True


def address() -> int:
    """The address of the compiled callback."""
    callback: Any = _callback
    return int(callback.address)
