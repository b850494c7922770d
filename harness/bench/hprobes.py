"""The peer that bench `cett` is measured against: hprobes 0.11, where it is installed."""

from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Self

import torch
from jaxtyping import Float
from torch import Tensor

from hq.backends.transformers.backend import TorchBackend
from hq.neurons.prompt_response import PromptResponse


class Hprobes:
    """hprobes' own CETT (`output`, over answer and other tokens) of a backend's dense model."""

    def __init__(self, module: Any, model: Any, layers: list[int]) -> None:
        self._module = module
        self._model = model
        self._layers = layers
        self._norms = module.precompute_col_norms(model, layers)

    @classmethod
    def of(cls, backend: TorchBackend) -> Self | None:
        """None where hprobes is not installed."""
        if find_spec("hprobes") is None:
            return None
        layers = list(range(backend.identity.n_layers))
        return cls(import_module("hprobes.cett"), backend.model, layers)

    def trace(self, texts: Sequence[PromptResponse]) -> list[Float[Tensor, "span p"]]:
        """One text after the other: means over the answer's tokens, and over all others."""
        return [torch.stack(self._one(text)) for text in texts]

    def difference(self, backend: TorchBackend, texts: Sequence[PromptResponse]) -> float:
        """The largest relative difference, in norm, of its result from `backend.trace`'s."""
        largest = 0.0
        for batch in backend.trace(texts, ("output",), ("answer", "other")):
            ours = torch.from_numpy(batch.values[:, 0]).flatten(2)
            theirs = torch.stack(self.trace([texts[row] for row in batch.rows]))
            errors = (ours - theirs).norm(dim=-1) / theirs.norm(dim=-1)
            largest = max(largest, errors.max().item())
        return largest

    def _one(self, text: PromptResponse) -> tuple[Tensor, Tensor]:
        tokens = {"input_ids": torch.tensor([text.ids])}
        start, end = len(text.prompt), len(text)
        means: tuple[Tensor, Tensor] = self._module.forward_cett_dual_span(
            self._model, tokens, start, end, self._layers, self._norms
        )
        return means
