"""The keys and values of a prefix that all prompts share, computed once for all batches."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import DynamicCache

from hq.backends.base import scales_changed
from hq.backends.transformers.hooks import DownHooks, scales_of


class PrefixCache:
    """Keys and values of a prefix, and, if hooks are given, the sums of CETT over its tokens.

    With an empty prefix, batches run without a cache.
    """

    def __init__(
        self,
        decoder: nn.Module,
        prefix: Sequence[int],
        device: torch.device,
        hooks: DownHooks | None = None,
    ) -> None:
        self._length = len(prefix)
        self._decoder, self._scales = decoder, scales_of(decoder)
        self._config = decoder.config
        self._cache = DynamicCache(config=self._config)
        self.sums: Float[Tensor, "measure layer d_ff"] = torch.zeros(())
        if not prefix:
            return
        if hooks is not None:
            hooks.expect(torch.ones(1, 1, len(prefix), device=device))
        ids = torch.tensor([list(prefix)], device=device)
        decoder(ids, cache=self._cache, use_cache=True)
        if hooks is not None:
            self.sums = hooks.collect()[0, :, 0]

    def __len__(self) -> int:
        return self._length

    @property
    def is_current(self) -> bool:
        """Whether the same scales act on the model as when the prefix was computed."""
        return scales_of(self._decoder) == self._scales

    def inputs(self, batch: int) -> dict[str, Any]:
        """Keyword arguments with which a batch of this many rows continues the prefix.

        Raises HQError if the scales of the model have changed since the prefix was computed.
        """
        if not self.is_current:
            raise scales_changed()
        if not self._length:
            return {"use_cache": False}
        return {"cache": self.expanded(batch), "use_cache": True}

    def expanded(self, batch: int) -> DynamicCache:
        """A new cache for `batch` rows; the prefix in it is a view until the cache grows."""
        cache = copy.deepcopy(self._cache)
        for layer in _filled(cache):
            layer.keys = layer.keys.expand(batch, -1, -1, -1)
            layer.values = layer.values.expand(batch, -1, -1, -1)
        return cache

    def shifted(self, pads: Int[Tensor, " row"]) -> tuple[DynamicCache, int]:
        """A new cache for rows that are padded by `pads` slots each, and its number of slots.

        The prefix is shifted by the padding, so the cache has less of it: the caller computes the
        other tokens. Layers with a sliding window keep only the end of the prefix, so with any of
        them the cache is empty, and the caller computes each row completely.
        """
        cache = copy.deepcopy(self._cache)
        if not self._length or any(layer.is_sliding for layer in cache.layers):
            return DynamicCache(config=self._config), 0
        slots = torch.arange(self._length) - pads[:, None]
        for layer in _filled(cache):
            positions = slots.clamp(min=0).to(layer.keys.device)
            layer.keys = layer.keys[0][:, positions].transpose(0, 1)
            layer.values = layer.values[0][:, positions].transpose(0, 1)
        return cache, self._length


def _filled(cache: DynamicCache) -> list[Any]:
    """The layers of the cache that have keys; layers that share those of another have none."""
    return [layer for layer in cache.layers if getattr(layer, "keys", None) is not None]
