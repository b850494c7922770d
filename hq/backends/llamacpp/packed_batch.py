"""Exchanges laid end to end for llama.cpp, a sequence each, after the prefix that all share."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import ArrayLike

from hq.llamacpp.model import Context
from hq.neurons.prompt_response import PromptResponse

PREFIX = 0  # the sequence that keeps the prefix; row r is sequence 1 + r
MAX_ROWS = 255  # llama.cpp's sequences, less that one


def read_prefix(context: Context, prefix: Sequence[int]) -> None:
    """Computes the prefix in a sequence of its own: in one decode, where a batch holds it."""
    context.clear()
    for begin in range(0, len(prefix), context.batch):
        piece = prefix[begin : begin + context.batch]
        count = len(piece)
        # Logits at every token, as the last layer computes no others.
        context.decode(piece, begin + np.arange(count), np.full(count, PREFIX), np.ones(count))


class PackedBatch:
    """The tokens of a batch that come after the prefix, as flat arrays with an entry a token."""

    def __init__(self, batch: Sequence[PromptResponse], start: int) -> None:
        self._start = start
        self.lengths = [len(exchange) - start for exchange in batch]
        self.rows: Int[np.ndarray, " token"] = np.repeat(np.arange(len(batch)), self.lengths)
        self.places: Int[np.ndarray, " token"] = np.concatenate(
            [np.arange(length) for length in self.lengths]
        )
        self._ids = np.concatenate([np.array(exchange.ids[start:]) for exchange in batch])

    @contextmanager
    def held(self, context: Context) -> Iterator[None]:
        """Every row goes on from the prefix while this lasts, and is forgotten after it."""
        sequences = range(1, 1 + len(self.lengths))
        try:
            for sequence in sequences:
                context.copy(PREFIX, sequence)
            yield
        finally:
            for sequence in sequences:
                context.forget(sequence)

    def pieces(self, size: int) -> Iterator[slice]:
        """Parts that one decode takes each, in order."""
        total = len(self.rows)
        return (slice(begin, min(begin + size, total)) for begin in range(0, total, size))

    def decode(
        self, context: Context, piece: slice, wanted: ArrayLike
    ) -> Float[np.ndarray, "wanted vocab"]:
        """Computes a part; the logits after its tokens that are wanted (a bool each)."""
        return context.decode(
            self._ids[piece], self._start + self.places[piece], 1 + self.rows[piece], wanted
        )
