"""The tokens of one decode, checked and laid out as llama.cpp reads them."""

import ctypes
from typing import Any

import numpy as np
from jaxtyping import Bool, Int
from numpy.typing import ArrayLike

from hq.errors import HQError

_MAX_POSITION = 2**31 - 1


class Batch:
    """A llama_batch over arrays that Python owns, filled without a Python loop.

    llama.cpp takes positions and sequences without a look, and NumPy would shorten int64 to int32
    without a word, so that every value is checked here.
    """

    def __init__(self, llama: Any, capacity: int, vocabulary: int, sequences: int) -> None:
        self._limits = (vocabulary, _MAX_POSITION, sequences)
        self._token, self._position, self._sequence, self._count = np.zeros(
            (4, capacity), dtype=np.int32
        )
        self._count[:] = 1
        self._wanted = np.zeros(capacity, dtype=np.int8)
        # llama.cpp takes a pointer per token to its sequences; every token here has one.
        addresses = self._sequence.ctypes.data + 4 * np.arange(capacity)
        self._pointers = addresses.astype(np.uintp)
        self._struct = llama.llama_batch()
        for field, array in (
            ("token", self._token),
            ("pos", self._position),
            ("n_seq_id", self._count),
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
        found = (np.asarray(tokens), np.asarray(positions), np.asarray(sequences), outputs)
        shapes = {array.shape for array in found}
        count, capacity = found[0].size, len(self._token)
        if shapes != {(count,)} or not 0 < count <= capacity:
            said = ", ".join(str(list(array.shape)) for array in found)
            raise HQError(
                f"A decode takes 1 to {capacity} tokens, with a position, a sequence and a flag "
                f"each, not arrays of the shapes {said}: pass arrays of one length."
            )
        own = (self._token, self._position, self._sequence)
        for what, into, array, limit in zip(_NAMES, own, found[:3], self._limits, strict=True):
            with np.errstate(invalid="ignore"):  # NaN, which is then found to differ
                whole = array.astype(np.int64)
            if (whole != array).any() or whole.min() < 0 or whole.max() >= limit:
                raise HQError(
                    f"A decode takes {what} from 0 to {limit - 1}, and got others ({array.min()} "
                    f"to {array.max()}): use the ids of this model and context."
                )
            into[:count] = whole
        self._wanted[:count] = outputs
        self._struct.n_tokens = count
        return self._struct, np.flatnonzero(outputs).astype(np.int64)


_NAMES = ("token ids", "positions", "sequences")
