"""Incremental detokenization: complete characters only, without the stop string."""

import codecs
import re
from collections.abc import Callable

_LEADING_SPACE = re.compile(r"[^\S\n]*")


def strip_leading_space(text: str) -> str:
    """Remove white space before the first word, up to a line break.

    Prompt forms that end without a space leave it to the answer. A line break is kept because it
    ends an empty answer.
    """
    return _LEADING_SPACE.sub("", text, count=1)


class StreamingDetokenizer:
    """Converts the tokens of one answer to text.

    Text that may begin a stop string is held back until it is known not to, and the bytes of a
    character until the character is complete; one that never completes is dropped.

    Args:
        piece: returns the bytes of a token.
        stops: stop strings.
        trim: whether to remove white space before the first word.
    """

    def __init__(
        self, piece: Callable[[int], bytes], stops: tuple[str, ...] = (), trim: bool = False
    ) -> None:
        self._piece, self._stops, self._trim = piece, stops, trim
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._held = ""
        self._stopped = False

    def add(self, token: int) -> str:
        """Return the text that can be shown after this token."""
        return self._release(self._decoder.decode(self._piece(token)), final=False)

    def end(self) -> str:
        """Return text that was held back and is not a stop string."""
        return self._release("", final=True)

    def _release(self, text: str, final: bool) -> str:
        if self._stopped:
            return ""
        held = self._held + text
        if self._trim:
            held = strip_leading_space(held)
            self._trim = not held
        cuts = [cut for cut in map(held.find, self._stops) if cut >= 0]
        self._stopped = bool(cuts)
        keep = 0 if final or cuts else self._partial_stop_length(held)
        shown = held[: min(cuts)] if cuts else held[: len(held) - keep]
        self._held = held[len(held) - keep :]
        return shown

    def _partial_stop_length(self, text: str) -> int:
        """Length of the longest suffix of the text that begins a stop string."""
        longest = max(map(len, self._stops), default=1) - 1
        return next(
            (
                size
                for size in range(min(longest, len(text)), 0, -1)
                if any(stop.startswith(text[-size:]) for stop in self._stops)
            ),
            0,
        )
