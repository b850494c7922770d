"""Misuses of hq.llamacpp, each of which must raise an HQError, also under `python -O`.

`python -O -m tests.hq.llama_misuse FILE` prints the message of each, as JSON.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from hq.backends.llamacpp.backend import LlamaBackend
from hq.errors import HQError
from hq.llamacpp.observer import ActivationScales, GraphObserver
from hq.neurons.space import NeuronSpace

TOKENS = 8


def answers(path: Path) -> dict[str, str]:
    """The message of each misuse; empty if it raises nothing."""
    with LlamaBackend(path) as backend:
        return {name: _message(misuse) for name, misuse in _misuses(backend).items()}


def _message(misuse: Callable[[], object]) -> str:
    try:
        misuse()
    except HQError as error:
        return str(error)
    return ""


def _misuses(backend: LlamaBackend) -> dict[str, Callable[[], object]]:
    layers, d_ff, vocabulary = backend.file.n_layers, backend.file.d_ff, backend.model.vocabulary
    context, observer = backend.context(TOKENS, 2, TOKENS)
    nodes, norms = backend._nodes, backend.file.norms

    def decode(
        tokens: Any = (5,), positions: Any = (0,), sequences: Any = (0,), wanted: Any = (1,)
    ):
        return lambda: context.decode(tokens, positions, sequences, wanted)

    def opened(**settings: int):
        return lambda: backend.model.context(None, **settings)

    def observed(capacity: int = TOKENS, scales: Any = None, norms: Any = norms):
        return lambda: GraphObserver(nodes, norms, capacity, scales or backend.scales)

    def watched(layer: int, index: int, measure: Any = "sum"):
        return lambda: observer.watched([(0, 0), (layer, index)], measure).__enter__()

    def traced(rows: Any = None, weights: Any = None, values: Any = None, measures: Any = ("sum",)):
        rows = np.zeros(2, dtype=np.int64) if rows is None else rows
        weights = np.ones((2, 1), dtype=np.float32) if weights is None else weights
        values = zeros() if values is None else values

        def trace() -> None:
            with observer.traced(rows, weights, values, measures):
                context.decode([5, 6], [0, 1], [0, 0], [1, 1])

        return trace

    def zeros(rows: int = 1, measures: int = 1, spans: int = 1, dtype: str = "f4"):
        return np.zeros((rows, measures, spans, layers, d_ff), dtype=dtype)

    frozen = zeros()
    frozen.flags.writeable = False

    def other_tokens() -> None:
        with observer.traced(
            np.zeros(3, dtype=np.int64), np.ones((3, 1), np.float32), zeros(), ("sum",)
        ):
            context.decode([5, 6], [0, 1], [0, 0], [1, 1])

    return {
        "no tokens": decode((), (), (), ()),
        "more tokens than the batch": decode(*(np.zeros(TOKENS + 1),) * 4),
        "fewer positions than tokens": decode((5, 6), (0,), (0, 0), (1, 1)),
        "one flag for two tokens": decode((5, 6), (0, 1), (0, 0), (1,)),
        "a fraction of a token": decode((5.5,)),
        "a token below 0": decode((-1,)),
        "a token beyond the vocabulary": decode((vocabulary,)),
        "a token that 32 bits would shorten": decode((2**32 + 5,)),
        "a token that is no number": decode((float("nan"),)),
        "a position below 0": decode(positions=(-1,)),
        "a position that 32 bits would shorten": decode(positions=(2**32,)),
        "a sequence too many": decode(sequences=(2,)),
        "a sequence below 0": decode(sequences=(-1,)),
        "a copy to a sequence that is not there": lambda: context.copy(0, 2),
        "a copy of a sequence that is not there": lambda: context.copy(-1, 0),
        "to forget a sequence that is not there": lambda: context.forget(256),
        "a context of no tokens": opened(tokens=0),
        "a context of fewer than no tokens": opened(tokens=-1),
        "a batch of none": opened(batch=0),
        "no threads": opened(threads=0),
        "sequences beyond llama.cpp's": opened(sequences=100_000),
        "a batch beyond the observer's": lambda: backend.model.context(
            GraphObserver(nodes, norms, 4, backend.scales), tokens=32, batch=5
        ),
        "an observer for no tokens": observed(capacity=0),
        "scales of another model": observed(
            scales=ActivationScales(NeuronSpace.rectangular(layers, d_ff + 1))
        ),
        "norms of a layer too few": observed(norms=norms[1:]),
        "norms that are narrower": observed(norms=norms[:, 1:]),
        "a layer that is not there": watched(layers, 0),
        "a layer below 0": watched(-1, 0),
        "a neuron that is not there": watched(0, d_ff),
        "a neuron below 0": watched(0, -1),
        "shares of a contribution": watched(0, 1, "contribution"),
        "rows in 32 bits": traced(rows=np.zeros(2, dtype=np.int32)),
        "a row that is not there": traced(rows=np.array([0, 1])),
        "a row below 0": traced(rows=np.array([0, -1])),
        "fewer rows than weights": traced(rows=np.zeros(1, dtype=np.int64)),
        "weights in 64 bits": traced(weights=np.ones((2, 1))),
        "weights that are transposed": traced(
            weights=np.ones((2, 2), np.float32).T, values=zeros(spans=2)
        ),
        "values in 64 bits": traced(values=zeros(dtype="f8")),
        "values in big-endian": traced(values=zeros(dtype=">f4")),
        "values of a measure too few": traced(values=zeros(measures=1), measures=("sum", "output")),
        "values of a span too few": traced(weights=np.ones((2, 2), np.float32)),
        "values that are not contiguous": traced(values=zeros(rows=4)[::2]),
        "values of every other layer": traced(
            values=np.zeros((1, 1, 1, 2 * layers, d_ff), np.float32)[:, :, :, ::2]
        ),
        "values that cannot be written": traced(values=frozen),
        "a measure that is not there": traced(measures=("total",)),
        "a measure twice": traced(values=zeros(measures=2), measures=("sum", "sum")),
        "other tokens than are traced": other_tokens,
        "an output that is no token": lambda: observer.begin(2, np.array([2])),
        "outputs in 32 bits": lambda: observer.begin(2, np.array([1], dtype=np.int32)),
        "more tokens than the observer's": lambda: observer.begin(TOKENS + 1, np.array([0])),
        "the piece of no token": lambda: backend.model.piece(vocabulary),
        "the piece of a token below 0": lambda: backend.model.piece(-1),
        "half of a surrogate pair": lambda: backend.model.tokenize("a\ud83d"),
    }


if __name__ == "__main__":
    print(json.dumps(answers(Path(sys.argv[1]))))
