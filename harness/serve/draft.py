"""An answer while it is written, and what is asked for."""

from dataclasses import dataclass, field

from harness.serve.generation.drawing import Drawing
from harness.serve.generation.odds import Odds
from harness.serve.responses import Finish, Reading
from hq.tracing.sampling import StopCriteria


@dataclass(frozen=True, slots=True)
class Order:
    """What the model is to write.

    `trim`: white space before the first word belongs to the prompt form. `grammar` is what
    `Grammars.check` made of a JSON schema; `likely` is how many likely tokens are told beside each
    chosen one, None for no log-probabilities.
    """

    prompt: tuple[int, ...]
    ending: StopCriteria
    max_new_tokens: int
    drawing: Drawing
    alpha: float
    domain: str
    trim: bool = False
    grammar: str = ""
    likely: int | None = None


@dataclass(frozen=True, slots=True)
class Token:
    """One token of an answer: what it adds to the text, and how its H-Neurons read."""

    text: str
    reading: Reading
    odds: Odds | None = None


@dataclass(slots=True)
class Draft:
    """An answer with the H-Neurons scaled by α, as far as it is written."""

    alpha: float
    tokens: list[Token] = field(default_factory=list)
    tail: str = ""  # text that was held back to the end, as it might have begun a stop string
    finish: Finish | None = None

    @property
    def text(self) -> str:
        """All of it."""
        return "".join(token.text for token in self.tokens) + self.tail

    @property
    def score(self) -> float | None:
        """The decision value of the answer so far; an empty one has none."""
        return self.tokens[-1].reading.score if self.tokens else None
