"""The eval callback in machine code: no Python runs while llama.cpp computes.

llama.cpp calls it for every node of its graph before the node is computed (`ask`), and again after
it if the answer was true. In dense layers, the callback answers true for the nodes that hold h, and
for those that hold W_down·h if ‖W_down·h‖ is needed. It scales chosen neurons in place, by
one factor for all tokens or by a factor for each token, and reads the contributions of watched
neurons or the span means of CETT of all neurons. `hq.llamacpp.mixture` does the same in mixtures of
experts, except for a factor for each token.

Its user data is one int64 array, laid out as in `hq.llamacpp.state`. numba compiles the callback
when this module is imported, which takes seconds and loads llama.cpp.
"""

from typing import Any

import numba as nb
import numpy as np
from numba.core import types

from hq.llamacpp.mixture import in_mixture
from hq.llamacpp.native import (
    NAME,
    SRC,
    Floats,
    Ints,
    compiled,
    floats,
    layer_of,
    put,
    reachable,
    rows_of,
    values_of,
    words,
)
from hq.llamacpp.shares import add, is_weighted, length_of, total_of
from hq.llamacpp.state import SCALING, Fault, Field, LayerAction

_SIZE = len(Field)
_SCALING = int(SCALING)  # numba knows no flags


@compiled
def _scale(state: Ints, layer: int, h: Floats, rows: int) -> None:
    starts = words(state[Field.SCALE_START_AT], state[Field.LAYERS] + 1)
    indices = words(state[Field.SCALE_INDEX_AT], starts[state[Field.LAYERS]])
    factors = floats(state[Field.SCALE_FACTOR_AT], starts[state[Field.LAYERS]])
    width = state[Field.D_FF]
    for row in range(rows):
        for k in range(starts[layer], starts[layer + 1]):
            h[row * width + indices[k]] *= factors[k]


@compiled
def _scale_tokens(state: Ints, layer: int, h: Floats, rows: int) -> None:
    """Multiply the same neurons by the factor of each row's token."""
    starts = words(state[Field.TOKEN_SCALE_START_AT], state[Field.LAYERS] + 1)
    indices = words(state[Field.TOKEN_SCALE_INDEX_AT], starts[state[Field.LAYERS]])
    factors = floats(state[Field.TOKEN_FACTOR_AT], state[Field.TOKENS])
    outputs = words(state[Field.OUTPUT_TOKEN_AT], state[Field.OUTPUTS])
    width = state[Field.D_FF]
    for row in range(rows):
        factor = factors[row if rows == state[Field.TOKENS] else outputs[row]]
        if factor != 1:
            for k in range(starts[layer], starts[layer + 1]):
                h[row * width + indices[k]] *= factor


@compiled
def _watch(state: Ints, layer: int, token: int, h: Floats, norms: Floats, denominator: Any) -> None:
    starts = words(state[Field.WATCH_START_AT], state[Field.LAYERS] + 1)
    indices = words(state[Field.WATCH_INDEX_AT], state[Field.WATCHED])
    out = floats(state[Field.WATCH_VALUE_AT], (token + 1) * state[Field.WATCHED])
    for k in range(starts[layer], starts[layer + 1]):
        out[token * state[Field.WATCHED] + k] = abs(h[indices[k]]) * norms[indices[k]]
    floats(state[Field.WATCH_DENOMINATOR_AT], (token + 1) * state[Field.LAYERS])[
        token * state[Field.LAYERS] + layer
    ] = denominator


@compiled
def _read(state: Ints, layer: int, actions: int, h: Floats, rows: int, output: Floats) -> None:
    """Read h, and the norm of `output` (W_down·h), which is empty if it is not needed."""
    width, d_model = state[Field.D_FF], len(output) // rows
    norms = floats(state[Field.NORMS_AT] + 4 * layer * width, width)
    outputs = words(state[Field.OUTPUT_TOKEN_AT], state[Field.OUTPUTS])
    for row in range(rows):
        token = row if rows == state[Field.TOKENS] else outputs[row]
        if not actions & LayerAction.WATCH and not is_weighted(state, token):
            continue
        token_h = h[row * width : (row + 1) * width]
        total = total_of(token_h, norms) if state[Field.SUM_MEASURE] >= 0 else np.float32(0)
        length = length_of(output[row * d_model : (row + 1) * d_model])
        if actions & LayerAction.WATCH:
            denominator = total if state[Field.SUM_MEASURE] >= 0 else length
            _watch(state, layer, token, token_h, norms, denominator)
        if actions & LayerAction.TRACE:
            one = np.float32(1)
            add(state, layer, token, state[Field.SUM_MEASURE], 0, token_h, norms, total)
            add(state, layer, token, state[Field.OUTPUT_MEASURE], 0, token_h, norms, length)
            add(state, layer, token, state[Field.CONTRIBUTION_MEASURE], 0, token_h, norms, one)


@compiled
def _at_h(state: Ints, layer: int, actions: int, tensor: int, rows: int) -> None:
    """Scale h, and read it if the layer's output is not needed."""
    h = values_of(tensor, state, rows * state[Field.D_FF])
    if actions & _SCALING:
        if actions & LayerAction.SCALE:
            _scale(state, layer, h, rows)
        if actions & LayerAction.SCALE_TOKENS:
            _scale_tokens(state, layer, h, rows)
        if state[Field.COPY]:
            put(tensor, state[Field.SCRATCH_AT], 0, 4 * len(h))
    if actions & ~_SCALING:
        _read(state, layer, actions, h, rows, h[:0])


@compiled
def _at_output(state: Ints, layer: int, actions: int, tensor: int, rows: int) -> None:
    """Read h together with W_down·h: the input of a computed node is still in memory."""
    d_model = state[Field.D_MODEL]
    if rows_of(tensor, d_model) != rows:
        state[Field.FAULT] = Fault.SHAPE
        return
    if not reachable(tensor, state):
        state[Field.FAULT] = Fault.MEMORY
        return
    h = values_of(words(tensor + SRC, 2)[1], state, rows * state[Field.D_FF])
    if state[Field.COPY]:
        h = h.copy()  # the output is copied into the same scratch
    _read(state, layer, actions, h, rows, values_of(tensor, state, rows * d_model))


@compiled
def _fault(state: Ints, h: int, rows: int) -> Fault:
    """Why h cannot be read; checked before any array is written, as arrays have TOKENS rows."""
    if rows < 0:
        return Fault.SHAPE
    if rows > 0 and rows != state[Field.TOKENS] and rows != state[Field.OUTPUTS]:
        return Fault.ROWS
    return Fault.NONE if reachable(h, state) else Fault.MEMORY


@compiled
def _in_layer(state: Ints, tensor: int, ask: bool) -> Any:
    """Scale or read at a node of dense layers; whether its value is needed, or to go on."""
    at_output = False
    layer = layer_of(
        tensor + NAME,
        state[Field.H_NAME_AT],
        state[Field.H_NAME_LENGTH],
        state[Field.LAYERS],
    )
    if layer < 0 and state[Field.READ_AT_OUTPUT]:
        layer = layer_of(
            tensor + NAME,
            state[Field.OUTPUT_NAME_AT],
            state[Field.OUTPUT_NAME_LENGTH],
            state[Field.LAYERS],
        )
        at_output = True
    if layer < 0:
        return not ask
    actions = words(state[Field.ACTIONS_AT], state[Field.LAYERS])[layer]
    if at_output:
        actions &= ~_SCALING
    elif state[Field.READ_AT_OUTPUT]:
        actions &= _SCALING
    if not actions:
        return not ask
    if ask:
        return True
    h = words(tensor + SRC, 2)[1] if at_output else tensor
    rows = rows_of(h, state[Field.D_FF])
    words(state[Field.VISITS_AT], state[Field.LAYERS])[layer] += 1
    fault = _fault(state, h, rows)
    if fault != Fault.NONE:
        state[Field.FAULT] = fault
    elif rows > 0:
        if at_output:
            _at_output(state, layer, actions, tensor, rows)
        else:
            _at_h(state, layer, actions, tensor, rows)
    return True


@nb.cfunc(types.boolean(types.uint64, types.boolean, types.uint64))
def _callback(address: int, ask: bool, user: int) -> bool:
    tensor: Any = np.int64(address)
    state = words(user, _SIZE)
    if state[Field.EXPERTS]:
        return bool(in_mixture(state, tensor, ask))
    return bool(_in_layer(state, tensor, ask))


def address() -> int:
    """The address of the compiled callback."""
    callback: Any = _callback
    return int(callback.address)
