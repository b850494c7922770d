"""Continuations in torch: rows that branch and end, with one key-value cache."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from hq.backends.base import require_length
from hq.backends.batching import shared_prefix
from hq.backends.transformers.prefix import PrefixCache
from hq.models.auto import context_length, is_wrapper
from hq.models.placement import PerDevice, is_distributed


class TorchDecoding:
    """Continuations of prompts in parallel.

    Prompts of equal length are not padded, so the logits of a row do not depend on other rows.
    Prompts of several lengths end at the same cache slot: shorter ones are padded on the left, and
    the padding is masked. The shared prefix is kept for the next `start`.
    """

    def __init__(self, model: Any, device: torch.device, name: str = "the model") -> None:
        self._model = model
        self._name = name  # in messages
        self._limit = context_length(model.config)
        self._device = device
        # An index copies the last states; the view of a slice would make the product with the
        # output head a batch of vector products, which read the head once per row. The states of a
        # distributed model may be on another device than an index.
        self._last = 1 if is_distributed(model) else torch.tensor([-1], device=device)
        self._prefix_ids: tuple[int, ...] = ()
        self._prefix: PrefixCache | None = None
        self._cache: Any = None
        self._pads: Int[torch.Tensor, " row"] | None = None  # None where no row is padded
        self._slots = 0

    def share(self, prompts: Sequence[tuple[int, ...]]) -> None:
        """Compute the prefix that all `prompts` share."""
        with torch.inference_mode():
            self._prefix_ids = shared_prefix(prompts)
            self._prefix = PrefixCache(self._model.get_decoder(), self._prefix_ids, self._device)

    def start(self, prompts: Sequence[tuple[int, ...]]) -> Float[torch.Tensor, "row vocab"]:
        """Process prompts, and return the logits of the token after each.

        A prefix that was computed with other scales is computed again.
        """
        current = self._prefix is not None and self._prefix.is_current
        if not current or not all(self._continues(p) for p in prompts):
            self.share(prompts)
        assert self._prefix is not None
        lengths = torch.tensor([len(prompt) for prompt in prompts])
        pads = int(lengths.max()) - lengths
        ragged = bool(pads.any())
        self._pads = pads.to(self._device) if ragged else None
        if ragged:
            self._cache, self._slots = self._prefix.shifted(pads)
        else:
            self._cache, self._slots = self._prefix.expanded(len(prompts)), len(self._prefix)
        width = int(lengths.max()) - self._slots
        ids = [[0] * (width - len(p)) + list(p[-width:]) for p in prompts]
        return self._advance(torch.tensor(ids))

    def step(
        self, parents: Int[np.ndarray, " row"], tokens: Int[np.ndarray, " row"]
    ) -> Float[torch.Tensor, "row vocab"]:
        """Append tokens[r] to row parents[r] of the last call, and return the next logits."""
        if not np.array_equal(parents, np.arange(self._rows)):
            rows = torch.from_numpy(parents).to(self._device)
            _select(self._cache, rows)
            self._pads = None if self._pads is None else self._pads[rows]
        return self._advance(torch.from_numpy(tokens)[:, None])

    def _continues(self, prompt: Sequence[int]) -> bool:
        """Whether a prompt begins with the prefix and has more tokens."""
        length = len(self._prefix_ids)
        return len(prompt) > length and tuple(prompt[:length]) == self._prefix_ids

    def _advance(self, ids: Int[torch.Tensor, "row seq"]) -> Float[torch.Tensor, "row vocab"]:
        self._rows = len(ids)
        self._slots += ids.shape[1]
        require_length("The longest continuation", self._slots, self._limit, self._name)
        with torch.inference_mode():
            out = self._model(
                ids.to(self._device),
                cache=self._cache,
                use_cache=True,
                logits_to_keep=self._last,
                **self._position_inputs(ids.shape[1]),
            )
        logits: torch.Tensor = out.logits[:, -1].float()  # NumPy has no BF16
        return logits

    def _position_inputs(self, new: int) -> dict[str, torch.Tensor]:
        """Positions and the mask of the padding; empty if the model needs neither."""
        if self._pads is None:
            if not is_wrapper(self._model):
                return {}
            # Wrappers may count positions differently from the decoder, which read the prefix.
            slots = torch.arange(self._slots - new, self._slots, device=self._device)
            return {"position_ids": slots.expand(self._rows, -1)}
        slots = torch.arange(self._slots, device=self._device) - self._pads[:, None]
        mask: Bool[torch.Tensor, "row slot"] = slots >= 0
        return {"attention_mask": mask.long(), "position_ids": slots[:, -new:].clamp(min=0)}


def _select(cache: Any, rows: Int[torch.Tensor, " row"]) -> None:
    """Keep these rows of a cache, each layer of which is on the device of its layer."""
    indices = PerDevice(rows)
    for layer in cache.layers:
        keys = getattr(layer, "keys", None)
        layer.batch_select_indices(rows if keys is None else indices.on(keys.device))
