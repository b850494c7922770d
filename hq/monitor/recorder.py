"""What one call of transformers' `generate` leaves: the steps of every row."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import LogitsProcessor

from hq.backends.torch_hooks import ShareHooks
from hq.errors import HQError
from hq.monitor.step import Running, Step
from hq.neurons import NeuronSet


class Recorder(LogitsProcessor):  # type: ignore[misc]  # transformers is not followed
    """Is told after every forward pass which tokens there are so far, and leaves logits alone.

    The first pass read the prompt; each later one read the newest token of every row. `ends` are
    the tokens after which a row is finished, and what follows in it is padding.
    """

    def __init__(
        self,
        neurons: NeuronSet,
        hooks: ShareHooks,
        ends: frozenset[int],
        mask: Int[Tensor, "prompt seq"] | None,
    ) -> None:
        self.rows: list[list[Step]] = []
        self.ends = ends
        self._neurons = neurons
        self._hooks = hooks
        self._mask = mask if mask is not None and mask.ndim == 2 else None
        self._prompt = 0  # tokens
        self._running: list[Running] = []
        self._finished: Bool[np.ndarray, " row"] = np.zeros(0, dtype=bool)
        hooks.reading = neurons.tokens != "answer"  # a prompt is read only where it counts

    def __call__(
        self, input_ids: Int[Tensor, "row seq"], scores: Float[Tensor, "row vocab"]
    ) -> Float[Tensor, "row vocab"]:
        """Notes what the last pass read. Raises HQError where the set cannot be read from it."""
        if self._running:
            self._add(input_ids[:, -1].tolist())
        else:
            self._begin(*input_ids.shape)
        return scores

    def keep(self, length: int) -> None:
        """Forgets tokens after the rows' first `length`, which `generate` read but gave up."""
        for row in self.rows:
            del row[max(length - self._prompt, 0) :]

    def _begin(self, rows: int, length: int) -> None:
        if self._mask is not None and not self._mask[:, -1].all():
            raise HQError("A prompt is padded on its right: set tokenizer.padding_side = 'left'.")
        self._prompt = length
        self.rows = [[] for _ in range(rows)]
        self._finished = np.zeros(rows, dtype=bool)
        span = self._neurons.tokens
        if span == "answer":
            decisions: Sequence[Float[np.ndarray, " token"]] = [np.empty(0)] * rows
        else:
            cett = self._hooks.collect(rows)
            counted = self._counted(rows, cett.shape[1], length)
            decisions = [
                self._neurons.score_traces(values[chosen])
                for values, chosen in zip(cett, counted, strict=True)
            ]
        self._running = [Running(span, values) for values in decisions]
        self._hooks.reading = True

    def _counted(self, rows: int, read: int, length: int) -> Bool[np.ndarray, "row read"]:
        """Which of the prompt's tokens that were read the span is over."""
        if self._neurons.tokens == "prompt":
            return np.broadcast_to(np.arange(read) == read - 1, (rows, read))
        if self._mask is None or not self._mask.shape[-1] == read == length:
            raise HQError(
                "The set reads the whole prompt: pass attention_mask with input_ids to generate, "
                "and no cache of an earlier text."
            )
        mask = torch.repeat_interleave(self._mask, rows // len(self._mask), dim=0)
        return mask.bool().cpu().numpy()

    def _add(self, tokens: list[int]) -> None:
        cett = self._hooks.collect(len(tokens))[:, -1]
        self._finished |= np.isin(tokens, list(self.ends))
        going = np.flatnonzero(~self._finished)
        decisions = self._neurons.score_traces(cett[going])
        for row, decision in zip(going.tolist(), decisions.tolist(), strict=True):
            score = self._running[row].add(decision)
            self.rows[row].append(Step(tokens[row], cett[row].copy(), decision, score))
