"""Entropy, loss and divergence of next-token distributions, from logits in blocks.

One pass over the vocabulary, in which sums of exponentials are kept relative to the largest logit
met so far: memory does not grow with the vocabulary.
"""

from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

Block = tuple[int, Float[Tensor, "token width"]]
"""The first entry of the vocabulary that a block has, and its logits in float32."""

_BLOCK_VALUES = 1 << 20  # logits in a block: 4 MiB, which caches hold
_MIN_WIDTH = 512


class Distributions(NamedTuple):
    """One value per token, float64, in nats."""

    entropy: Float[Tensor, " token"]
    log_prob: Float[Tensor, " token"]  # of the token that was chosen
    kl: Float[Tensor, " token"] | None  # KL(reference ‖ this); None without a reference


def block_edges(tokens: int, vocabulary: int) -> list[int]:
    """Where the blocks of a vocabulary begin, and its end."""
    width = max(_MIN_WIDTH, _BLOCK_VALUES // max(tokens, 1))
    return [*range(0, vocabulary, width), vocabulary]


def blocks_of(logits: Float[np.ndarray, "token vocab"]) -> Iterator[Block]:
    """Logits that are there at once, as blocks; none is copied."""
    whole = torch.from_numpy(logits)
    for start, stop in pairwise(block_edges(*whole.shape)):
        yield start, whole[:, start:stop]


def distributions(
    blocks: Iterable[Block],
    chosen: Int[Tensor, " token"],
    reference: Callable[[int, int], Float[Tensor, "token width"]] | None = None,
) -> Distributions:
    """Statistics of each token's distribution.

    Args:
        blocks: logits of all tokens, block by block, over the whole vocabulary.
        chosen: the token whose log-probability is asked.
        reference: gives the reference's logits of entries `start` to `stop`.
    """
    this, theirs = _Sums(len(chosen)), _Sums(len(chosen))
    at_chosen = torch.zeros(len(chosen), dtype=torch.float64)
    for start, logits in blocks:
        this.add(logits, logits)
        stop = start + logits.shape[1]
        inside = ((chosen >= start) & (chosen < stop)).nonzero()[:, 0]
        at_chosen[inside] = logits[inside, chosen[inside] - start].double().cpu()
        if reference is not None:
            other = reference(start, stop)
            theirs.add(other, other - logits)
    log_total = this.log_total
    kl = None if reference is None else theirs.mean - theirs.log_total + log_total
    return Distributions(log_total - this.mean, at_chosen - log_total, kl)


class _Sums:
    """log Σ exp(x), and the mean of a value under the distribution softmax(x), block by block."""

    def __init__(self, tokens: int) -> None:
        # Sums are relative to `_top`, the largest logit so far; low and finite before the first.
        self._top = torch.full((tokens,), torch.finfo(torch.float32).min, dtype=torch.float64)
        self._total = torch.zeros(tokens, dtype=torch.float64)
        self._weighted = torch.zeros(tokens, dtype=torch.float64)

    def add(
        self, logits: Float[Tensor, "token width"], values: Float[Tensor, "token width"]
    ) -> None:
        """Counts a block."""
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
