"""The sampler: greedy, or by the requested distribution."""

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, softmax

from harness.serve.generation.sampler import Sampler, SamplingSettings
from hq.errors import HQError
from hq.tracing.sampling import Sampling, truncated_cdf

LOGITS = np.array([1.0, 3.0, 2.0, -1.0], dtype=np.float32)


def sampler(seed=0, prompt=(), top_logprobs=None, **settings):
    return Sampler(SamplingSettings(seed=seed, **settings), prompt, None, top_logprobs)


@pytest.mark.parametrize("temperature", [0.0, 1e-9, 5e-324])
def test_temperature_0_is_greedy(temperature):
    choose = sampler(temperature=temperature)
    assert {choose(LOGITS) for _ in range(20)} == {1}


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"temperature": 1.0}, softmax(LOGITS)),
        ({"temperature": 2.0}, softmax(LOGITS / 2)),
        (
            {"temperature": 1.0, "top_p": 0.7},
            [0, softmax([3, 2])[0], softmax([3, 2])[1], 0],
        ),
        ({"temperature": 1.0, "top_p": 1e-9}, [0, 1, 0, 0]),
        ({"temperature": 1.0, "top_p": 0.0}, [0, 1, 0, 0]),
        ({"temperature": 1.0, "top_k": 1}, [0, 1, 0, 0]),
        ({"temperature": 1.0, "top_k": 3}, [*softmax([1, 3, 2]), 0]),
        ({"temperature": 1.0, "top_k": 99}, softmax(LOGITS)),
        # exp(-1) = 0.37 and exp(-2) = 0.14 of the likeliest token's probability
        ({"temperature": 1.0, "min_p": 0.3}, [0, *softmax([3, 2]), 0]),
        ({"temperature": 1.0, "min_p": 0.1}, [*softmax([1, 3, 2]), 0]),
        ({"temperature": 1.0, "min_p": 1.0}, [0, 1, 0, 0]),
    ],
)
def test_sampled_frequencies(settings, expected):
    choose = sampler(seed=5, **settings)
    counts = np.bincount([choose(LOGITS) for _ in range(4000)], minlength=4)
    np.testing.assert_allclose(counts / 4000, expected, atol=0.03)


@pytest.mark.parametrize("more", [{}, {"top_k": 3}, {"min_p": 0.01}, {"presence_penalty": 0.1}])
def test_a_seed_repeats(more):
    one, two, other = (sampler(seed=seed, temperature=1.0, **more) for seed in (7, 7, 8))
    drawn = [one(LOGITS) for _ in range(50)]
    assert drawn == [two(LOGITS) for _ in range(50)]
    assert drawn != [other(LOGITS) for _ in range(50)]


def test_presence_penalty_counts_a_token_once():
    choose = sampler(prompt=(2,) * 9, presence_penalty=1.5)
    # 3 - 1.5 < 2; then 2 - 1.5 is the third of 1.5, 1 and 0.5
    assert [choose(LOGITS) for _ in range(4)] == [1, 2, 1, 1]


def test_frequency_penalty_counts_every_occurrence():
    choose = sampler(prompt=(2,) * 9, frequency_penalty=0.75)
    # Token 1 has 3, 2.25, 1.5, …: each occurrence subtracts 0.75
    logits, counts, expected = LOGITS.copy(), np.zeros(4), []
    for _ in range(12):
        expected.append(int((logits - 0.75 * counts).argmax()))
        counts[expected[-1]] += 1
    assert [choose(LOGITS) for _ in range(12)] == expected
    assert len(set(expected)) > 2


def test_a_negative_penalty_raises_a_logit():
    logits = np.array([1.0, 1.5], dtype=np.float32)
    first = sampler(prompt=(), presence_penalty=-2.0)
    assert [first(np.array([1.0, 0.5], dtype=np.float32)), first(logits)] == [0, 0]


@pytest.mark.parametrize(
    ("prompt", "window", "expected"),
    [
        ((), 64, 1),
        ((1,), 64, 2),
        ((1, 0), 1, 1),
        ((1, 0), 2, 2),
        ((1, 0), 0, 1),
        ((1,) * 99, -1, 2),
    ],
)
def test_repeat_penalty_covers_the_last_tokens_of_the_prompt(prompt, window, expected):
    # 3 / 2 < 2, and a negative logit is multiplied
    assert sampler(prompt=prompt, repeat_penalty=2.0, repeat_last_n=window)(LOGITS) == expected


def test_repeat_penalty_covers_the_answer():
    choose = sampler(repeat_penalty=2.0)
    assert [choose(LOGITS) for _ in range(3)] == [1, 2, 1]


def test_logprobs_come_from_the_models_logits():
    """Temperature, penalties and truncation do not change them."""
    choose = sampler(
        top_logprobs=2,
        temperature=1.7,
        top_k=2,
        presence_penalty=1.0,
        repeat_penalty=1.3,
        prompt=(1,),
    )
    expected = log_softmax(LOGITS.astype(np.float64))
    for _ in range(8):
        token = choose(LOGITS)
        logprobs = choose.logprobs[-1]
        assert logprobs.logprob == pytest.approx(expected[token])
        assert [token_id for token_id, _ in logprobs.top] == [1, 2]
        assert [value for _, value in logprobs.top] == pytest.approx([expected[1], expected[2]])
    assert len(choose.logprobs) == len(choose.sampled) == 8


@pytest.mark.parametrize(("top_logprobs", "count"), [(0, 0), (4, 4), (20, 4)])
def test_top_logprobs_are_at_most_the_vocabulary(top_logprobs, count):
    choose = sampler(top_logprobs=top_logprobs)
    choose(LOGITS)
    assert len(choose.logprobs[0].top) == count


def test_logits_that_are_not_finite_are_an_error():
    for bad in (np.nan, np.inf):
        with pytest.raises(HQError, match="not finite"):
            sampler()(np.array([1.0, bad, 1.0], dtype=np.float32))


@pytest.mark.parametrize("top_p", [0.1, 0.5, 0.9, 0.999, 1.0])
@pytest.mark.parametrize("spread", [0.1, 3.0])
def test_the_nucleus_equals_that_of_hq_sampling(top_p, spread):
    """Tokens are those of a study's sampling, apart from float32 rounding at the edge."""
    logits = np.random.default_rng(0).normal(size=5000).astype(np.float32) * spread
    tokens, cdf = truncated_cdf(torch.from_numpy(logits)[None], Sampling(1, 1.3, 0, top_p))
    kept = int(np.searchsorted(cdf[0], 1.0)) + 1
    choose = sampler(temperature=1.3, top_p=top_p)
    drawn = {choose(logits) for _ in range(300)}
    assert drawn <= set(tokens[0, : min(kept + 5, 5000)].tolist())
    assert len(drawn) > 0.03 * min(kept, 300)
