"""Records the steps of every row of one call of transformers' `generate`."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol, Self

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import LogitsProcessor

from hq.backends.transformers.hooks import ShareHooks
from hq.errors import HQError
from hq.monitor.step import Running, Step
from hq.neurons.neuron_set import NeuronSet


@dataclass(frozen=True)
class PromptTokens:
    """What determines how many tokens of a prompt `generate` reads before the first new token."""

    mask: Int[Tensor, "prompt seq"] | None
    embedded: int | None  # tokens of `inputs_embeds`, which replace token ids
    cached: int  # tokens in the cache that was given

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Self:
        """From the arguments of `generate`."""
        mask, embeds = given.get("attention_mask"), given.get("inputs_embeds")
        cache = given.get("cache", given.get("past_key_values"))
        return cls(
            mask=mask if mask is not None and mask.ndim == 2 else None,
            embedded=None if embeds is None else embeds.shape[1],
            cached=0 if cache is None else int(cache.get_seq_length()),
        )

    def read(self, length: int) -> int:
        """How many of the `length` token ids of each row are read, without cached ones."""
        total = length if self.embedded is None else self.embedded
        # A mask that is longer than the ids says that the ids continue what is cached.
        continues = self.mask is not None and self.mask.shape[-1] != total
        return total if continues else total - self.cached


class Recorder(LogitsProcessor):  # type: ignore[misc]  # transformers is not followed
    """A logits processor that records what each forward pass read, and changes no logits.

    The first pass reads the prompt; each later one reads the newest token of every row. A row is
    over when the stopping criteria of `generate` end it; `ends` are the tokens that do so.
    """

    def __init__(self, neurons: NeuronSet, hooks: ShareHooks, prompt: PromptTokens) -> None:
        self.rows: list[list[Step]] = []
        self.ends: frozenset[int] | None = None  # until the stopping criteria are known
        self._neurons = neurons
        self._hooks = hooks
        self._prompt = prompt
        self._length = 0  # of the prompt, in tokens
        self._running: list[Running] = []
        self._over: Bool[np.ndarray, " row"] = np.zeros(0, dtype=bool)
        self._done: Bool[np.ndarray, " row"] = np.zeros(0, dtype=bool)  # once its token is read
        hooks.reading = neurons.tokens != "answer"  # a prompt is read only where it counts

    def __call__(
        self, input_ids: Int[Tensor, "row seq"], scores: Float[Tensor, "row vocab"]
    ) -> Float[Tensor, "row vocab"]:
        """Record what the last pass read. Raises HQError if the set cannot be read from it."""
        if self._running:
            self._add(input_ids[:, -1].tolist())
        else:
            self._begin(*input_ids.shape)
        return scores

    def note_done(self, done: Bool[np.ndarray, " row"]) -> None:
        """Record the rows for which the newest token is the last."""
        self._done |= done

    def keep(self, length: int) -> None:
        """Drop steps after the rows' first `length` tokens, which `generate` read and gave up."""
        for row in self.rows:
            del row[max(length - self._length, 0) :]

    def _begin(self, rows: int, length: int) -> None:
        if self.ends is None:
            raise HQError(
                "This version of transformers does not show its stopping criteria, so it is not "
                "known where answers end: use the version that hq is tested with."
            )
        mask = self._prompt.mask
        if mask is not None and not mask[:, -1].all():
            raise HQError("A prompt is padded on its right: set tokenizer.padding_side = 'left'.")
        read, wanted = sum(self._hooks.passes()), rows * self._prompt.read(length)
        if read != wanted:
            raise HQError(_extra(f"{read} tokens were read before the first new one, not {wanted}"))
        self._length = length
        self.rows = [[] for _ in range(rows)]
        self._over, self._done = np.zeros(rows, dtype=bool), np.zeros(rows, dtype=bool)
        span = self._neurons.tokens
        if span == "answer":
            self._hooks.forget()
            decisions: Sequence[Float[np.ndarray, " token"]] = [np.empty(0)] * rows
        else:
            cett = self._hooks.collect(rows)
            counted = self._counted(rows, cett.shape[1], length)
            decisions = [
                self._neurons.score_unchecked(values[chosen])
                for values, chosen in zip(cett, counted, strict=True)
            ]
        self._running = [Running(span, values) for values in decisions]
        self._hooks.reading = True

    def _counted(self, rows: int, read: int, length: int) -> Bool[np.ndarray, "row read"]:
        """Which tokens of the prompt, of those that were read, the span covers."""
        if self._neurons.tokens == "prompt":
            return np.broadcast_to(np.arange(read) == read - 1, (rows, read))
        mask = self._prompt.mask
        if mask is None or not mask.shape[-1] == read == length:
            raise HQError(
                "The set reads the whole prompt: pass attention_mask with input_ids to generate, "
                "and no cache of an earlier text."
            )
        return torch.repeat_interleave(mask, rows // len(mask), dim=0).bool().cpu().numpy()

    def _add(self, tokens: list[int]) -> None:
        passes = len(self._hooks.passes())
        if passes != 1:
            raise HQError(_extra(f"{passes} forward passes ran for one new token"))
        cett = self._hooks.collect(len(tokens))[:, -1]
        going = np.flatnonzero(~self._over & ~np.isin(tokens, list(self.ends or ())))
        decisions = self._neurons.score_unchecked(cett[going])
        for row, decision in zip(going.tolist(), decisions.tolist(), strict=True):
            score = self._running[row].add(decision)
            self.rows[row].append(Step(tokens[row], cett[row].copy(), decision, score))
        self._over = self._done.copy()


def _extra(what: str) -> str:
    return (
        f"{what}: a logits processor, a stopping criterion, a streamer or another thread ran the "
        "model too, and the monitor cannot tell which pass wrote the answer. Generate without it, "
        "or outside the monitor."
    )


class Recording(Protocol):
    """A monitor that records calls of `generate`."""

    def recording(self, prompt: PromptTokens) -> AbstractContextManager[Recorder]:
        """A recorder for one call of `generate`."""
        ...

    def live(self) -> Recorder:
        """The recorder of the `generate` that is running. Raises HQError if none is."""
        ...
