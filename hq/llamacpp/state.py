"""The state that Python shares with the compiled callback: an int64 array, indexed by `Field`."""

from enum import IntEnum, auto

import numpy as np


class Field(IntEnum):
    """Indices into the state. Fields named `*_AT` hold addresses of arrays that Python owns."""

    H_NAME_AT = 0  # uint8: name of the nodes that hold h, up to the layer number
    H_NAME_LENGTH = auto()
    OUTPUT_NAME_AT = auto()  # uint8: the same for the nodes that hold W_down·h
    OUTPUT_NAME_LENGTH = auto()
    WEIGHTED_NAME_AT = auto()  # in mixtures: g·W_down·h of the routed experts
    WEIGHTED_NAME_LENGTH = auto()
    SHARED_H_NAME_AT = auto()  # the shared expert's; their lengths are 0 if there is none
    SHARED_H_NAME_LENGTH = auto()
    SHARED_OUTPUT_NAME_AT = auto()
    SHARED_OUTPUT_NAME_LENGTH = auto()
    SHARED_GATE_NAME_AT = auto()
    SHARED_GATE_NAME_LENGTH = auto()
    SHARED_WEIGHTED_NAME_AT = auto()
    SHARED_WEIGHTED_NAME_LENGTH = auto()
    LAYERS = auto()
    D_FF = auto()  # width of a layer's FFN, or of each routed expert
    WIDTH = auto()  # number of neurons of a layer, all experts together
    EXPERTS = auto()  # number of routed experts; 0 if layers are dense
    USED_EXPERTS = auto()  # number of experts that a token is routed to
    SHARED_WIDTH = auto()  # of the shared expert; 0 if there is none
    D_MODEL = auto()
    ACTIONS_AT = auto()  # int64[layer]: bits of LayerAction
    READ_AT_OUTPUT = auto()  # whether h is read when W_down·h is there, not before
    COPY = auto()  # whether tensors are copied to the scratch, as some may be outside host memory
    SCRATCH_AT = auto()  # float32[token, widest tensor]
    TOKENS = auto()  # number of tokens in this decode
    OUTPUTS = auto()  # number of tokens with logits: the last layer may compute only these
    OUTPUT_TOKEN_AT = auto()  # int64[output]: indices of these tokens
    NORMS_AT = auto()  # float32[layer, width]: ‖W_down[:, i]‖₂
    SCALE_START_AT = auto()  # int64[layer + 1]: where each layer begins in the next two arrays
    SCALE_INDEX_AT = auto()  # int64[scaled]: index among the neurons of the layer
    SCALE_FACTOR_AT = auto()  # float32[scaled]: its factor α
    TOKEN_SCALE_START_AT = auto()  # int64[layer + 1]: where each layer begins in the next array
    TOKEN_SCALE_INDEX_AT = auto()  # int64[scaled]: neuron index
    TOKEN_FACTOR_AT = auto()  # float32[token]: α of these neurons at each token
    WATCH_START_AT = auto()  # int64[layer + 1]: where each layer begins in WATCH_INDEX
    WATCH_INDEX_AT = auto()  # int64[watched]: index among the neurons of the layer
    WATCHED = auto()  # number of watched neurons
    WATCH_VALUE_AT = auto()  # float32[token, watched]: contribution
    WATCH_DENOMINATOR_AT = auto()  # float32[token, layer]: Σ_j contribution_j, or ‖W_down·h‖
    TRACE_ROW_AT = auto()  # int64[token]: row of TRACE_VALUE that the token belongs to
    TRACE_WEIGHT_AT = auto()  # float32[token, span]
    SPANS = auto()
    MEASURES = auto()
    SUM_MEASURE = auto()  # index of the measure `sum`, -1 if it is not computed; so the next two
    OUTPUT_MEASURE = auto()
    CONTRIBUTION_MEASURE = auto()
    TRACE_VALUE_AT = auto()  # float32[row, measure, span, layer, width]
    ROUTED_EXPERT_AT = auto()  # int64[token, used]: the experts of each token of this layer
    ROUTED_WEIGHT_AT = auto()  # float32[token, used]: their routing weights
    ROUTED_H_AT = auto()  # float32[token, used · d_ff + shared width]: |g·h| of these experts
    LAYER_OUTPUT_AT = auto()  # float32[token, d_model]: Σ_e g_e · W_down,e·h_e so far
    COMPUTED = auto()  # in mixtures: address of the last node whose value was asked for
    VISITS_AT = auto()  # int64[layer]: how often the layer was read or scaled in this decode
    FAULT = auto()  # a Fault


class LayerAction(IntEnum):
    """Bits that say what the callback does at a layer."""

    SCALE = 1  # by factors that hold for all tokens
    WATCH = 2
    TRACE = 4
    SCALE_TOKENS = 8  # by a factor for each token


SCALING = LayerAction.SCALE | LayerAction.SCALE_TOKENS
"""The actions that change h."""


class Fault(IntEnum):
    """Why the callback could not read a tensor. It continues; the decode then raises an error."""

    NONE = 0
    SHAPE = 1  # not d_ff wide, or not dense float32
    ROWS = 2  # the number of rows is neither that of the tokens nor that of the outputs
    MEMORY = 3  # outside host memory, though the model was opened for the CPU
    ORDER = 4  # nodes of a mixture are computed in another order than in the inspected graph


_INTS = {
    *(Field.ACTIONS_AT, Field.OUTPUT_TOKEN_AT, Field.TRACE_ROW_AT, Field.VISITS_AT),
    *(Field.SCALE_START_AT, Field.SCALE_INDEX_AT, Field.WATCH_START_AT, Field.WATCH_INDEX_AT),
    Field.ROUTED_EXPERT_AT,
    *(Field.TOKEN_SCALE_START_AT, Field.TOKEN_SCALE_INDEX_AT),
}
_BYTES = {field for field in Field if field.name.endswith("NAME_AT")}
DTYPES = {
    field: np.dtype("i8" if field in _INTS else "u1" if field in _BYTES else "f4")
    for field in Field
    if field.name.endswith("_AT")
}
"""The dtype of each array."""
WRITTEN = {
    *(Field.SCRATCH_AT, Field.WATCH_VALUE_AT, Field.WATCH_DENOMINATOR_AT),
    *(Field.TRACE_VALUE_AT, Field.VISITS_AT),
    *(Field.ROUTED_EXPERT_AT, Field.ROUTED_WEIGHT_AT, Field.ROUTED_H_AT, Field.LAYER_OUTPUT_AT),
}
"""The arrays that the callback writes to."""
