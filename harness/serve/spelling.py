"""Tokens as text, while they come: whole characters, and nothing of what ends the answer."""

import codecs
from collections.abc import Callable


class Spelling:
    """The text of one answer. With `trim`, white space before its first word is no part of it.

    What may be the beginning of a stop string is held back until it is known not to be one. An
    answer that is cut off inside a character ends before it.
    """

    def __init__(
        self, piece: Callable[[int], bytes], stops: tuple[str, ...] = (), trim: bool = False
    ) -> None:
        self._piece, self._stops, self._trim = piece, stops, trim
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._held = ""
        self._stopped = False

    def add(self, token: int) -> str:
        """What can be shown with this token."""
        return self._take(self._decoder.decode(self._piece(token)), final=False)

    def end(self) -> str:
        """What was held back and is no stop string."""
        return self._take("", final=True)

    def _take(self, text: str, final: bool) -> str:
        if self._stopped:
            return ""
        held = self._held + text
        if self._trim:
            held = held.lstrip()  # before it can be taken for a stop string
            self._trim = not held
        cuts = [cut for cut in map(held.find, self._stops) if cut >= 0]
        self._stopped = bool(cuts)
        keep = 0 if final or cuts else self._begun(held)
        shown = held[: min(cuts)] if cuts else held[: len(held) - keep]
        self._held = held[len(held) - keep :]
        return shown

    def _begun(self, text: str) -> int:
        """Length of the longest end of the text that begins a stop string."""
        longest = max(map(len, self._stops), default=1) - 1
        return next(
            (
                size
                for size in range(min(longest, len(text)), 0, -1)
                if any(stop.startswith(text[-size:]) for stop in self._stops)
            ),
            0,
        )
