"""The tokens of one decode, checked and laid out as llama.cpp reads them."""

import ctypes
from typing import Any

import numpy as np
from jaxtyping import Bool, Int
from numpy.typing import ArrayLike

from hq.errors import HQError

_MAX_POSITION = 2**31 - 1


class TokenBatch:
    """A llama_batch over arrays that Python owns, filled without a Python loop.

    llama.cpp takes positions and sequences without a look, and NumPy would shorten int64 to int32
    without a word, so that every value is checked here.
    """

    def __init__(self, llama: Any, capacity: int, vocabulary: int, sequences: int) -> None:
        limits = (vocabulary, _MAX_POSITION, sequences)
        self._limits = np.array(limits)[:, None]
        self._said = tuple(zip(("token ids", "positions", "sequences"), limits, strict=True))
        self._numbers = np.zeros((3, capacity), dtype=np.int32)  # tokens, positions, sequences
        self._counts = np.ones(capacity, dtype=np.int32)
        self._wanted = np.zeros(capacity, dtype=np.int8)
        # llama.cpp takes a pointer per token to its sequences; every token here has one.
        addresses = self._numbers[2].ctypes.data + 4 * np.arange(capacity)
        self._pointers = addresses.astype(np.uintp)
        self._struct = llama.llama_batch()
        for field, array in (
            ("token", self._numbers[0]),
            ("pos", self._numbers[1]),
            ("n_seq_id", self._counts),
            ("seq_id", self._pointers),
            ("logits", self._wanted),
        ):
            kind = dict(llama.llama_batch._fields_)[field]
            setattr(self._struct, field, ctypes.cast(array.ctypes.data, kind))

    def filled(
        self, tokens: ArrayLike, positions: ArrayLike, sequences: ArrayLike, wanted: ArrayLike
    ) -> tuple[Any, Int[np.ndarray, " output"]]:
        """The struct with these values in it, and the tokens whose logits are wanted.

        Raises HQError for arrays of different lengths, more tokens than the batch has room for, and
        a token, position or sequence that does not exist.
        """
        outputs: Bool[np.ndarray, " token"] = np.asarray(wanted) != 0
        count, capacity = outputs.size, len(self._counts)
        shapes = {np.shape(numbers) for numbers in (tokens, positions, sequences)}
        if shapes != {(count,)} or outputs.ndim != 1 or not 0 < count <= capacity:
            raise HQError(
                f"A decode takes 1 to {capacity} tokens, with a position, a sequence and a flag "
                f"each: pass arrays of one length, not of the shapes {shapes | {outputs.shape}}."
            )
        numbers = np.array((tokens, positions, sequences))
        with np.errstate(invalid="ignore"):  # NaN, which is then found to differ
            whole = numbers.astype(np.int64)
        if (whole != numbers).any() or whole.min() < 0 or (whole >= self._limits).any():
            limits = " and ".join(f"{what} below {n}" for what, n in self._said)
            raise HQError(
                f"A decode takes {limits}, whole numbers from 0 up: use the ids of this model and "
                "context."
            )
        self._numbers[:, :count] = whole
        self._wanted[:count] = outputs
        self._struct.n_tokens = count
        return self._struct, np.flatnonzero(outputs)
