"""Prompt–response pairs end to end for llama.cpp, a sequence each, after their shared prefix."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import ArrayLike

from hq.llamacpp.context import Context
from hq.neurons.prompt_response import PromptResponse

PREFIX_SEQUENCE = 0  # the sequence that holds the prefix; row r is sequence 1 + r
MAX_ROWS = 255  # llama.cpp's maximum number of sequences, without the prefix's


def read_prefix(context: Context, prefix: Sequence[int]) -> None:
    """Clear the context and compute the prefix in its sequence, in as few decodes as fit.

    Nothing is computed but keys and values: the logits of 2,048 tokens would need a GiB at a
    vocabulary of 131,072.
    """
    context.clear()
    for begin in range(0, len(prefix), context.batch):
        decode_prefix(context, prefix, slice(begin, begin + context.batch), False)


def decode_prefix(context: Context, prefix: Sequence[int], part: slice, wanted: bool) -> None:
    """Compute a part of the prefix; with logits if the FFN of the last layer is `wanted` too."""
    tokens = prefix[part]
    count = len(tokens)
    sequence = np.full(count, PREFIX_SEQUENCE)
    context.decode(tokens, part.start + np.arange(count), sequence, np.full(count, wanted))


class PackedBatch:
    """The tokens of a batch after the prefix, as flat arrays with one entry per token.

    `rows` has the row of each token, `positions` its position in the row, counted from the prefix.
    """

    def __init__(self, batch: Sequence[PromptResponse], start: int) -> None:
        self._start = start
        self.lengths = [len(exchange) - start for exchange in batch]
        self.rows: Int[np.ndarray, " token"] = np.repeat(np.arange(len(batch)), self.lengths)
        self.positions: Int[np.ndarray, " token"] = np.concatenate(
            [np.arange(length) for length in self.lengths]
        )
        self._ids = np.concatenate([np.array(exchange.ids[start:]) for exchange in batch])

    @contextmanager
    def sequences(self, context: Context) -> Iterator[None]:
        """Give every row a sequence that continues the prefix, and remove these at the end."""
        sequences = range(1, 1 + len(self.lengths))
        try:
            for sequence in sequences:
                context.copy(PREFIX_SEQUENCE, sequence)
            yield
        finally:
            for sequence in sequences:
                context.forget(sequence)

    def chunks(self, size: int) -> Iterator[slice]:
        """Slices of at most `size` tokens, one per decode, in order."""
        total = len(self.rows)
        return (slice(begin, min(begin + size, total)) for begin in range(0, total, size))

    def decode(
        self, context: Context, chunk: slice, wanted: ArrayLike
    ) -> Float[np.ndarray, "wanted vocab"]:
        """Compute a chunk; return the logits after its wanted tokens (one flag per token)."""
        return context.decode(
            self._ids[chunk], self._start + self.positions[chunk], 1 + self.rows[chunk], wanted
        )
