"""Localisation of the first wrong step, against loops over answers and steps."""

import numpy as np
import pytest

from hq.stats.localisation import (
    ALL_RIGHT,
    best_threshold,
    first_alarm,
    highest,
    localisation,
    localisation_of_hits,
)


def drawn(seed, n=60, most=5):
    """Random scores of 1 to `most` steps, with ties, and labels."""
    rng = np.random.default_rng(seed)
    scores = [rng.integers(0, 6, rng.integers(1, most + 1)) / 2 for _ in range(n)]
    first_wrong = np.array([rng.integers(-1, len(of)) for of in scores])
    return scores, first_wrong, rng.integers(0, n // 2, n)


def alarm(of_answer, threshold):
    for index, score in enumerate(of_answer):
        if score >= threshold:
            return index
    return ALL_RIGHT


def f1_of(scores, first_wrong, threshold):
    hits = {True: [], False: []}
    for of_answer, truth in zip(scores, first_wrong, strict=True):
        hits[truth != ALL_RIGHT].append(alarm(of_answer, threshold) == truth)
    a, b = (sum(of) / len(of) for of in hits.values())
    return 2 * a * b / (a + b) if a + b else 0.0


@pytest.mark.parametrize("seed", range(5))
def test_the_rules_agree_with_loops(seed):
    scores, _, _ = drawn(seed)
    assert highest(scores).tolist() == [list(of).index(max(of)) for of in scores]
    for threshold in (-1.0, 0.5, 1.25, 2.5, 9.0):
        expected = [alarm(of, threshold) for of in scores]
        assert first_alarm(scores, threshold).tolist() == expected
    each = np.linspace(0, 3, len(scores))
    expected = [alarm(of, t) for of, t in zip(scores, each, strict=True)]
    assert first_alarm(scores, each).tolist() == expected


@pytest.mark.parametrize("seed", range(5))
def test_no_threshold_has_a_larger_f1(seed):
    scores, first_wrong, _ = drawn(seed)
    chosen = f1_of(scores, first_wrong, best_threshold(scores, first_wrong))
    assert chosen == max(f1_of(scores, first_wrong, t) for t in np.arange(-0.25, 3.5, 0.25))


@pytest.mark.parametrize("seed", range(5))
def test_estimates_are_accuracies_and_their_harmonic_mean(seed):
    scores, first_wrong, groups = drawn(seed)
    result = localisation(first_alarm(scores, 1.25), first_wrong, groups)
    hits = np.array([alarm(of, 1.25) for of in scores]) == first_wrong
    a, b = hits[first_wrong >= 0].mean(), hits[first_wrong < 0].mean()
    assert result.wrong.value == pytest.approx(a)
    assert result.right.value == pytest.approx(b)
    assert result.f1.value == pytest.approx(2 * a * b / (a + b))
    assert result.f1.low < result.f1.value < result.f1.high
    assert result.wrong.n == len(set(groups[first_wrong >= 0]))


def test_perfect_scores_locate_everything():
    scores = [np.array([0.0, 1.0, 0.5]), np.array([0.1, 0.2]), np.array([1.0, 0.0])] * 4
    first_wrong = np.array([1, ALL_RIGHT, 0] * 4)
    located = first_alarm(scores, best_threshold(scores, first_wrong))
    assert located.tolist() == first_wrong.tolist()
    result = localisation(located, first_wrong, np.arange(12))
    assert result.f1.value == result.wrong.value == result.right.value == 1


def test_answers_of_one_kind_have_no_f1():
    hits, wrong = np.array([1.0, 0.0, 0.5]), np.array([True, True, True])
    result = localisation_of_hits(hits, wrong, np.arange(3))
    assert result.wrong.value == pytest.approx(0.5)
    assert (result.right, result.f1) == (None, None)


def test_with_answers_of_one_kind_the_threshold_serves_that_kind():
    scores = [np.array([0.0, 1.0]), np.array([0.2, 0.9])]
    assert best_threshold(scores, np.array([ALL_RIGHT, ALL_RIGHT])) == np.inf
    assert 0.2 < best_threshold(scores, np.array([1, 1])) <= 0.9
