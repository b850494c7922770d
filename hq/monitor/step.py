"""A step of a monitored answer: a token, the CETT of the neurons there, and the score so far."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.special import expit

from hq.neurons.cett import Span


@dataclass(frozen=True, slots=True)
class Step:
    """One token of the response, after the model has read it."""

    token: int
    cett: Float[np.ndarray, " k"]  # of the set's neurons at this token
    token_score: float  # decision value of this token alone: log odds of hallucination
    score: float  # decision value of the response so far, for the threshold

    @property
    def confidence(self) -> float:
        """Probability, by the probe, that the response so far is not hallucinated."""
        return float(expit(-self.score))


class Running:
    """The decision value of the span of the set, as tokens come.

    The probe is linear in the mean CETT, so its value is the mean over the tokens' values.
    """

    def __init__(self, span: Span, prompt: Float[np.ndarray, " token"]) -> None:
        """Start from the decision values at the prompt's tokens; unused for the span `answer`."""
        self._fixed = float(_FIXED[span](prompt)) if span in _FIXED else None
        self._sum, self._count = 0.0, 0

    def add(self, decision: float) -> float:
        """Add a token of the response; returns the value of the span."""
        self._sum, self._count = self._sum + decision, self._count + 1
        return self._fixed if self._fixed is not None else self._sum / self._count


_FIXED: dict[Span, Callable[[Float[np.ndarray, " token"]], float]] = {
    "prompt": lambda decisions: decisions[-1],
    "other": np.mean,
}
