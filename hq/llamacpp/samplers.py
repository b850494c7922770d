"""llama.cpp's samplers: penalties, temperature and truncation of a distribution over tokens."""

import ctypes
import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from hq.llamacpp.library import load_library

_CANDIDATE = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])


class SamplerChain:
    """Samplers that are applied in order and freed together. Methods that add one return self."""

    def __init__(self) -> None:
        self._llama = load_library().llama
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
        """Penalize tokens among the last `window` accepted ones."""
        return self._add(
            self._llama.llama_sampler_init_penalties(
                vocabulary, window, repeat, frequency, presence
            )
        )

    def temperature(self, value: float) -> "SamplerChain":
        """Divide logits by a positive temperature."""
        return self._add(self._llama.llama_sampler_init_temp(value))

    def top_k(self, count: int) -> "SamplerChain":
        """Keep the `count` most probable tokens."""
        return self._add(self._llama.llama_sampler_init_top_k(count))

    def top_p(self, share: float) -> "SamplerChain":
        """Keep the smallest set of most probable tokens with this total probability."""
        return self._add(self._llama.llama_sampler_init_top_p(share, 1))

    def min_p(self, share: float) -> "SamplerChain":
        """Keep tokens with at least this share of the most probable token's probability."""
        return self._add(self._llama.llama_sampler_init_min_p(share, 1))

    def accept(self, tokens: Sequence[int]) -> None:
        """Add tokens to the window of the penalties."""
        for token in tokens:
            self._llama.llama_sampler_accept(self._chain, token)

    def apply(
        self, ids: Int[np.ndarray, " n"], logits: Float[np.ndarray, " n"]
    ) -> tuple[Int[np.ndarray, " m"], Float[np.ndarray, " m"]]:
        """Return the m ≤ n tokens that remain, and their new logits."""
        candidates = np.zeros(len(ids), dtype=_CANDIDATE)
        candidates["id"], candidates["logit"] = ids, logits
        array = self._llama.llama_token_data_array(
            data=ctypes.cast(candidates.ctypes.data, self._llama.llama_token_data_p),
            size=len(candidates),
            selected=-1,
            sorted=False,
        )
        self._llama.llama_sampler_apply(self._chain, ctypes.byref(array))
        remaining = candidates[: array.size]
        return remaining["id"].copy(), remaining["logit"].copy()

    def _add(self, sampler: Any) -> "SamplerChain":
        self._llama.llama_sampler_chain_add(self._chain, sampler)
        return self
