"""The words that Python and the native callback share: an int64 array, addressed by these names."""

from enum import IntEnum, auto

import numpy as np


class Field(IntEnum):
    """Words of the state. Those named `*_AT` are addresses of arrays that Python owns."""

    PRODUCT_AT = 0  # uint8: what the names of FFN products begin with, up to the layer's number
    PRODUCT_LENGTH = auto()
    DOWN_AT = auto()  # uint8: the same of down projections' results
    DOWN_LENGTH = auto()
    LAYERS = auto()
    D_FF = auto()
    D_MODEL = auto()
    JOBS_AT = auto()  # int64[layer]: what is to be done there, see CallbackMode
    READ_AT_DOWN = auto()  # whether reading waits for the down projection's result
    COPY = auto()  # whether tensors are copied to the scratch: some may be outside host memory
    SCRATCH_AT = auto()  # float32[token, max(d_ff, d_model)]
    TOKENS = auto()  # tokens of this decode
    OUTPUTS = auto()  # those of them whose logits are wanted: the last layer may have no others
    OUTPUT_AT = auto()  # int64[output]: which tokens they are
    NORMS_AT = auto()  # float32[layer, d_ff]: ‖W_down[:, i]‖₂
    SCALE_START_AT = auto()  # int64[layer + 1]: each layer's part of the next two
    SCALE_INDEX_AT = auto()  # int64: coordinate
    SCALE_FACTOR_AT = auto()  # float32: its α
    WATCH_START_AT = auto()  # int64[layer + 1]: each layer's part of WATCH_INDEX
    WATCH_INDEX_AT = auto()  # int64: coordinate
    WATCHED = auto()  # how many there are
    WATCH_VALUE_AT = auto()  # float32[token, watched]: contribution
    WATCH_WHOLE_AT = auto()  # float32[token, layer]: Σ_j contribution_j, or ‖W_down·h‖
    TRACE_ROW_AT = auto()  # int64[token]: the exchange that it belongs to
    TRACE_WEIGHT_AT = auto()  # float32[token, span]
    SPANS = auto()
    MEASURES = auto()
    SUM = auto()  # place among the measures, -1 where it is not wanted; likewise the next two
    OUTPUT = auto()
    CONTRIBUTION = auto()
    TRACE_VALUE_AT = auto()  # float32[exchange, measure, span, layer, d_ff]
    VISITS_AT = auto()  # int64[layer]: how often it was read or scaled in this decode
    FAULT = auto()  # see Fault


class CallbackMode(IntEnum):
    """What is done with a layer's product."""

    SCALE = 1
    WATCH = 2
    TRACE = 4


class Fault(IntEnum):
    """What the callback met and could not read; it goes on, and the decode is then refused."""

    NONE = 0
    SHAPE = 1  # not d_ff wide, or not dense float32
    ROWS = 2  # as many rows as neither the tokens nor the outputs
    PLACE = 3  # outside host memory, though the model was opened for the CPU


_INTS = {
    *(Field.JOBS_AT, Field.OUTPUT_AT, Field.TRACE_ROW_AT, Field.VISITS_AT),
    *(Field.SCALE_START_AT, Field.SCALE_INDEX_AT, Field.WATCH_START_AT, Field.WATCH_INDEX_AT),
}
_BYTES = {Field.PRODUCT_AT, Field.DOWN_AT}
DTYPES = {
    field: np.dtype("i8" if field in _INTS else "u1" if field in _BYTES else "f4")
    for field in Field
    if field.name.endswith("_AT")
}
"""The dtype of each array."""
WRITTEN = {
    *(Field.SCRATCH_AT, Field.WATCH_VALUE_AT, Field.WATCH_WHOLE_AT),
    *(Field.TRACE_VALUE_AT, Field.VISITS_AT),
}
"""The arrays that the callback writes to."""
