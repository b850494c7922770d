"""Continue prompts with llama.cpp: one sequence per row, with the cells of a shared past shared."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from jaxtyping import Float, Int

from hq.backends.batching import shared_prefix
from hq.backends.llamacpp.packed_batch import MAX_ROWS, PREFIX_SEQUENCE, read_prefix
from hq.errors import HQError
from hq.llamacpp.context import Context
from hq.llamacpp.observer import ActiveFactors

CELLS = 8192  # tokens of all rows
BATCH = 2048  # tokens per decode


class LlamaDecoding:
    """At most MAX_ROWS prompts that are continued in parallel, in a context of their own.

    Raises HQError if there are more rows, or more tokens than the context has cells.
    """

    def __init__(
        self, context: Callable[[int, int, int], Context], require_length: Callable[[int], None]
    ) -> None:
        self._context = context(CELLS, MAX_ROWS + 1, BATCH)
        self._require_length = require_length
        self._prefix: tuple[int, ...] | None = None
        self._factors: ActiveFactors = []  # that were active while the prefix was computed
        self._rows: list[int] = []  # the sequence of each row
        self._lengths = np.zeros(0, dtype=np.int64)  # number of tokens of each row

    def share(self, prompts: Sequence[tuple[int, ...]]) -> None:
        """Compute the prefix that all `prompts`, of any length, share."""
        self._rows = []
        self._read_prefix(shared_prefix(prompts))

    def start(self, prompts: Sequence[tuple[int, ...]]) -> Float[torch.Tensor, "row vocab"]:
        """Read prompts; return the logits of the token after each."""
        prefix = self._prefix_of(prompts)
        self._require_room(len(prompts))
        for sequence in self._rows:
            self._context.forget(sequence)
        self._rows = list(range(1, 1 + len(prompts)))
        for sequence in self._rows:
            self._context.copy(PREFIX_SEQUENCE, sequence)
        begin = len(prefix)
        self._lengths = np.full(len(prompts), begin)
        return self._advance([prompt[begin:] for prompt in prompts])

    def step(
        self, parents: Int[np.ndarray, " row"], tokens: Int[np.ndarray, " row"]
    ) -> Float[torch.Tensor, "row vocab"]:
        """Continue row parents[r] of the last call by tokens[r]; return the next logits."""
        self._require_room(len(parents))
        self._branch([self._rows[parent] for parent in parents])
        self._lengths = self._lengths[parents]
        return self._advance([(int(token),) for token in tokens])

    def _branch(self, parents: Sequence[int]) -> None:
        """Choose a sequence for each row: the parent's for its first child, a copy for others."""
        continued = set(parents)
        for sequence in set(self._rows) - continued:
            self._context.forget(sequence)
        free = (s for s in range(1, 1 + MAX_ROWS) if s not in continued)
        self._rows = []
        used: set[int] = set()
        for parent in parents:
            sequence = parent if parent not in used else next(free)
            if sequence != parent:
                self._context.copy(parent, sequence)
            used.add(parent)
            self._rows.append(sequence)

    def _advance(self, ids: Sequence[tuple[int, ...]]) -> Float[torch.Tensor, "row vocab"]:
        """Decode the next tokens of every row; return the logits after each row's last token."""
        widths = np.array([len(row) for row in ids])
        ends = self._lengths + widths
        self._require_length(int(ends.max()))
        last = np.cumsum(widths) - 1
        # Within each row, positions count up from the number of tokens that the row has.
        positions = np.arange(widths.sum()) + np.repeat(ends - 1 - last, widths)
        sequences = np.repeat(self._rows, widths)
        wanted = np.zeros(len(positions), dtype=bool)
        wanted[last] = True
        flat = np.concatenate([np.array(row) for row in ids])
        logits = [
            self._context.decode(
                flat[begin : begin + BATCH],
                positions[begin : begin + BATCH],
                sequences[begin : begin + BATCH],
                wanted[begin : begin + BATCH],
            ).copy()
            for begin in range(0, len(flat), BATCH)
        ]
        self._lengths = ends
        return torch.from_numpy(np.concatenate(logits))

    def _prefix_of(self, prompts: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
        """The prefix to continue: the computed one if all prompts continue it.

        It is computed again under other scales, as its keys and values depend on them.
        """
        computed = self._prefix
        if computed is None or not all(_continues(prompt, computed) for prompt in prompts):
            self.share(prompts)
        elif self._factors != self._context.factors or not self._context.is_valid:
            self._read_prefix(computed)
        return self._prefix or ()

    def _read_prefix(self, prefix: tuple[int, ...]) -> None:
        self._prefix, self._factors = None, self._context.factors
        read_prefix(self._context, prefix)
        self._prefix = prefix

    def _require_room(self, rows: int) -> None:
        if rows > MAX_ROWS:
            raise HQError(
                f"llama.cpp continues at most {MAX_ROWS} rows in parallel, not {rows}: start with "
                "fewer prompts."
            )


def _continues(prompt: Sequence[int], prefix: tuple[int, ...]) -> bool:
    """Whether a prompt has the prefix and at least one token after it."""
    return len(prompt) > len(prefix) and tuple(prompt[: len(prefix)]) == prefix
