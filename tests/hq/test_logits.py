"""Statistics of next-token distributions, computed block by block."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import log_softmax

from hq.models.logits import block_edges, blocks_of, distributions


def drawn(seed, tokens, vocabulary, spread):
    rng = np.random.default_rng(seed)
    return (spread * rng.standard_normal((tokens, vocabulary))).astype(np.float32)


def expected(logits, chosen, reference):
    q, p = (log_softmax(x.astype(np.float64), axis=-1) for x in (logits, reference))
    entropy = -(np.exp(q) * q).sum(axis=-1)
    return entropy, q[np.arange(len(q)), chosen], (np.exp(p) * (p - q)).sum(axis=-1)


@given(
    seed=st.integers(0, 1 << 16),
    tokens=st.integers(1, 4),
    width=st.integers(1, 40),
    vocabulary=st.integers(2, 97),
    spread=st.sampled_from([1e-3, 1.0, 30.0, 1e4]),
)
def test_blocks_give_what_the_whole_vocabulary_gives(seed, tokens, width, vocabulary, spread):
    logits, reference = (drawn(seed + i, tokens, vocabulary, spread) for i in range(2))
    chosen = np.random.default_rng(seed).integers(vocabulary, size=tokens)
    blocks = (
        (start, torch.from_numpy(logits[:, start : start + width]))
        for start in range(0, vocabulary, width)
    )
    found = distributions(
        blocks,
        torch.from_numpy(chosen),
        lambda start, stop: torch.from_numpy(reference[:, start:stop]),
    )
    for value, right in zip(found, expected(logits, chosen, reference), strict=True):
        np.testing.assert_allclose(value, right, rtol=1e-6, atol=1e-6 * max(spread, 1))


@pytest.mark.parametrize("noise", [1e-3, 1e-2, 0.1])
def test_a_small_divergence_keeps_its_digits(noise):
    reference = drawn(0, 50, 49152, 3.0)
    logits = reference + drawn(1, 50, 49152, noise) + np.float32(7)  # a shift changes nothing
    chosen = np.zeros(50, dtype=np.int64)
    found = distributions(
        blocks_of(logits),
        torch.from_numpy(chosen),
        lambda start, stop: torch.from_numpy(reference[:, start:stop]),
    )
    right = expected(logits, chosen, reference)[2]
    assert found.kl.mean() == pytest.approx(right.mean(), rel=1e-3, abs=3e-7)


def test_no_reference_gives_no_divergence():
    logits = drawn(0, 2, 10, 1.0)
    assert distributions(blocks_of(logits), torch.tensor([0, 9])).kl is None


@pytest.mark.parametrize(
    ("tokens", "vocabulary"), [(1, 1), (1, 262_144), (500, 262_144), (4096, 50_000)]
)
def test_blocks_cover_the_vocabulary_and_are_small(tokens, vocabulary):
    edges = np.array(block_edges(tokens, vocabulary))
    assert (edges[0], edges[-1]) == (0, vocabulary)
    widths = np.diff(edges)
    assert widths.min() > 0
    assert tokens * widths.max() <= max(1 << 20, 512 * tokens)
