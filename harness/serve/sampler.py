"""The next token of an answer: the likeliest, or drawn."""

import numpy as np
from jaxtyping import Float, Int

from hq.errors import HQError

_COLDEST = 1e-3  # below it the likeliest token has all the probability
_LIKELIEST = 256  # tokens among which a nucleus is looked for first: sorting them all takes long


class Sampler:
    """Draws by temperature and top-p, the same for the same seed; temperature 0 draws nothing.

    `drawn` has all its tokens, one that ended the answer among them.

    Raises HQError for logits that are not finite.
    """

    def __init__(self, temperature: float, top_p: float, seed: int) -> None:
        self._temperature, self._top_p = temperature, top_p
        self._random = np.random.default_rng(seed)
        self.drawn: list[int] = []

    def __call__(self, logits: Float[np.ndarray, " vocab"]) -> int:
        """A token's id."""
        self.drawn.append(self._next(logits))
        return self.drawn[-1]

    def _next(self, logits: Float[np.ndarray, " vocab"]) -> int:
        best = int(logits.argmax())
        if not np.isfinite(logits[best]):  # NaN counts as the largest
            raise HQError("The model's logits are not finite: its weights are damaged.")
        if self._temperature < _COLDEST:
            return best
        shares = np.exp((logits - logits[best]).astype(np.float64) / self._temperature)
        shares /= shares.sum()
        tokens = _nucleus(shares, self._top_p) if self._top_p < 1 else np.arange(len(shares))
        cdf = shares[tokens].cumsum()
        # Rounding may not lead past the last token that has a share.
        draw = min(self._random.random() * cdf[-1], np.nextafter(cdf[-1], 0))
        return int(tokens[np.searchsorted(cdf, draw, "right")])


def _nucleus(shares: Float[np.ndarray, " vocab"], top_p: float) -> Int[np.ndarray, " kept"]:
    """The fewest tokens that have this share together, the likeliest first."""
    count = min(_LIKELIEST, len(shares))
    while True:
        likeliest = np.argpartition(-shares, count - 1)[:count]
        likeliest = likeliest[np.argsort(-shares[likeliest], kind="stable")]
        reached = np.searchsorted(shares[likeliest].cumsum(), top_p)
        if reached < count or count == len(shares):
            kept: Int[np.ndarray, " kept"] = likeliest[: reached + 1]
            return kept
        count = min(8 * count, len(shares))
