"""The eval callback in mixtures of experts: h of the routed experts, and of the shared one.

The nodes of a layer, in their order, are h of the routed experts [token, used, d_ff], W_down·h of
each [token, used, d_model], and this times the routing weights. A shared expert follows: its h, its
W_down·h, its gate g, and g·W_down·h.

A node is inspected when llama.cpp asks for the node that reads it: nothing else has been computed
since, so its operands are still in memory. At the routed W_down·h, h is scaled, and at the weighted
one, |g·h| and Σ_e g_e·W_down,e·h_e are copied. Experts of a token that the router did not choose
have no values, and count zero.
"""

from typing import Any

import numpy as np

from hq.llamacpp.native import (
    NAME,
    NB,
    NE,
    SRC,
    Floats,
    Ints,
    compiled,
    floats,
    layer_of,
    numbers_of,
    put,
    reachable,
    rows_of,
    values_of,
    words,
)
from hq.llamacpp.shares import add, is_weighted, length_of, total_of
from hq.llamacpp.state import Fault, Field, LayerAction

# Nodes of a layer, in the order of their names in the state.
_H, _OUTPUT, _WEIGHTED, _SHARED_H, _SHARED_OUTPUT, _SHARED_GATE, _SHARED_WEIGHTED = range(7)
_NODES = 7


@compiled
def in_mixture(state: Ints, tensor: int, ask: bool) -> Any:
    """Scale or read at a node; whether its value is needed, or if not `ask`, to go on."""
    node, layer = _node_of(state, tensor)
    actions = words(state[Field.ACTIONS_AT], state[Field.LAYERS])[layer] if layer >= 0 else 0
    if not actions:
        return not ask
    if ask:
        return _at_ask(state, node, layer, actions, tensor)
    state[Field.COMPUTED] = tensor
    if node in (_SHARED_H, _SHARED_OUTPUT):
        _at_shared(state, node, layer, tensor)
    return True


@compiled
def _node_of(state: Ints, tensor: int) -> Any:
    """Which node of which layer a tensor is; -1 and -1 for others."""
    for node in range(_NODES):
        length = state[Field.H_NAME_LENGTH + 2 * node]
        if length:
            name_at = state[Field.H_NAME_AT + 2 * node]
            layer = layer_of(tensor + NAME, name_at, length, state[Field.LAYERS])
            if layer >= 0:
                return node, layer
    return -1, -1


@compiled
def _at_ask(state: Ints, node: int, layer: int, actions: int, tensor: int) -> Any:
    """Inspect the operands of a node that is not computed yet; whether its value is needed."""
    scales, reads = (actions & LayerAction.SCALE) != 0, (actions & ~LayerAction.SCALE) != 0
    if node in (_H, _SHARED_H):
        return scales
    if node == _OUTPUT and scales:
        _scale_routed(state, layer, tensor)
        if not reads:
            words(state[Field.VISITS_AT], state[Field.LAYERS])[layer] += 1
    if not reads:
        return False
    if node == _WEIGHTED:
        rows = _read_routed(state, tensor)
        if not state[Field.SHARED_WIDTH]:
            _finish(state, layer, actions, rows)
    elif node == _SHARED_WEIGHTED:
        _finish(state, layer, actions, _read_shared(state, tensor))
    return node in (_OUTPUT, _SHARED_OUTPUT, _SHARED_GATE)


@compiled
def _operand(tensor: int, index: int) -> Any:
    """Address of an operand of a node."""
    return words(tensor + SRC, index + 1)[index]


@compiled
def _checked(state: Ints, tensor: int, width: int, per_token: int) -> Any:
    """The number of tokens of a tensor of [token, per_token, width]; 0 and a fault if it differs.

    Checked before any array is written, as arrays have TOKENS rows.
    """
    rows = rows_of(tensor, width)
    ne, strides = words(tensor + NE, 4), words(tensor + NB, 4)
    tokens = rows // per_token
    if rows < 0 or rows != tokens * per_token:
        state[Field.FAULT] = Fault.SHAPE
        return 0
    if per_token > 1 and (ne[1] != per_token or (tokens > 1 and strides[2] != ne[1] * strides[1])):
        state[Field.FAULT] = Fault.SHAPE
        return 0
    if tokens > 0 and tokens != state[Field.TOKENS] and tokens != state[Field.OUTPUTS]:
        state[Field.FAULT] = Fault.ROWS
        return 0
    if not reachable(tensor, state):
        state[Field.FAULT] = Fault.MEMORY
        return 0
    return tokens


@compiled
def _require_order(state: Ints, tensor: int) -> Any:
    """Whether this tensor is the one that was computed last; a fault otherwise."""
    if state[Field.COMPUTED] != tensor:
        state[Field.FAULT] = Fault.ORDER
    return state[Field.COMPUTED] == tensor


@compiled
def _experts_of(state: Ints, tensor: int, rows: int) -> Ints:
    """The experts that each token is routed to, [token, used]: a view of a longer sorted list."""
    used = state[Field.USED_EXPERTS]
    experts = words(state[Field.ROUTED_EXPERT_AT], rows * used)
    ne, strides = words(tensor + NE, 4), words(tensor + NB, 4)
    step = strides[1] // 4
    if ne[0] != used or ne[1] * ne[2] * ne[3] != rows or strides[0] != 4 or step < used:
        state[Field.FAULT] = Fault.SHAPE
        return experts[:0]
    if not reachable(tensor, state):
        state[Field.FAULT] = Fault.MEMORY
        return experts[:0]
    numbers = numbers_of(tensor, state, (rows - 1) * step + used)
    for row in range(rows):
        for k in range(used):
            expert = numbers[row * step + k]
            if expert < 0 or expert >= state[Field.EXPERTS]:
                state[Field.FAULT] = Fault.SHAPE
                return experts[:0]
            experts[row * used + k] = expert
    return experts


@compiled
def _scale_routed(state: Ints, layer: int, output: int) -> None:
    """Scale h of the routed experts, the operand of the node `output`."""
    h_at, used, width = _operand(output, 1), state[Field.USED_EXPERTS], state[Field.D_FF]
    if not _require_order(state, h_at):
        return
    rows = _checked(state, h_at, width, used)
    if rows == 0:
        return
    experts = _experts_of(state, _operand(output, 2), rows)
    starts = words(state[Field.SCALE_START_AT], state[Field.LAYERS] + 1)
    indices = words(state[Field.SCALE_INDEX_AT], starts[state[Field.LAYERS]])
    factors = floats(state[Field.SCALE_FACTOR_AT], starts[state[Field.LAYERS]])
    h = values_of(h_at, state, rows * used * width)
    for slot in range(len(experts)):
        for k in range(starts[layer], starts[layer + 1]):
            if indices[k] // width == experts[slot]:
                h[slot * width + indices[k] % width] *= factors[k]
    if state[Field.COPY]:
        put(h_at, state[Field.SCRATCH_AT], 0, 4 * len(h))


@compiled
def _read_routed(state: Ints, weighted: int) -> Any:
    """Copy |g·h| and Σ_e g_e·W_down,e·h_e of the routed experts; the number of tokens.

    `weighted` is the node of W_down·h, with or without its bias, times g.
    """
    output, weights_at = _operand(weighted, 0), _operand(weighted, 1)
    if state[Field.COMPUTED] != output:  # a bias is added in between
        output = _operand(output, 0)
    used, width, d_model = state[Field.USED_EXPERTS], state[Field.D_FF], state[Field.D_MODEL]
    if not _require_order(state, output):
        return 0
    h_at = _operand(output, 1)
    rows = _checked(state, h_at, width, used)
    if rows == 0 or _checked(state, output, d_model, used) != rows:
        return 0
    if _checked(state, weights_at, 1, used) != rows:
        return 0
    if not len(_experts_of(state, _operand(output, 2), rows)):
        return 0
    _keep_routed(state, weights_at, h_at, output, rows)
    return rows


@compiled
def _keep_routed(state: Ints, weights_at: int, h_at: int, output: int, rows: int) -> None:
    """Copy |g·h| and Σ_e g_e·W_down,e·h_e from checked tensors."""
    used, width, d_model = state[Field.USED_EXPERTS], state[Field.D_FF], state[Field.D_MODEL]
    weights = floats(state[Field.ROUTED_WEIGHT_AT], rows * used)
    stored = values_of(weights_at, state, rows * used)
    for slot in range(rows * used):
        weights[slot] = stored[slot]
    stride = used * width + state[Field.SHARED_WIDTH]
    kept = floats(state[Field.ROUTED_H_AT], rows * stride)
    h = values_of(h_at, state, rows * used * width)
    for row in range(rows):
        for k in range(used):
            slot = row * used + k
            to = row * stride + k * width
            for j in range(width):
                kept[to + j] = abs(weights[slot] * h[slot * width + j])
    total = floats(state[Field.LAYER_OUTPUT_AT], rows * d_model)
    products = values_of(output, state, rows * used * d_model)
    for row in range(rows):
        y = total[row * d_model : (row + 1) * d_model]
        y[:] = 0
        for k in range(used):
            slot = row * used + k
            for j in range(d_model):
                y[j] += weights[slot] * products[slot * d_model + j]


@compiled
def _at_shared(state: Ints, node: int, layer: int, tensor: int) -> None:
    """Scale h of the shared expert once it is computed, or keep it once W_down·h is."""
    width, routed = state[Field.SHARED_WIDTH], state[Field.EXPERTS] * state[Field.D_FF]
    h_at = tensor if node == _SHARED_H else _operand(tensor, 1)
    rows = _checked(state, h_at, width, 1)
    if rows == 0:
        return
    h = values_of(h_at, state, rows * width)
    if node == _SHARED_H:
        starts = words(state[Field.SCALE_START_AT], state[Field.LAYERS] + 1)
        indices = words(state[Field.SCALE_INDEX_AT], starts[state[Field.LAYERS]])
        factors = floats(state[Field.SCALE_FACTOR_AT], starts[state[Field.LAYERS]])
        for row in range(rows):
            for k in range(starts[layer], starts[layer + 1]):
                if indices[k] >= routed:
                    h[row * width + indices[k] - routed] *= factors[k]
        if state[Field.COPY]:
            put(h_at, state[Field.SCRATCH_AT], 0, 4 * len(h))
    else:
        used_width = state[Field.USED_EXPERTS] * state[Field.D_FF]
        stride = used_width + width
        kept = floats(state[Field.ROUTED_H_AT], rows * stride)
        for row in range(rows):
            for j in range(width):
                kept[row * stride + used_width + j] = h[row * width + j]


@compiled
def _read_shared(state: Ints, weighted: int) -> Any:
    """Multiply the shared expert's h and output by its gate, and add the latter to the layer's.

    `weighted` is the node of W_down·h times the gate. Returns the number of tokens.
    """
    output, gate_at = _operand(weighted, 0), _operand(weighted, 1)
    width, d_model = state[Field.SHARED_WIDTH], state[Field.D_MODEL]
    if not _require_order(state, gate_at):
        return 0
    rows = _checked(state, output, d_model, 1)
    if rows == 0 or _checked(state, gate_at, 1, 1) != rows:
        return 0
    used_width = state[Field.USED_EXPERTS] * state[Field.D_FF]
    stride = used_width + width
    kept = floats(state[Field.ROUTED_H_AT], rows * stride)
    total = floats(state[Field.LAYER_OUTPUT_AT], rows * d_model)
    gates = values_of(gate_at, state, rows)
    if state[Field.COPY]:
        gates = gates.copy()  # the output is copied into the same scratch
    products = values_of(output, state, rows * d_model)
    for row in range(rows):
        for j in range(width):
            at = row * stride + used_width + j
            kept[at] = abs(gates[row] * kept[at])
        for j in range(d_model):
            total[row * d_model + j] += gates[row] * products[row * d_model + j]
    return rows


@compiled
def _finish(state: Ints, layer: int, actions: int, rows: int) -> None:
    """Divide what was copied by the sums of the layer, and store the shares of each token."""
    words(state[Field.VISITS_AT], state[Field.LAYERS])[layer] += 1
    used, width, d_model = state[Field.USED_EXPERTS], state[Field.D_FF], state[Field.D_MODEL]
    shared = state[Field.SHARED_WIDTH]
    parts = used + (1 if shared else 0)
    stride = used * width + shared
    norms = floats(state[Field.NORMS_AT] + 4 * layer * state[Field.WIDTH], state[Field.WIDTH])
    experts = words(state[Field.ROUTED_EXPERT_AT], rows * used)
    kept = floats(state[Field.ROUTED_H_AT], rows * stride)
    outputs = words(state[Field.OUTPUT_TOKEN_AT], state[Field.OUTPUTS])
    y = floats(state[Field.LAYER_OUTPUT_AT], rows * d_model)
    for row in range(rows):
        token = row if rows == state[Field.TOKENS] else outputs[row]
        if not actions & LayerAction.WATCH and not is_weighted(state, token):
            continue
        own = kept[row * stride : (row + 1) * stride]
        chosen = experts[row * used : (row + 1) * used]
        total = np.float32(0)
        for part in range(parts):
            first, size = _block(state, chosen, part)
            at = part * width
            total += total_of(own[at : at + size], norms[first : first + size])
        length = length_of(y[row * d_model : (row + 1) * d_model])
        if actions & LayerAction.WATCH:
            denominator = total if state[Field.SUM_MEASURE] >= 0 else length
            _watch(state, layer, token, own, chosen, norms, denominator)
        if actions & LayerAction.TRACE:
            for part in range(parts):
                first, size = _block(state, chosen, part)
                h, weights = own[part * width : part * width + size], norms[first : first + size]
                one = np.float32(1)
                add(state, layer, token, state[Field.SUM_MEASURE], first, h, weights, total)
                add(state, layer, token, state[Field.OUTPUT_MEASURE], first, h, weights, length)
                add(state, layer, token, state[Field.CONTRIBUTION_MEASURE], first, h, weights, one)


@compiled
def _block(state: Ints, chosen: Ints, part: int) -> Any:
    """Index of the first neuron of a token's expert in the layer, and the expert's width."""
    if part < state[Field.USED_EXPERTS]:
        return chosen[part] * state[Field.D_FF], state[Field.D_FF]
    return state[Field.EXPERTS] * state[Field.D_FF], state[Field.SHARED_WIDTH]


@compiled
def _watch(
    state: Ints,
    layer: int,
    token: int,
    own: Floats,
    chosen: Ints,
    norms: Floats,
    denominator: Any,
) -> None:
    starts = words(state[Field.WATCH_START_AT], state[Field.LAYERS] + 1)
    indices = words(state[Field.WATCH_INDEX_AT], state[Field.WATCHED])
    out = floats(state[Field.WATCH_VALUE_AT], (token + 1) * state[Field.WATCHED])
    width, used = state[Field.D_FF], state[Field.USED_EXPERTS]
    routed = state[Field.EXPERTS] * width
    for k in range(starts[layer], starts[layer + 1]):
        index, value = indices[k], np.float32(0)
        if index >= routed:
            value = own[used * width + index - routed]
        else:
            for slot in range(used):
                if chosen[slot] == index // width:
                    value = own[slot * width + index % width]
        out[token * state[Field.WATCHED] + k] = value * norms[index]
    floats(state[Field.WATCH_DENOMINATOR_AT], (token + 1) * state[Field.LAYERS])[
        token * state[Field.LAYERS] + layer
    ] = denominator
