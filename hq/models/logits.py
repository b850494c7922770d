"""Entropy, log-probability and divergence of next-token distributions, from blocks of logits.

The vocabulary is read once, block by block, with sums of exponentials relative to the largest logit
so far (online softmax, Milakov & Gimelshein 2018): memory does not grow with the vocabulary.
"""

from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

Block = tuple[int, Float[Tensor, "token width"]]
"""Index of a block's first vocabulary entry, and the block's float32 logits."""

_BLOCK_VALUES = 1 << 20  # logits in a block: 4 MiB, which fits into caches
_MIN_WIDTH = 512


class Distributions(NamedTuple):
    """One value per token, float64, in nats."""

    entropy: Float[Tensor, " token"]
    log_prob: Float[Tensor, " token"]  # of the chosen token
    kl: Float[Tensor, " token"] | None  # KL(reference ‖ this); None without a reference


def block_edges(tokens: int, vocabulary: int) -> list[int]:
    """Return where the blocks of a vocabulary begin, and its end."""
    width = max(_MIN_WIDTH, _BLOCK_VALUES // max(tokens, 1))
    return [*range(0, vocabulary, width), vocabulary]


def blocks_of(logits: Float[np.ndarray, "token vocab"]) -> Iterator[Block]:
    """Yield an array of logits as blocks, without copying."""
    tensor = torch.from_numpy(logits)
    for start, stop in pairwise(block_edges(*tensor.shape)):
        yield start, tensor[:, start:stop]


def distributions(
    blocks: Iterable[Block],
    chosen: Int[Tensor, " token"],
    reference: Callable[[int, int], Float[Tensor, "token width"]] | None = None,
) -> Distributions:
    """Compute statistics of each token's distribution.

    Args:
        blocks: logits of all tokens, block by block, covering the vocabulary.
        chosen: the tokens whose log-probabilities are computed.
        reference: returns the reference's logits of vocabulary entries `start` to `stop`.
    """
    this, other = _Sums(len(chosen)), _Sums(len(chosen))
    at_chosen = torch.zeros(len(chosen), dtype=torch.float64)
    for start, logits in blocks:
        this.add(logits, logits)
        stop = start + logits.shape[1]
        inside = ((chosen >= start) & (chosen < stop)).nonzero()[:, 0]
        at_chosen[inside] = logits[inside, chosen[inside] - start].double().cpu()
        if reference is not None:
            expected = reference(start, stop)
            other.add(expected, expected - logits)
    log_total = this.log_total
    kl = None if reference is None else other.mean - other.log_total + log_total
    return Distributions(log_total - this.mean, at_chosen - log_total, kl)


class _Sums:
    """log Σ exp(x) and the mean of a value under softmax(x), accumulated over blocks."""

    def __init__(self, tokens: int) -> None:
        # Sums are relative to `_top`, the largest logit so far; finite before the first block.
        self._top = torch.full((tokens,), torch.finfo(torch.float32).min, dtype=torch.float64)
        self._total = torch.zeros(tokens, dtype=torch.float64)
        self._weighted = torch.zeros(tokens, dtype=torch.float64)

    def add(
        self, logits: Float[Tensor, "token width"], values: Float[Tensor, "token width"]
    ) -> None:
        """Add a block."""
        top = torch.maximum(self._top, logits.amax(dim=1).double().cpu())
        shrink = (self._top - top).exp()
        weights = (logits - top.to(logits)[:, None]).exp_()
        self._total = self._total * shrink + weights.sum(dim=1).double().cpu()
        added = weights.mul_(values).sum(dim=1).double().cpu()
        self._weighted = self._weighted * shrink + added
        self._top = top

    @property
    def log_total(self) -> Float[Tensor, " token"]:
        """Logarithm of Σ exp(x)."""
        return self._top + self._total.log()

    @property
    def mean(self) -> Float[Tensor, " token"]:
        """Mean of the values under softmax(x)."""
        return self._weighted / self._total
