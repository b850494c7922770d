"""Continuations on torch: rows that branch and end, over one key-value cache."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int

from hq.backends.batching import shared_prefix
from hq.backends.prefix import PrefixCache


class TorchDecoding:
    """Prompts being continued side by side.

    Prompts of one `start` must be of equal length: nothing is padded, so a row's logits do not
    depend on its neighbours. The prefix that they share is kept for the next `start`.
    """

    def __init__(self, model: Any, device: torch.device) -> None:
        self._model = model
        self._device = device
        self._prefix_ids: tuple[int, ...] = ()
        self._prefix: PrefixCache | None = None
        self._cache: Any = None

    def share(self, prompts: Sequence[tuple[int, ...]]) -> None:
        """Computes the prefix that all `prompts`, of any length, share."""
        with torch.inference_mode():
            self._prefix_ids = shared_prefix(prompts)
            self._prefix = PrefixCache(self._model.get_decoder(), self._prefix_ids, self._device)

    def start(self, prompts: Sequence[tuple[int, ...]]) -> Float[torch.Tensor, "row vocab"]:
        """Reads prompts of equal length; logits of the token after each."""
        if self._prefix is None or not all(self._continues(p) for p in prompts):
            self.share(prompts)
        assert self._prefix is not None
        start = len(self._prefix)
        self._cache = self._prefix.expanded(len(prompts))
        return self._advance(torch.tensor([list(p[start:]) for p in prompts]))

    def step(
        self, parents: Int[np.ndarray, " row"], tokens: Int[np.ndarray, " row"]
    ) -> Float[torch.Tensor, "row vocab"]:
        """Continues row parents[r] of the last call by tokens[r]; logits of the token after."""
        if not np.array_equal(parents, np.arange(self._rows)):
            self._cache.batch_select_indices(torch.from_numpy(parents).to(self._device))
        return self._advance(torch.from_numpy(tokens)[:, None])

    def _continues(self, prompt: Sequence[int]) -> bool:
        """Whether a prompt goes on, by a token at least, after the prefix."""
        length = len(self._prefix_ids)
        return len(prompt) > length and tuple(prompt[:length]) == self._prefix_ids

    def _advance(self, ids: Int[torch.Tensor, "row seq"]) -> Float[torch.Tensor, "row vocab"]:
        self._rows = len(ids)
        with torch.inference_mode():
            out = self._model(
                ids.to(self._device), cache=self._cache, use_cache=True, logits_to_keep=1
            )
        logits: torch.Tensor = out.logits[:, -1]
        return logits
