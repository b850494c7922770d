"""What the native callback is to do, and the arrays that it reads from and writes to."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
from jaxtyping import Float, Int

from hq.backends.base import check_factors
from hq.cett import Measure
from hq.errors import HQError
from hq.llama.products import Products
from hq.llama.state import Fault, Field, Job

_NEVER = -1  # a measure that is not wanted
_FIELDS: dict[Measure, Field] = {
    "sum": Field.SUM,
    "output": Field.OUTPUT,
    "contribution": Field.CONTRIBUTION,
}


class Tap:
    """The state of one context's callback.

    Scaling goes first, so that what is read is what the model went on with. `begin` and `end` stand
    around each decode.
    """

    def __init__(
        self,
        products: Products,
        norms: Float[np.ndarray, "layer d_ff"],
        capacity: int,
        scales: "Scales",
    ) -> None:
        self._products = products
        self._capacity = capacity
        self._state = np.zeros(len(Field), dtype=np.int64)
        self._arrays: dict[Field, np.ndarray] = {}  # kept, as the callback has their addresses
        self._scales, self._taken = scales, -1
        self._jobs = np.zeros(products.layers, dtype=np.int64)
        self._visits = np.zeros(products.layers, dtype=np.int64)
        self._set(Field.LAYERS, products.layers)
        self._set(Field.D_FF, products.d_ff)
        self._set(Field.COPY, not products.on_host)
        self._name(Field.PRODUCT_AT, Field.PRODUCT_LENGTH, products.product)
        self._name(Field.DOWN_AT, Field.DOWN_LENGTH, products.down)
        self._give(Field.NORMS_AT, np.ascontiguousarray(norms, dtype=np.float32))
        self._give(Field.JOBS_AT, self._jobs)
        self._give(Field.VISITS_AT, self._visits)
        if not products.on_host:
            width = max(products.d_ff, products.d_model)
            self._give(Field.SCRATCH_AT, np.empty(capacity * width, dtype=np.float32))
        self._measure(())

    @property
    def address(self) -> int:
        """Of the state: the callback's user data."""
        return self._state.ctypes.data

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do at any layer."""
        return not self._jobs.any()

    @contextmanager
    def watched(self, neurons: Sequence[tuple[int, int]], whole: Measure) -> Iterator["Watch"]:
        """Contributions of some neurons at every token, and the wholes of their layers.

        `whole` is what a contribution is divided by: `sum` or `output`.
        """
        order = np.array(
            sorted(range(len(neurons)), key=lambda k: neurons[k]), dtype=np.int64
        )  # by layer
        chosen = np.array(neurons, dtype=np.int64).reshape(-1, 2)[order]
        watch = Watch(
            values=np.zeros((self._capacity, len(neurons)), dtype=np.float32),
            wholes=np.ones((self._capacity, self._products.layers), dtype=np.float32),
            layers=chosen[:, 0],
            places=np.argsort(order),
        )
        self._give(Field.WATCH_START_AT, self._starts(chosen[:, 0]))
        self._give(Field.WATCH_INDEX_AT, np.ascontiguousarray(chosen[:, 1]))
        self._give(Field.WATCH_VALUE_AT, watch.values)
        self._give(Field.WATCH_WHOLE_AT, watch.wholes)
        self._set(Field.WATCHED, len(neurons))
        self._measure((whole,))
        self._jobs[chosen[:, 0]] |= Job.WATCH
        try:
            yield watch
        finally:
            self._jobs &= ~Job.WATCH
            self._measure(())

    @contextmanager
    def traced(
        self,
        rows: Int[np.ndarray, " token"],
        weights: Float[np.ndarray, "token span"],
        values: Float[np.ndarray, "exchange measure span layer d_ff"],
        measures: tuple[Measure, ...],
    ) -> Iterator[None]:
        """Adds each token's CETT, times its weights, to the values of its exchange."""
        self._give(Field.TRACE_ROW_AT, rows)
        self._give(Field.TRACE_WEIGHT_AT, weights)
        self._give(Field.TRACE_VALUE_AT, values)
        self._set(Field.SPANS, weights.shape[1])
        self._measure(measures)
        self._jobs |= Job.TRACE
        try:
            yield
        finally:
            self._jobs &= ~Job.TRACE
            self._measure(())

    def begin(self, tokens: int, outputs: Int[np.ndarray, " output"]) -> None:
        """Before a decode of so many tokens, whose logits are wanted at the tokens `outputs`."""
        self._set(Field.TOKENS, tokens)
        self._set(Field.OUTPUTS, len(outputs))
        self._give(Field.OUTPUT_AT, outputs)
        self._set(Field.FAULT, Fault.NONE)
        self._take_scales()
        self._visits[:] = 0

    def end(self) -> None:
        """After a decode. Raises HQError where a layer was not met, or met and not read."""
        fault = Fault(int(self._state[Field.FAULT]))
        missed = np.flatnonzero((self._jobs != 0) & (self._visits == 0))
        if fault or len(missed):
            where = f"layer {missed[0]} was not computed" if len(missed) else _FAULTS[fault]
            raise HQError(
                f"llama.cpp's FFN products could not be read ({where}): nothing of this decode is "
                "kept; install the version of llama-cpp-python that hq[llama] names."
            )

    def _take_scales(self) -> None:
        """What scales there are now, where they have changed since the last decode."""
        if self._taken != self._scales.version:
            layers, indices, factors = self._scales.laid_out()
            self._give(Field.SCALE_START_AT, self._starts(layers))
            self._give(Field.SCALE_INDEX_AT, indices)
            self._give(Field.SCALE_FACTOR_AT, factors)
            self._jobs &= ~Job.SCALE
            self._jobs[layers] |= Job.SCALE
            self._taken = self._scales.version

    def _starts(self, layers: Int[np.ndarray, " n"]) -> Int[np.ndarray, " layer_plus_1"]:
        return np.searchsorted(layers, np.arange(self._products.layers + 1)).astype(np.int64)

    def _measure(self, measures: tuple[Measure, ...]) -> None:
        for measure, field in _FIELDS.items():
            self._set(field, measures.index(measure) if measure in measures else _NEVER)
        self._set(Field.MEASURES, len(measures))
        self._set(Field.READ_AT_DOWN, "output" in measures)

    def _name(self, at: Field, length: Field, name: str) -> None:
        self._give(at, np.frombuffer(name.encode(), dtype=np.uint8))
        self._set(length, len(name.encode()))

    def _give(self, field: Field, array: np.ndarray) -> None:
        assert array.flags.c_contiguous
        self._arrays[field] = array
        self._set(field, array.ctypes.data)

    def _set(self, field: Field, value: int) -> None:
        self._state[field] = value


class Scales:
    """The factors in force at one model, for the taps of all its contexts."""

    def __init__(self, layers: int, d_ff: int) -> None:
        self._layers, self._d_ff = layers, d_ff
        self._active: list[Mapping[tuple[int, int], float]] = []
        self.version = 0

    @contextmanager
    def scaled(self, factors: Mapping[tuple[int, int], float]) -> Iterator[None]:
        """h_i ← α·h_i from the next decode on, while the context lasts; nested ones multiply.

        Raises HQError for a neuron that the model lacks, or an α that is no number from 0 up.
        """
        check_factors(factors, self._layers, self._d_ff)
        self._active.append(factors)
        self.version += 1
        try:
            yield
        finally:
            self._active.remove(factors)
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
    """What a watch left of the last decode, a row a token."""

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


_FAULTS = {
    Fault.NONE: "",
    Fault.SHAPE: "one is not dense float32 of the FFN's width",
    Fault.ROWS: "one has other rows than the tokens decoded",
}
