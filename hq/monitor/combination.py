"""The score of H-Neurons combined with token probabilities, all known while the model answers."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass as record


class TokenUncertainty(NamedTuple):
    """How uncertain the model is of a token, in nats."""

    entropy: float  # of the prediction
    surprisal: float  # −log p of the token


@record(frozen=True, config=ConfigDict(extra="forbid", allow_inf_nan=False))
class Combination:
    """A decision value that is linear in the probe's, and in entropy and surprisal of the token.

    All are means over the tokens of an answer, so the decision value of an answer is the mean over
    the tokens' decision values.
    """

    probe: float  # weight of the probe's decision value
    entropy: float  # weight of the entropy, per nat
    intercept: float
    surprisal: float = 0.0  # weight of the surprisal, per nat; 0 in bundles made without it

    def decide(self, probe: float, token: TokenUncertainty) -> float:
        """Return the log odds of hallucination."""
        uncertainty = self.entropy * token.entropy + self.surprisal * token.surprisal
        return self.probe * probe + uncertainty + self.intercept


def uncertainty_of(logits: Float[np.ndarray, " vocab"], token: int) -> TokenUncertainty:
    """Return entropy and surprisal of a token, from the logits that predict it."""
    shifted = logits.astype(np.float64) - logits.max()
    weights = np.exp(shifted)
    total = weights.sum()
    log_total = np.log(total)
    return TokenUncertainty(
        float(log_total - weights @ shifted / total), float(log_total - shifted[token])
    )
