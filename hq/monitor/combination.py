"""The score of H-Neurons combined with token entropy; both are known while the model answers."""

import numpy as np
from jaxtyping import Float
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass as record


@record(frozen=True, config=ConfigDict(extra="forbid", allow_inf_nan=False))
class Combination:
    """A decision value that is linear in the probe's and in the entropy of the next token.

    Both are means over the tokens of an answer, so the decision value of an answer is the mean over
    the tokens' decision values.
    """

    probe: float  # weight of the probe's decision value
    entropy: float  # weight of the entropy, per nat
    intercept: float

    def decide(self, probe: float, entropy: float) -> float:
        """Return the log odds of hallucination."""
        return self.probe * probe + self.entropy * entropy + self.intercept


def entropy_of(logits: Float[np.ndarray, " vocab"]) -> float:
    """Return the entropy of the next token, in nats."""
    shifted = logits.astype(np.float64) - logits.max()
    weights = np.exp(shifted)
    total = weights.sum()
    return float(np.log(total) - weights @ shifted / total)
