"""What the native callback is to do, and the arrays that it reads from and writes to."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
from jaxtyping import Float, Int

from hq.errors import HQError
from hq.llamacpp.graph import GraphNodes
from hq.llamacpp.state import DTYPES, WRITTEN, CallbackMode, Fault, Field
from hq.neurons.cett import Measure, require_measures
from hq.neurons.factors import check_factors

_NAME_BYTES = 63  # of a node's name at most: GGML_MAX_NAME, less the zero that ends it
_NEVER = -1  # a measure that is not wanted
_FIELDS: dict[Measure, Field] = {
    "sum": Field.SUM,
    "output": Field.OUTPUT,
    "contribution": Field.CONTRIBUTION,
}


class GraphObserver:
    """The state of one context's callback.

    Scaling goes first, so that what is read is what the model goes on with. `begin` and `end`
    enclose each decode. One task reads at a time: `watched` and `traced` exclude each other.

    Raises HQError, here and in every method, for arrays that the callback would misread: it knows
    addresses only, and writes wherever they say.
    """

    def __init__(
        self,
        products: GraphNodes,
        norms: Float[np.ndarray, "layer d_ff"],
        capacity: int,
        scales: "ActivationScales",
        on_host: bool = True,
    ) -> None:
        layers, d_ff = products.layers, products.d_ff
        _require(capacity > 0, f"a decode of at most {capacity} tokens")
        _require(scales.shape == (layers, d_ff), f"scales of a model of shape {scales.shape}")
        self.capacity = capacity
        self._products = products
        self._state = np.zeros(len(Field), dtype=np.int64)
        self._arrays: dict[Field, np.ndarray] = {}  # kept, as the callback has their addresses
        self._scales, self._taken = scales, -1
        self._attached = False
        self._traced: int | None = None  # tokens that the trace in progress expects
        self._jobs = np.zeros(layers, dtype=np.int64)
        self._visits = np.zeros(layers, dtype=np.int64)
        self._set(Field.LAYERS, layers)
        self._set(Field.D_FF, d_ff)
        self._set(Field.D_MODEL, products.d_model)
        self._set(Field.COPY, not on_host)
        self._name(Field.PRODUCT_AT, Field.PRODUCT_LENGTH, products.product)
        self._name(Field.DOWN_AT, Field.DOWN_LENGTH, products.down)
        self._give(Field.NORMS_AT, np.ascontiguousarray(norms, dtype=np.float32), layers, d_ff)
        self._give(Field.JOBS_AT, self._jobs, layers)
        self._give(Field.VISITS_AT, self._visits, layers)
        if not on_host:
            size = capacity * max(d_ff, products.d_model)
            self._give(Field.SCRATCH_AT, np.empty(size, dtype=np.float32), size)
        self._measure(())

    def attach(self) -> int:
        """Address of the state, the callback's user data, for the one context that it is for.

        Raises HQError for a second one: they would overwrite each other's readings.
        """
        _require(not self._attached, "the state of another context: make a tap for each")
        self._attached = True
        return self._state.ctypes.data

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do at any layer."""
        return not self._jobs.any()

    @contextmanager
    def watched(self, neurons: Sequence[tuple[int, int]], whole: Measure) -> Iterator["Watch"]:
        """Contributions of some neurons at every token, and the sum or norm of their layers.

        `whole` is what a contribution is divided by: `sum` or `output`.
        """
        _require(whole in ("sum", "output"), f"{whole!r} to divide contributions by")
        order = np.array(
            sorted(range(len(neurons)), key=lambda k: neurons[k]), dtype=np.int64
        )  # by layer
        chosen = np.array(neurons, dtype=np.int64).reshape(-1, 2)[order]
        layers, indices = chosen[:, 0], np.ascontiguousarray(chosen[:, 1])
        _require_below("layer", layers, self._products.layers)
        _require_below("neuron", indices, self._products.d_ff)
        count, size = len(neurons), self._products.layers
        watch = Watch(
            values=np.zeros((self.capacity, count), dtype=np.float32),
            wholes=np.ones((self.capacity, size), dtype=np.float32),
            layers=layers,
            places=np.argsort(order),
        )
        with self._reading((whole,)):
            self._give(Field.WATCH_START_AT, self._starts(layers), size + 1)
            self._give(Field.WATCH_INDEX_AT, indices, count)
            self._give(Field.WATCH_VALUE_AT, watch.values, self.capacity, count)
            self._give(Field.WATCH_WHOLE_AT, watch.wholes, self.capacity, size)
            self._set(Field.WATCHED, count)
            self._jobs[layers] |= CallbackMode.WATCH
            yield watch

    @contextmanager
    def traced(
        self,
        rows: Int[np.ndarray, " token"],
        weights: Float[np.ndarray, "token span"],
        values: Float[np.ndarray, "exchange measure span layer d_ff"],
        measures: tuple[Measure, ...],
    ) -> Iterator[None]:
        """Adds each token's CETT, times its weights, to the values of its exchange.

        The decode inside must be of exactly these tokens.
        """
        tokens, spans = weights.shape
        shape = (len(measures), spans, self._products.layers, self._products.d_ff)
        _require_below("exchange", rows, len(values))
        with self._reading(measures):
            self._give(Field.TRACE_ROW_AT, rows, tokens)
            self._give(Field.TRACE_WEIGHT_AT, weights, tokens, spans)
            self._give(Field.TRACE_VALUE_AT, values, len(values), *shape)
            self._set(Field.SPANS, spans)
            self._jobs |= CallbackMode.TRACE
            self._traced = tokens
            yield

    def begin(self, tokens: int, outputs: Int[np.ndarray, " output"]) -> None:
        """Before a decode of so many tokens, whose logits are wanted at the tokens `outputs`."""
        if not 0 < tokens <= self.capacity:
            raise _misread(f"{tokens} tokens in place of at most {self.capacity}")
        if self._traced not in (None, tokens):
            raise _misread(f"{tokens} tokens to trace {self._traced}")
        _require_below("output", outputs, tokens)
        self._set(Field.TOKENS, tokens)
        self._set(Field.OUTPUTS, len(outputs))
        self._give(Field.OUTPUT_AT, outputs, len(outputs))
        self._set(Field.FAULT, Fault.NONE)
        self._take_scales()
        self._visits[:] = 0

    def end(self) -> None:
        """After a decode. Raises HQError if a layer was not computed, or could not be read."""
        fault = Fault(int(self._state[Field.FAULT]))
        missed = np.flatnonzero((self._jobs != 0) & (self._visits == 0))
        if fault or len(missed):
            where = f"layer {missed[0]} was not computed" if len(missed) else _FAULTS[fault]
            raise HQError(
                f"llama.cpp's FFN products could not be read ({where}): nothing of this decode is "
                "kept; install the version of llama-cpp-python that hq[llama] names."
            )

    @property
    def factors(self) -> "Factors":
        """What is scaled at present, in every context of the model."""
        return self._scales.factors

    @contextmanager
    def _reading(self, measures: tuple[Measure, ...]) -> Iterator[None]:
        """The jobs of one reader; they end with it."""
        if (self._jobs & ~CallbackMode.SCALE).any():
            raise HQError(
                "This context is being read already: end that reading, or open another context."
            )
        require_measures(measures)
        self._measure(measures)
        try:
            yield
        finally:
            self._jobs &= CallbackMode.SCALE
            self._traced = None
            self._measure(())

    def _take_scales(self) -> None:
        """The present scales, if they have changed since the last decode."""
        if self._taken != self._scales.version:
            layers, indices, factors = self._scales.laid_out()
            self._give(Field.SCALE_START_AT, self._starts(layers), self._products.layers + 1)
            self._give(Field.SCALE_INDEX_AT, indices, len(indices))
            self._give(Field.SCALE_FACTOR_AT, factors, len(indices))
            self._jobs &= ~CallbackMode.SCALE
            self._jobs[layers] |= CallbackMode.SCALE
            self._taken = self._scales.version

    def _starts(self, layers: Int[np.ndarray, " n"]) -> Int[np.ndarray, " layer_plus_1"]:
        return np.searchsorted(layers, np.arange(self._products.layers + 1)).astype(np.int64)

    def _measure(self, measures: tuple[Measure, ...]) -> None:
        for measure, field in _FIELDS.items():
            self._set(field, measures.index(measure) if measure in measures else _NEVER)
        self._set(Field.MEASURES, len(measures))
        self._set(Field.READ_AT_DOWN, "output" in measures)

    def _name(self, at: Field, length: Field, name: str) -> None:
        encoded = name.encode()
        _require(0 < len(encoded) <= _NAME_BYTES, f"a node called {name!r}")
        self._give(at, np.frombuffer(encoded, dtype=np.uint8), len(encoded))
        self._set(length, len(encoded))

    def _give(self, field: Field, array: np.ndarray, *shape: int) -> None:
        """Hands the callback an array, which must be what the callback takes it for."""
        flags = array.flags
        fits = flags.c_contiguous and flags.aligned and (flags.writeable or field not in WRITTEN)
        if not fits or array.dtype != DTYPES[field] or array.shape != shape:
            raise _misread(
                f"{field.name} as {array.dtype}{list(array.shape)} in place of a contiguous "
                f"{DTYPES[field]}{list(shape)}"
            )
        self._arrays[field] = array
        self._set(field, array.ctypes.data)

    def _set(self, field: Field, value: int) -> None:
        self._state[field] = value


Factors = list[Mapping[tuple[int, int], float]]


class ActivationScales:
    """The factors in force at one model, for the taps of all its contexts."""

    def __init__(self, layers: int, d_ff: int) -> None:
        self.shape = (layers, d_ff)
        self._active: Factors = []
        self.version = 0

    @property
    def factors(self) -> Factors:
        """What is in force at present; compare two of these to see whether it changed."""
        return list(self._active)

    @contextmanager
    def scaled(self, factors: Mapping[tuple[int, int], float]) -> Iterator[None]:
        """h_i ← α·h_i from the next decode on, while the context lasts; nested ones multiply.

        Raises HQError for a neuron that the model lacks, or an α that is not a number from 0 up.
        """
        check_factors(factors, *self.shape)
        mine = dict(factors)  # a later change of the caller's mapping is not checked
        self._active.append(mine)
        self.version += 1
        try:
            yield
        finally:
            self._active.remove(mine)
            self.version += 1

    def laid_out(
        self,
    ) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " n"], Float[np.ndarray, " n"]]:
        """Layer, coordinate and α of every factor, by layer, in the order in which they came."""
        triples = [(*neuron, a) for factors in self._active for neuron, a in factors.items()]
        triples.sort(key=lambda triple: triple[0])
        layers, indices = (np.array([t[k] for t in triples], dtype=np.int64) for k in (0, 1))
        return layers, indices, np.array([t[2] for t in triples], dtype=np.float32)


class Watch:
    """The readings of the last decode, one row per token."""

    def __init__(
        self,
        values: Float[np.ndarray, "token watched"],
        wholes: Float[np.ndarray, "token layer"],
        layers: Int[np.ndarray, " watched"],
        places: Int[np.ndarray, " watched"],
    ) -> None:
        self.values, self.wholes = values, wholes
        self._layers, self._places = layers, places

    def cett(self, tokens: int) -> Float[np.ndarray, "token watched"]:
        """Shares of the whole, in the order in which the neurons were named; zero where it is."""
        wholes = self.wholes[:tokens][:, self._layers]
        shares = np.divide(
            self.values[:tokens], wholes, out=np.zeros_like(wholes), where=wholes != 0
        )
        ordered: Float[np.ndarray, "token watched"] = shares[:, self._places]
        return ordered


def _require(holds: bool, found: str) -> None:
    """Raises HQError for what the callback would misread, also where `assert` is switched off."""
    if not holds:
        raise _misread(found)


def _misread(found: str) -> HQError:
    return HQError(f"llama.cpp's callback cannot take {found}.")


def _require_below(what: str, numbers: Int[np.ndarray, " n"], limit: int) -> None:
    """Raises HQError unless every number is an index below the limit."""
    if len(numbers):
        low, high = numbers.min(), numbers.max()
        if low < 0 or high >= limit:
            raise _misread(f"{what} {low if low < 0 else high} of {limit}")


_FAULTS = {
    Fault.NONE: "",
    Fault.SHAPE: "one is not dense float32 of the FFN's width",
    Fault.ROWS: "one has other rows than the tokens decoded",
    Fault.PLACE: "one is outside host memory, though the model was opened for the CPU",
}
