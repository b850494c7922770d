"""The next token of an answer: the likeliest, or drawn."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Int
from scipy.special import logsumexp

from harness.serve.generation.drawing import Drawing
from hq.errors import HQError

if TYPE_CHECKING:
    from harness.serve.generation.grammar import Grammar
    from hq.llamacpp.samplers import SamplerChain

_COLDEST = 1e-3  # below it the likeliest token has all the probability


@dataclass(frozen=True, slots=True)
class Likelihood:
    """Log-probability of a chosen token, and the likeliest tokens with theirs.

    They are the model's own: before penalties, grammar and temperature.
    """

    logprob: float
    top: tuple[tuple[int, float], ...]


class Sampler:
    """Chooses by a request's settings, the same for the same seed; temperature 0 draws nothing.

    Penalties come first, then the grammar, temperature, top-k, top-p and min-p. `drawn` has all
    tokens, one that ended the answer among them, and `likelihoods` theirs where `likely` asks for
    that many likeliest tokens.

    Raises HQError for logits that are not finite.
    """

    def __init__(
        self,
        drawing: Drawing,
        prompt: tuple[int, ...] = (),
        grammar: "Grammar | None" = None,
        likely: int | None = None,
    ) -> None:
        self._drawing, self._prompt, self._grammar, self._likely = drawing, prompt, grammar, likely
        self._random = np.random.default_rng(drawing.seed)
        self._penalties: list[SamplerChain] | None = None  # made of the first logits
        self._truncation = _truncation(drawing)
        self.drawn: list[int] = []
        self.likelihoods: list[Likelihood] = []

    def __call__(self, logits: Float[np.ndarray, " vocab"]) -> int:
        """A token's id."""
        if not np.isfinite(logits.max()):  # NaN counts as the largest
            raise HQError("The model's logits are not finite: its weights are damaged.")
        token = self._next(logits)
        if self._likely is not None:
            self.likelihoods.append(_likelihood(logits, token, self._likely))
        for chain in self._penalties or ():
            chain.accept([token])
        if self._grammar is not None:
            self._grammar.accept(token)
        self.drawn.append(token)
        return token

    def _next(self, logits: Float[np.ndarray, " vocab"]) -> int:
        if self._penalties is None:
            self._penalties = _penalties(self._drawing, len(logits), self._prompt)
        ids: Int[np.ndarray, " kept"] = np.arange(len(logits))
        values: Float[np.ndarray, " kept"] = logits
        for chain in self._penalties:
            ids, values = chain.apply(ids, values)
        if self._grammar is not None:
            allowed = self._grammar.allowed()[ids]
            ids, values = ids[allowed], values[allowed]
        if self._truncation is None:
            return int(ids[values.argmax()])
        ids, values = self._truncation.apply(ids, values)
        cdf = np.exp((values - values.max()).astype(np.float64)).cumsum()
        # Rounding may not lead past the last token that has a share.
        draw = min(self._random.random() * cdf[-1], np.nextafter(cdf[-1], 0))
        return int(ids[np.searchsorted(cdf, draw, "right")])


def _penalties(drawing: Drawing, vocabulary: int, prompt: tuple[int, ...]) -> "list[SamplerChain]":
    """On the answer, and on the last tokens of prompt and answer; only those that do something."""
    from hq.llamacpp.samplers import SamplerChain

    chains = []
    everything = 1 << 16  # more tokens than prompt and answer have together
    if drawing.presence_penalty or drawing.frequency_penalty:
        chains.append(
            SamplerChain().penalties(
                vocabulary,
                everything,
                frequency=drawing.frequency_penalty,
                presence=drawing.presence_penalty,
            )
        )
    if drawing.repeat_penalty != 1 and drawing.repeat_last_n:
        window = everything if drawing.repeat_last_n < 0 else min(drawing.repeat_last_n, everything)
        chains.append(SamplerChain().penalties(vocabulary, window, repeat=drawing.repeat_penalty))
        chains[-1].accept(prompt[-window:])
    return chains


def _truncation(drawing: Drawing) -> "SamplerChain | None":
    """Temperature first, so that it shapes what the others see; None where nothing is drawn."""
    from hq.llamacpp.samplers import SamplerChain

    if drawing.temperature < _COLDEST:
        return None
    chain = SamplerChain().temperature(drawing.temperature)
    if drawing.top_k:
        chain.top_k(drawing.top_k)
    if drawing.top_p < 1:
        chain.top_p(drawing.top_p)
    if drawing.min_p:
        chain.min_p(drawing.min_p)
    return chain


def _likelihood(logits: Float[np.ndarray, " vocab"], token: int, count: int) -> Likelihood:
    whole = float(logsumexp(logits.astype(np.float64)))
    count = min(count, len(logits))
    likeliest = np.argpartition(-logits, count - 1)[:count] if count else np.arange(0)
    likeliest = likeliest[np.lexsort((likeliest, -logits[likeliest]))]
    return Likelihood(
        float(logits[token]) - whole, tuple((int(i), float(logits[i]) - whole) for i in likeliest)
    )
