"""llama.cpp's samplers: what penalties and truncation leave of a distribution over tokens."""

import ctypes
import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from hq.llamacpp.library import library

_CANDIDATE = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])


class SamplerChain:
    """Samplers that are applied one after the other, and freed together."""

    def __init__(self) -> None:
        self._llama = library().llama
        settings = self._llama.llama_sampler_chain_default_params()
        self._chain = self._llama.llama_sampler_chain_init(settings)
        weakref.finalize(self, self._llama.llama_sampler_free, self._chain)

    def penalties(
        self,
        vocabulary: int,
        window: int,
        repeat: float = 1.0,
        frequency: float = 0.0,
        presence: float = 0.0,
    ) -> "SamplerChain":
        """Penalties on the last `window` tokens that were accepted."""
        return self._add(
            self._llama.llama_sampler_init_penalties(
                vocabulary, window, repeat, frequency, presence
            )
        )

    def temperature(self, value: float) -> "SamplerChain":
        """Divides logits by a positive temperature."""
        return self._add(self._llama.llama_sampler_init_temp(value))

    def top_k(self, count: int) -> "SamplerChain":
        """Keeps the `count` likeliest tokens."""
        return self._add(self._llama.llama_sampler_init_top_k(count))

    def top_p(self, share: float) -> "SamplerChain":
        """Keeps the fewest tokens that have this probability together, at least one."""
        return self._add(self._llama.llama_sampler_init_top_p(share, 1))

    def min_p(self, share: float) -> "SamplerChain":
        """Keeps tokens of at least this share of the likeliest token's probability."""
        return self._add(self._llama.llama_sampler_init_min_p(share, 1))

    def accept(self, tokens: Sequence[int]) -> None:
        """Tells the penalties which tokens there are."""
        for token in tokens:
            self._llama.llama_sampler_accept(self._chain, token)

    def apply(
        self, ids: Int[np.ndarray, " n"], logits: Float[np.ndarray, " n"]
    ) -> tuple[Int[np.ndarray, " kept"], Float[np.ndarray, " kept"]]:
        """The tokens that are kept, and their new logits."""
        candidates = np.zeros(len(ids), dtype=_CANDIDATE)
        candidates["id"], candidates["logit"] = ids, logits
        array = self._llama.llama_token_data_array(
            data=ctypes.cast(candidates.ctypes.data, self._llama.llama_token_data_p),
            size=len(candidates),
            selected=-1,
            sorted=False,
        )
        self._llama.llama_sampler_apply(self._chain, ctypes.byref(array))
        kept = candidates[: array.size]
        return kept["id"].copy(), kept["logit"].copy()

    def _add(self, sampler: Any) -> "SamplerChain":
        self._llama.llama_sampler_chain_add(self._chain, sampler)
        return self
