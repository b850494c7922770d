"""Slots: sequences of one llama.cpp context that answers take turns in, and what each still holds.

A slot keeps its keys and values after an answer. The next prompt that begins with the same tokens
continues them, or a copy of them if the slot that holds them is in use: only the rest is read.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float

from hq.llamacpp.context import Context

# Copying a slot copies all of its memory, which takes as long as reading some tens of tokens.
_MIN_COPIED = 64


@dataclass(slots=True, eq=False)
class Slot:
    """One sequence: the tokens that it holds, and those that are to be read next.

    Args:
        number: llama.cpp's number of the sequence.
        logits: after the last token that was read with logits.
    """

    number: int
    logits: Float[np.ndarray, " vocab"]
    alpha: float = 1.0  # with which `held` was read
    held: list[int] = field(default_factory=list)
    pending: list[int] = field(default_factory=list)
    is_free: bool = True
    taken: int = 0  # when it was taken last, in an order without a unit

    def matched(self, prompt: Sequence[int], alpha: float) -> int:
        """Number of the prompt's first tokens that the slot holds, without the last one.

        The last one is read again: its logits are needed.
        """
        if alpha != self.alpha:
            return 0
        limit = min(len(self.held), len(prompt) - 1)
        differs = (k for k in range(limit) if self.held[k] != prompt[k])
        return next(differs, limit)

    def read(self, count: int) -> None:
        """Note that the first pending tokens were read."""
        self.held += self.pending[:count]
        del self.pending[:count]


class SlotPool:
    """The slots of a context.

    Args:
        reuse: whether a prompt may continue what a slot holds. Without it every prompt is read
            completely.
    """

    def __init__(self, context: Context, reuse: bool) -> None:
        vocabulary = context.model.vocabulary
        self._context, self._reuse = context, reuse
        self.all = [
            Slot(number, np.empty(vocabulary, dtype=np.float32))
            for number in range(context.sequences)
        ]
        self._takes = 0
        self.reused_tokens = 0  # of all prompts so far

    @property
    def free(self) -> int:
        """Number of free slots."""
        return sum(slot.is_free for slot in self.all)

    def take(self, prompt: Sequence[int], alpha: float) -> Slot:
        """Take the free slot that holds most of the prompt; the rest of the prompt is pending.

        Among equal ones it is the one that was taken the longest ago.
        """
        matched = {
            slot.number: slot.matched(prompt, alpha) if self._reuse else 0 for slot in self.all
        }
        slot = max(
            (slot for slot in self.all if slot.is_free),
            key=lambda slot: (matched[slot.number], -slot.taken),
        )
        source = max(self.all, key=lambda slot: matched[slot.number])
        begin = matched[slot.number]
        if matched[source.number] >= begin + _MIN_COPIED:
            self._context.copy(source.number, slot.number)
            slot.held, begin = list(source.held), matched[source.number]
        self._takes += 1
        slot.is_free, slot.taken, slot.alpha = False, self._takes, alpha
        self._truncate(slot, begin)
        slot.pending = list(prompt[len(slot.held) :])
        self.reused_tokens += len(slot.held)
        return slot

    def give_back(self, slot: Slot) -> None:
        """Free a slot; it keeps what it holds."""
        slot.pending.clear()
        slot.is_free = True

    def clear(self) -> None:
        """Forget what every slot holds, as after a failed decode."""
        self._context.clear()
        for slot in self.all:
            slot.held.clear()
            slot.pending.clear()

    def _truncate(self, slot: Slot, keep: int) -> None:
        """Remove what follows the first `keep` tokens, or all if the model cannot keep a part."""
        if len(slot.held) == keep > 0:
            return
        if self._context.forget(slot.number, keep):
            del slot.held[keep:]
        else:
            self._context.forget(slot.number)
            slot.held.clear()
