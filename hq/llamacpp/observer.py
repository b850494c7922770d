"""What the compiled callback does in each decode, and the arrays that it reads and writes."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
from jaxtyping import Float, Int

from hq.errors import HQError
from hq.llamacpp.graph import GraphNodes
from hq.llamacpp.state import DTYPES, SCALING, WRITTEN, Fault, Field, LayerAction
from hq.neurons.cett import Measure, require_measures
from hq.neurons.factors import Factors, check_factors
from hq.neurons.space import NeuronSpace

_NAME_BYTES = 63  # maximum length of a node's name: GGML_MAX_NAME without the final zero
_NOT_COMPUTED = -1  # index of a measure that is not computed
_MEASURE_FIELDS: dict[Measure, Field] = {
    "sum": Field.SUM_MEASURE,
    "output": Field.OUTPUT_MEASURE,
    "contribution": Field.CONTRIBUTION_MEASURE,
}


class GraphObserver:
    """The state of the callback in one context.

    Scaling comes before reading, so what is read is what the model goes on with. `begin` and `end`
    enclose each decode. `watched` and `traced` exclude each other.

    Every method raises HQError if an array is not what the callback expects: the callback knows
    addresses only, and writes to them unchecked.
    """

    def __init__(
        self,
        nodes: GraphNodes,
        norms: Float[np.ndarray, "layer width"],
        capacity: int,
        scales: "ActivationScales",
        on_host: bool = True,
    ) -> None:
        layers, width = nodes.layers, nodes.width
        _require(capacity > 0, f"a decode of at most {capacity} tokens")
        _require(scales.shape == (layers, width), f"scales of a model of shape {scales.shape}")
        self.capacity = capacity
        self._nodes = nodes
        self._state = np.zeros(len(Field), dtype=np.int64)
        self._arrays: dict[Field, np.ndarray] = {}  # keeps alive what the callback points to
        self._scales, self._scales_version = scales, -1
        self._attached = False
        self._token_factors: Float[np.ndarray, " token"] | None = None
        self._token_scaled: Int[np.ndarray, " n"] = np.zeros(0, dtype=np.int64)  # their layers
        self._traced_tokens: int | None = None  # that the decode in `traced` must have
        self._actions = np.zeros(layers, dtype=np.int64)
        self._visits = np.zeros(layers, dtype=np.int64)
        self._set(Field.LAYERS, layers)
        self._set(Field.D_FF, nodes.d_ff)
        self._set(Field.WIDTH, width)
        self._set(Field.D_MODEL, nodes.d_model)
        self._set(Field.COPY, not on_host)
        self._set_name(Field.H_NAME_AT, Field.H_NAME_LENGTH, nodes.h)
        self._set_name(Field.OUTPUT_NAME_AT, Field.OUTPUT_NAME_LENGTH, nodes.output)
        norms = np.ascontiguousarray(norms, dtype=np.float32)
        self._set_array(Field.NORMS_AT, norms, layers, width)
        self._set_array(Field.ACTIONS_AT, self._actions, layers)
        self._set_array(Field.VISITS_AT, self._visits, layers)
        if not on_host:
            size = capacity * _widest(nodes)
            self._set_array(Field.SCRATCH_AT, np.empty(size, dtype=np.float32), size)
        self._set_mixture()
        self._set_measures(())

    def _set_mixture(self) -> None:
        """Give the callback the nodes of experts, and room for what a token reads of them."""
        mixture, capacity = self._nodes.mixture, self.capacity
        if mixture is None:
            return
        sizes, d_ff, d_model = mixture.sizes, self._nodes.d_ff, self._nodes.d_model
        self._set(Field.EXPERTS, sizes.count)
        self._set(Field.USED_EXPERTS, sizes.used)
        self._set(Field.SHARED_WIDTH, sizes.shared_width)
        self._set_name(Field.WEIGHTED_NAME_AT, Field.WEIGHTED_NAME_LENGTH, mixture.weighted)
        if sizes.shared_width:
            for address, length, name in (
                (Field.SHARED_H_NAME_AT, Field.SHARED_H_NAME_LENGTH, mixture.shared_h),
                (
                    Field.SHARED_OUTPUT_NAME_AT,
                    Field.SHARED_OUTPUT_NAME_LENGTH,
                    mixture.shared_output,
                ),
                (Field.SHARED_GATE_NAME_AT, Field.SHARED_GATE_NAME_LENGTH, mixture.shared_gate),
                (
                    Field.SHARED_WEIGHTED_NAME_AT,
                    Field.SHARED_WEIGHTED_NAME_LENGTH,
                    mixture.shared_weighted,
                ),
            ):
                self._set_name(address, length, name)
        for where, width, dtype in (
            (Field.ROUTED_EXPERT_AT, sizes.used, np.int64),
            (Field.ROUTED_WEIGHT_AT, sizes.used, np.float32),
            (Field.ROUTED_H_AT, sizes.used * d_ff + sizes.shared_width, np.float32),
            (Field.LAYER_OUTPUT_AT, d_model, np.float32),
        ):
            self._set_array(where, np.zeros((capacity, width), dtype=dtype), capacity, width)

    def attach(self) -> int:
        """Return the address of the state, the callback's user data, for one context.

        Raises HQError the second time: two contexts would overwrite each other's readings.
        """
        _require(not self._attached, "the observer of another context: create one for each")
        self._attached = True
        return self._state.ctypes.data

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do at any layer."""
        return not self._actions.any()

    @contextmanager
    def watched(
        self, neurons: Sequence[tuple[int, int]], measure: Measure
    ) -> Iterator["NeuronReadings"]:
        """Read the CETT of some neurons at every token, by the measure `sum` or `output`.

        A neuron is a layer and an index among the neurons of the layer, all experts together.
        """
        _require(measure in ("sum", "output"), f"{measure!r} as the measure of watched neurons")
        order = np.array(
            sorted(range(len(neurons)), key=lambda k: neurons[k]), dtype=np.int64
        )  # by layer
        by_layer = np.array(neurons, dtype=np.int64).reshape(-1, 2)[order]
        layers, indices = by_layer[:, 0], np.ascontiguousarray(by_layer[:, 1])
        _require_below("layer", layers, self._nodes.layers)
        _require_below("neuron", indices, self._nodes.width)
        count, n_layers = len(neurons), self._nodes.layers
        readings = NeuronReadings(
            values=np.zeros((self.capacity, count), dtype=np.float32),
            denominators=np.ones((self.capacity, n_layers), dtype=np.float32),
            layers=layers,
            ranks=np.argsort(order),
        )
        with self._reading((measure,)):
            self._set_array(Field.WATCH_START_AT, self._starts(layers), n_layers + 1)
            self._set_array(Field.WATCH_INDEX_AT, indices, count)
            self._set_array(Field.WATCH_VALUE_AT, readings.values, self.capacity, count)
            self._set_array(
                Field.WATCH_DENOMINATOR_AT, readings.denominators, self.capacity, n_layers
            )
            self._set(Field.WATCHED, count)
            self._actions[layers] |= LayerAction.WATCH
            yield readings

    @contextmanager
    def scaled_by_token(
        self, neurons: Sequence[tuple[int, int]]
    ) -> Iterator[Float[np.ndarray, " token"]]:
        """Scale some neurons by a factor of each token's own: h_i ← α_t·h_i.

        Yields the factors, one per token of a decode and 1 at first: write those of a decode's
        tokens before it. Other factors (`ActivationScales`) are multiplied.
        """
        _require(self._nodes.mixture is None, "a factor for each token in a mixture of experts")
        _require(self._token_factors is None, "two sets of factors per token")
        by_layer = np.array(sorted(neurons), dtype=np.int64).reshape(-1, 2)
        layers, indices = by_layer[:, 0], np.ascontiguousarray(by_layer[:, 1])
        _require_below("layer", layers, self._nodes.layers)
        _require_below("neuron", indices, self._nodes.d_ff)
        factors: Float[np.ndarray, " token"] = np.ones(self.capacity, dtype=np.float32)
        starts = self._starts(layers)
        self._set_array(Field.TOKEN_SCALE_START_AT, starts, self._nodes.layers + 1)
        self._set_array(Field.TOKEN_SCALE_INDEX_AT, indices, len(indices))
        self._set_array(Field.TOKEN_FACTOR_AT, factors, self.capacity)
        self._token_factors, self._token_scaled = factors, np.unique(layers)
        try:
            yield factors
        finally:
            self._token_factors = None
            self._actions &= ~LayerAction.SCALE_TOKENS

    @contextmanager
    def traced(
        self,
        rows: Int[np.ndarray, " token"],
        weights: Float[np.ndarray, "token span"],
        values: Float[np.ndarray, "row measure span layer width"],
        measures: tuple[Measure, ...],
    ) -> Iterator[None]:
        """Add each token's CETT, times its weight in each span, to `values` at the token's row.

        The decodes inside must be of exactly these tokens.
        """
        tokens, spans = weights.shape
        shape = (len(measures), spans, self._nodes.layers, self._nodes.width)
        _require_below("row", rows, len(values))
        with self._reading(measures):
            self._set_array(Field.TRACE_ROW_AT, rows, tokens)
            self._set_array(Field.TRACE_WEIGHT_AT, weights, tokens, spans)
            self._set_array(Field.TRACE_VALUE_AT, values, len(values), *shape)
            self._set(Field.SPANS, spans)
            self._actions |= LayerAction.TRACE
            self._traced_tokens = tokens
            yield

    def begin(self, tokens: int, outputs: Int[np.ndarray, " output"]) -> None:
        """Prepare a decode of so many tokens, with logits at the indices `outputs`."""
        if not 0 < tokens <= self.capacity:
            raise _misread(f"{tokens} tokens instead of at most {self.capacity}")
        if self._traced_tokens not in (None, tokens):
            raise _misread(f"{tokens} tokens to trace {self._traced_tokens}")
        _require_below("output", outputs, tokens)
        self._set(Field.TOKENS, tokens)
        self._set(Field.OUTPUTS, len(outputs))
        self._set_array(Field.OUTPUT_TOKEN_AT, outputs, len(outputs))
        self._set(Field.FAULT, Fault.NONE)
        self._update_scales()
        if self._token_factors is not None:
            self._actions &= ~LayerAction.SCALE_TOKENS
            if (self._token_factors[:tokens] != 1).any():
                self._actions[self._token_scaled] |= LayerAction.SCALE_TOKENS
        self._visits[:] = 0

    def end(self) -> None:
        """Check a decode. Raises HQError if a layer was not computed or could not be read."""
        fault = Fault(int(self._state[Field.FAULT]))
        missed = np.flatnonzero((self._actions != 0) & (self._visits == 0))
        if fault or len(missed):
            reason = f"layer {missed[0]} was not computed" if len(missed) else _FAULTS[fault]
            raise HQError(
                f"The FFN activations in llama.cpp could not be read ({reason}), so this decode is "
                "discarded: install the version of llama-cpp-python that hq[llama] requires."
            )

    @property
    def factors(self) -> "ActiveFactors":
        """The factors that scale activations now, in every context of the model."""
        return self._scales.factors

    @contextmanager
    def _reading(self, measures: tuple[Measure, ...]) -> Iterator[None]:
        """Compute these measures, and remove the reader's actions at the end."""
        if (self._actions & ~SCALING).any():
            raise HQError(
                "This context is being read already: end that reading, or open another context."
            )
        require_measures(measures)
        self._set_measures(measures)
        try:
            yield
        finally:
            self._actions &= SCALING
            self._traced_tokens = None
            self._set_measures(())

    def _update_scales(self) -> None:
        """Give the callback the active scales if they have changed since the last decode."""
        if self._scales_version != self._scales.version:
            layers, indices, factors = self._scales.flat()
            self._set_array(Field.SCALE_START_AT, self._starts(layers), self._nodes.layers + 1)
            self._set_array(Field.SCALE_INDEX_AT, indices, len(indices))
            self._set_array(Field.SCALE_FACTOR_AT, factors, len(indices))
            self._actions &= ~LayerAction.SCALE
            self._actions[layers] |= LayerAction.SCALE
            self._scales_version = self._scales.version

    def _starts(self, layers: Int[np.ndarray, " n"]) -> Int[np.ndarray, " layer_plus_1"]:
        """Where each layer begins in the sorted array `layers`."""
        return np.searchsorted(layers, np.arange(self._nodes.layers + 1)).astype(np.int64)

    def _set_measures(self, measures: tuple[Measure, ...]) -> None:
        for measure, field in _MEASURE_FIELDS.items():
            self._set(field, measures.index(measure) if measure in measures else _NOT_COMPUTED)
        self._set(Field.MEASURES, len(measures))
        self._set(Field.READ_AT_OUTPUT, "output" in measures)

    def _set_name(self, address: Field, length: Field, name: str) -> None:
        encoded = name.encode()
        _require(0 < len(encoded) <= _NAME_BYTES, f"a node called {name!r}")
        self._set_array(address, np.frombuffer(encoded, dtype=np.uint8), len(encoded))
        self._set(length, len(encoded))

    def _set_array(self, field: Field, array: np.ndarray, *shape: int) -> None:
        """Give the callback an array of the dtype and shape that it expects."""
        flags = array.flags
        fits = flags.c_contiguous and flags.aligned and (flags.writeable or field not in WRITTEN)
        if not fits or array.dtype != DTYPES[field] or array.shape != shape:
            raise _misread(
                f"{field.name} as {array.dtype}{list(array.shape)} instead of a contiguous "
                f"{DTYPES[field]}{list(shape)}"
            )
        self._arrays[field] = array
        self._set(field, array.ctypes.data)

    def _set(self, field: Field, value: int) -> None:
        self._state[field] = value


ActiveFactors = list[Factors]
"""The factors of all active `scaled` contexts, the outermost first."""


class ActivationScales:
    """The factors that scale a model's activations, shared by the observers of its contexts.

    `shape` is the number of layers and of neurons in each, all experts together.
    """

    def __init__(self, space: NeuronSpace) -> None:
        self._space = space
        self.shape = (space.n_layers, len(space) // space.n_layers)
        self._active: ActiveFactors = []
        self.version = 0  # increases with every change

    @property
    def factors(self) -> ActiveFactors:
        """The active factors; two equal values mean the same scales."""
        return list(self._active)

    @contextmanager
    def scaled(self, factors: Factors) -> Iterator[None]:
        """Apply h_i ← α·h_i from the next decode on; nested contexts multiply.

        Raises HQError if the model has no such neuron, or if an α is not finite and at least 0.
        """
        check_factors(factors, self._space)
        copied = dict(factors)  # later changes of the caller's mapping have no effect
        self._active.append(copied)
        self.version += 1
        try:
            yield
        finally:
            self._active.remove(copied)
            self.version += 1

    def flat(
        self,
    ) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " n"], Float[np.ndarray, " n"]]:
        """Layer, index in it and α of every active factor, by neuron, the outermost first."""
        pairs = [pair for factors in self._active for pair in factors.items()]
        flat = self._space.flat_of(position for position, _ in pairs)
        order = np.argsort(flat, kind="stable")
        layers, indices = np.divmod(flat[order], self.shape[1])
        return layers, indices, np.array([a for _, a in pairs], dtype=np.float32)[order]


class NeuronReadings:
    """Contributions of watched neurons in the last decode, one row per token, and denominators.

    Neurons are sorted by layer; `ranks` has each one's index in that order.
    """

    def __init__(
        self,
        values: Float[np.ndarray, "token watched"],
        denominators: Float[np.ndarray, "token layer"],
        layers: Int[np.ndarray, " watched"],
        ranks: Int[np.ndarray, " watched"],
    ) -> None:
        self.values, self.denominators = values, denominators
        self._layers, self._ranks = layers, ranks

    def cett(self, tokens: int) -> Float[np.ndarray, "token watched"]:
        """CETT at the first `tokens` tokens, in the order in which the neurons were named.

        It is zero where the denominator is zero.
        """
        denominators = self.denominators[:tokens][:, self._layers]
        shares = np.divide(
            self.values[:tokens],
            denominators,
            out=np.zeros_like(denominators),
            where=denominators != 0,
        )
        named_order: Float[np.ndarray, "token watched"] = shares[:, self._ranks]
        return named_order


def _require(condition: bool, otherwise: str) -> None:
    """Raises HQError unless the condition is true; works under `python -O`, unlike `assert`."""
    if not condition:
        raise _misread(otherwise)


def _misread(what: str) -> HQError:
    return HQError(f"llama.cpp's callback cannot take {what}.")


def _require_below(what: str, numbers: Int[np.ndarray, " n"], limit: int) -> None:
    """Raises HQError unless every number is an index below the limit."""
    if len(numbers):
        low, high = numbers.min(), numbers.max()
        if low < 0 or high >= limit:
            raise _misread(f"{what} {low if low < 0 else high} of {limit}")


def _widest(nodes: GraphNodes) -> int:
    """The largest number of values per token of a tensor that is copied."""
    if nodes.mixture is None:
        return max(nodes.d_ff, nodes.d_model)
    sizes = nodes.mixture.sizes
    return max(
        sizes.used * max(nodes.d_ff, nodes.d_model), nodes.d_model, sizes.count, sizes.shared_width
    )


_FAULTS = {
    Fault.NONE: "",
    Fault.SHAPE: "a tensor is not dense float32 with the width of the FFN",
    Fault.ROWS: "a tensor has another number of rows than the decode has tokens",
    Fault.MEMORY: "a tensor is outside host memory, though the model was opened for the CPU",
    Fault.ORDER: "the nodes of a mixture of experts come in another order",
}
