"""Token sampling: greedy, or drawn by a request's settings."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Int
from scipy.special import logsumexp

from hq.errors import HQError

if TYPE_CHECKING:
    from harness.serve.generation.grammar import JSONGrammar
    from hq.llamacpp.samplers import SamplerChain

REPEAT_WINDOW = 64  # tokens that repeat_penalty covers by default, as in llama.cpp
_MIN_TEMPERATURE = 1e-3  # below it the likeliest token has all the probability
_ALL_TOKENS = 1 << 16  # more tokens than a prompt and its answer have together


@dataclass(frozen=True, slots=True)
class SamplingSettings:
    """Sampling parameters of one answer. Temperature 0 is greedy; other defaults have no effect.

    presence_penalty and frequency_penalty count tokens of the answer, as OpenAI's do.
    repeat_penalty covers the last `repeat_last_n` tokens of prompt and answer (-1: all), as
    llama.cpp's does.
    """

    seed: int
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0  # 0: all
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repeat_penalty: float = 1.0
    repeat_last_n: int = REPEAT_WINDOW


@dataclass(frozen=True, slots=True)
class SampledLogprobs:
    """Log-probability of the sampled token, and (token id, log-probability) of the likeliest ones.

    They come from the model's logits, before penalties, grammar and temperature.
    """

    logprob: float
    top: tuple[tuple[int, float], ...]


class Sampler:
    """Samples the tokens of one answer; equal seeds repeat it.

    Order: penalties, grammar, temperature, top-k, top-p, min-p, draw. `sampled` holds all tokens,
    including one that ended the answer. `logprobs` holds one entry per token if `top_logprobs` is
    not None.

    Raises HQError if the logits are not finite.
    """

    def __init__(
        self,
        settings: SamplingSettings,
        prompt: tuple[int, ...] = (),
        grammar: "JSONGrammar | None" = None,
        top_logprobs: int | None = None,
    ) -> None:
        self._settings, self._prompt = settings, prompt
        self._grammar, self._top_logprobs = grammar, top_logprobs
        self._random = np.random.default_rng(settings.seed)
        self._penalties: list[SamplerChain] | None = None  # needs the vocabulary's size
        self._truncation = _truncation_chain(settings)
        self.sampled: list[int] = []
        self.logprobs: list[SampledLogprobs] = []

    def __call__(self, logits: Float[np.ndarray, " vocab"]) -> int:
        """Return the id of the next token."""
        likeliest = int(logits.argmax())
        if not np.isfinite(logits[likeliest]):  # NaN counts as the largest
            raise HQError("The model's logits are not finite: its weights are damaged.")
        token = self._next(logits, likeliest)
        if self._top_logprobs is not None:
            self.logprobs.append(_logprobs(logits, token, self._top_logprobs))
        for chain in self._penalties or ():
            chain.accept([token])
        if self._grammar is not None:
            self._grammar.accept(token)
        self.sampled.append(token)
        return token

    def _next(self, logits: Float[np.ndarray, " vocab"], likeliest: int) -> int:
        if self._penalties is None:
            self._penalties = _penalty_chains(self._settings, len(logits), self._prompt)
        if not self._penalties and self._grammar is None and self._truncation is None:
            return likeliest
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
        # Rounding must not select a token after the last one with a positive probability.
        draw = min(self._random.random() * cdf[-1], np.nextafter(cdf[-1], 0))
        return int(ids[np.searchsorted(cdf, draw, "right")])


def _penalty_chains(
    settings: SamplingSettings, vocabulary: int, prompt: tuple[int, ...]
) -> "list[SamplerChain]":
    """Penalties that have an effect: one chain for the answer, one for the repeat window."""
    from hq.llamacpp.samplers import SamplerChain

    chains = []
    if settings.presence_penalty or settings.frequency_penalty:
        chains.append(
            SamplerChain().penalties(
                vocabulary,
                _ALL_TOKENS,
                frequency=settings.frequency_penalty,
                presence=settings.presence_penalty,
            )
        )
    if settings.repeat_penalty != 1 and settings.repeat_last_n:
        last_n = settings.repeat_last_n
        window = _ALL_TOKENS if last_n < 0 else min(last_n, _ALL_TOKENS)
        chains.append(SamplerChain().penalties(vocabulary, window, repeat=settings.repeat_penalty))
        chains[-1].accept(prompt[-window:])
    return chains


def _truncation_chain(settings: SamplingSettings) -> "SamplerChain | None":
    """Temperature first, so that the truncations see the tempered logits; None for greedy."""
    from hq.llamacpp.samplers import SamplerChain

    if settings.temperature < _MIN_TEMPERATURE:
        return None
    chain = SamplerChain().temperature(settings.temperature)
    if settings.top_k:
        chain.top_k(settings.top_k)
    if settings.top_p < 1:
        chain.top_p(settings.top_p)
    if settings.min_p:
        chain.min_p(settings.min_p)
    return chain


def _logprobs(logits: Float[np.ndarray, " vocab"], token: int, count: int) -> SampledLogprobs:
    normalizer = float(logsumexp(logits.astype(np.float64)))
    count = min(count, len(logits))
    likeliest = np.argpartition(-logits, count - 1)[:count] if count else np.arange(0)
    likeliest = likeliest[np.lexsort((likeliest, -logits[likeliest]))]
    return SampledLogprobs(
        float(logits[token]) - normalizer,
        tuple((int(i), float(logits[i]) - normalizer) for i in likeliest),
    )
