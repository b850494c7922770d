"""The next token: greedy, or drawn from the distribution that was asked for."""

import numpy as np
import pytest
import torch
from scipy.special import softmax

from harness.serve.sampler import Sampler, _nucleus
from hq.errors import HQError
from hq.sampling import Sampling, truncated_cdf

LOGITS = np.array([1.0, 3.0, 2.0, -1.0], dtype=np.float32)


@pytest.mark.parametrize("temperature", [0.0, 1e-9, 5e-324])
def test_no_temperature_is_the_likeliest(temperature):
    sampler = Sampler(temperature, 1.0, 0)
    assert {sampler(LOGITS) for _ in range(20)} == {1}


@pytest.mark.parametrize(
    ("temperature", "top_p", "expected"),
    [
        (1.0, 1.0, softmax(LOGITS)),
        (2.0, 1.0, softmax(LOGITS / 2)),
        (1.0, 0.7, [0, softmax([3, 2])[0], softmax([3, 2])[1], 0]),
        (1.0, 1e-9, [0, 1, 0, 0]),
    ],
)
def test_draws_are_as_often_as_they_should(temperature, top_p, expected):
    sampler = Sampler(temperature, top_p, 5)
    counts = np.bincount([sampler(LOGITS) for _ in range(4000)], minlength=4)
    np.testing.assert_allclose(counts / 4000, expected, atol=0.03)


def test_a_seed_repeats():
    one, two = (Sampler(1.0, 1.0, 7) for _ in range(2))
    assert [one(LOGITS) for _ in range(50)] == [two(LOGITS) for _ in range(50)]


def test_logits_that_are_not_finite_are_an_error():
    for bad in (np.nan, np.inf):
        with pytest.raises(HQError, match="not finite"):
            Sampler(0.0, 1.0, 0)(np.array([1.0, bad, 1.0], dtype=np.float32))


@pytest.mark.parametrize("top_p", [0.1, 0.5, 0.9, 0.999, 1.0])
@pytest.mark.parametrize("spread", [0.1, 3.0])
def test_a_nucleus_is_hq_samplings(top_p, spread):
    """What responses of a study are drawn from, which sorts the whole vocabulary."""
    logits = np.random.default_rng(0).normal(size=5000).astype(np.float32) * spread
    settings = Sampling(1, 1.3, 0, top_p)
    tokens, cdf = truncated_cdf(torch.from_numpy(logits)[None], settings)
    theirs = set(tokens[0, : np.searchsorted(cdf[0], 1.0) + 1].tolist())
    sampler = Sampler(1.3, top_p, 0)
    assert {sampler(logits) for _ in range(300)} <= theirs
    if top_p < 1:
        shares = softmax(logits.astype(np.float64) / 1.3)
        assert set(_nucleus(shares, top_p).tolist()) == theirs
