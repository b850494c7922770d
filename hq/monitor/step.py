"""What every monitor gives: a token, what the neurons say there, and the score so far."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.special import expit

from hq.neurons.cett import Span


@dataclass(frozen=True, slots=True)
class Step:
    """One token of the response, once the model has read it."""

    token: int
    cett: Float[np.ndarray, " k"]  # of the set's neurons at this token
    token_score: float  # the decision value of this token alone: log odds of a hallucination
    score: float  # that of the response so far, which the threshold is for

    @property
    def confidence(self) -> float:
        """Probability that the response so far is no hallucination, as the probe has it."""
        return float(expit(-self.score))


class Running:
    """The decision value of the span that the set reads, as tokens come.

    The probe is linear in the mean CETT, so its value is the mean of the tokens' values.
    """

    def __init__(self, span: Span, prompt: Float[np.ndarray, " token"]) -> None:
        """`prompt` holds the decision values at its tokens; for the span `answer` it may be empty.

        The last one alone matters for the span `prompt`.
        """
        self._fixed = float(_FIXED[span](prompt)) if span in _FIXED else None
        self._sum, self._count = 0.0, 0

    def add(self, decision: float) -> float:
        """The value with one more token of the response."""
        self._sum, self._count = self._sum + decision, self._count + 1
        return self._fixed if self._fixed is not None else self._sum / self._count


_FIXED: dict[Span, Callable[[Float[np.ndarray, " token"]], float]] = {
    "prompt": lambda decisions: decisions[-1],
    "other": np.mean,
}
