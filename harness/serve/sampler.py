"""The next token of an answer: the likeliest, or drawn."""

import numpy as np
import torch
from jaxtyping import Float

from hq.errors import HQError
from hq.sampling import Sampling, truncated_cdf

_COLDEST = 1e-3  # below it the likeliest token has all the probability


class Sampler:
    """Draws by temperature and top-p, the same for the same seed; temperature 0 draws nothing.

    `drawn` has all its tokens, one that ended the answer among them.
    Raises HQError for logits that are not finite.
    """

    def __init__(self, temperature: float, top_p: float, seed: int) -> None:
        self._settings = Sampling(1, temperature, 0, top_p)
        self._random = np.random.default_rng(seed)
        self.drawn: list[int] = []

    def __call__(self, logits: Float[np.ndarray, " vocab"]) -> int:
        """A token's id."""
        self.drawn.append(self._next(logits))
        return self.drawn[-1]

    def _next(self, logits: Float[np.ndarray, " vocab"]) -> int:
        if np.isnan(logits).any():
            raise HQError("The model's logits are not finite: its weights are damaged.")
        if self._settings.temperature < _COLDEST:
            return int(logits.argmax())
        tokens, cdf = truncated_cdf(torch.from_numpy(logits)[None], self._settings)
        return int(tokens[0, np.searchsorted(cdf[0], self._random.random(), "right")])
