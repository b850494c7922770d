"""A token prefix that all prompts share: its keys and values once, for every batch after it."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import DynamicCache

from hq.backends.transformers.hooks import DownHooks, scales_of
from hq.errors import HQError


class PrefixCache:
    """Keys and values of a prefix, and, where hooks are given, the sums of its tokens' CETT.

    An empty prefix is a valid one: its batches then run without a cache.
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
        self.sums: Float[Tensor, "measure p"] = torch.zeros(())
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
        """Keyword arguments that let a batch of this many rows go on after the prefix.

        Raises HQError if the scales of the model have changed since.
        """
        if not self.is_current:
            raise HQError(
                "The scales changed while texts were read: end the reading before entering or "
                "leaving `scale`."
            )
        if not self._length:
            return {"use_cache": False}
        return {"cache": self.expanded(batch), "use_cache": True}

    def expanded(self, batch: int) -> DynamicCache:
        """A cache of its own for `batch` rows; the prefix in it is a view until it grows."""
        cache = copy.deepcopy(self._cache)
        for layer in _filled(cache):
            layer.keys = layer.keys.expand(batch, -1, -1, -1)
            layer.values = layer.values.expand(batch, -1, -1, -1)
        return cache

    def shifted(self, pads: Int[Tensor, " row"]) -> tuple[DynamicCache, int]:
        """A cache of its own for rows of which each begins `pads` slots late, and its slots.

        A row has less of the prefix the later it begins: the rest is to be computed with what comes
        after. Layers with a sliding window keep no more than that of a prefix, so with any such the
        cache is empty, and the whole of each row is to be computed.
        """
        cache = copy.deepcopy(self._cache)
        if not self._length or any(layer.is_sliding for layer in cache.layers):
            return DynamicCache(config=self._config), 0
        slots = torch.arange(self._length) - pads[:, None]
        for layer in _filled(cache):
            places = slots.clamp(min=0).to(layer.keys.device)
            layer.keys = layer.keys[0][:, places].transpose(0, 1)
            layer.values = layer.values[0][:, places].transpose(0, 1)
        return cache, self._length


def _filled(cache: DynamicCache) -> list[Any]:
    """The cache's layers that hold keys; those that read another layer's keep none of their own."""
    return [layer for layer in cache.layers if getattr(layer, "keys", None) is not None]
