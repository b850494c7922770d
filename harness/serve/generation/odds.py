"""How likely a token was."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Odds:
    """Log-probability of a token, by its bytes; `top` are the likeliest ones in its place.

    A special token is named by them, and adds nothing to the answer's text.
    """

    piece: bytes
    logprob: float
    special: bool = False
    top: tuple["Odds", ...] = ()

    @property
    def text(self) -> str:
        """The bytes as text; those that are no whole characters are replaced."""
        return self.piece.decode(errors="replace")

    @property
    def letters(self) -> int:
        """Whole characters that it adds to the text."""
        return 0 if self.special else len(self.piece.decode(errors="ignore"))
