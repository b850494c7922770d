"""Selection frequencies over complementary halves of the groups."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from hq.errors import HQError
from hq.neurons.features import Features
from hq.neurons.neuron_set import ModelIdentity
from hq.probe import stability as module
from hq.probe.stability import STABLE, Stability, frequency_agreement, split_half, stability

MODEL = ModelIdentity(name="tiny", fingerprint="abc", architecture="Llama", n_layers=2, d_ff=60)
PLANTED = [3, 70, 101]
N = 200
GROUPS = np.arange(N) // 4
C = 0.12


@pytest.fixture(scope="module")
def data() -> tuple[Features, np.ndarray]:
    rng = np.random.default_rng(0)
    logs = rng.standard_normal((N, MODEL.n_neurons))
    y = (2 * logs[:, PLANTED].sum(axis=1) + rng.logistic(size=N) > 0).astype(np.int64)
    return Features(np.exp(logs / 2 - 5).astype(np.float32), "sum", "answer", MODEL, "fp16"), y


def test_planted_neurons_are_stable_and_few_others_are(data):
    result = stability(*data, GROUPS, C)
    assert (result.frequency[PLANTED] >= 0.9).all()
    assert result.subsamples == 50
    assert 3 <= result.stable(STABLE) <= 6
    assert result.mean_selected == pytest.approx(result.frequency.sum())
    assert result.frequency.mean() < 0.2


def test_the_bound_is_that_of_meinshausen_and_buehlmann():
    result = Stability(np.array([0.9, 0.6, 0.59, 0.0]), 50, mean_selected=2.0)
    assert result.expected_false(0.9) == pytest.approx(4 / (0.8 * 4))
    assert result.expected_false(0.6) == pytest.approx(4 / (0.2 * 4))
    assert (result.stable(0.9), result.stable(0.6), result.stable(0.5)) == (1, 2, 3)


@pytest.mark.parametrize("threshold", [0.5, 0.3, 1.1])
def test_the_bound_needs_a_frequency_above_one_half(threshold):
    with pytest.raises(HQError, match=r"not above 0\.5"):
        Stability(np.zeros(4), 50, 2.0).expected_false(threshold)


def test_a_frequency_that_is_a_rounded_fraction_counts():
    """0.6 of 50 subsamples is 30, whatever 30 / 50 is in floating point."""
    frequency = np.array([sum([1 / 50] * 30)])
    assert Stability(frequency, 50, 1.0).stable(0.6) == 1


def test_halves_are_complementary_and_divide_no_group(data, monkeypatch):
    halves: list[np.ndarray] = []
    values: list[float] = []
    fit_at = module.fit_at

    def recorded(design: Any, parts: Any, Cs: Any) -> Iterator[Any]:
        halves.extend(parts)
        values.extend(Cs)
        return fit_at(design, parts, Cs)

    monkeypatch.setattr(module, "fit_at", recorded)
    stability(*data, GROUPS, C, pairs=6)
    assert len(halves) == 12
    for first, second in zip(halves[::2], halves[1::2], strict=True):
        np.testing.assert_array_equal(np.sort(np.concatenate([first, second])), np.arange(N))
        assert not np.intersect1d(GROUPS[first], GROUPS[second]).size
        assert len(np.unique(GROUPS[first])) == 25
    assert len({tuple(half) for half in halves}) == 12
    # The penalty per row is that of all rows at C.
    np.testing.assert_allclose([c * len(h) for c, h in zip(values, halves, strict=True)], C * N)


def test_the_same_seed_returns_the_same_frequencies(data):
    first, again, other = (stability(*data, GROUPS, C, pairs=3, seed=s) for s in (0, 0, 1))
    np.testing.assert_array_equal(first.frequency, again.frequency)
    assert (first.frequency != other.frequency).any()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pairs": 0}, "one pair of halves or more, not 0"),
        ({"groups": np.arange(N) % 3}, "four groups or more, and there are 3"),
        ({"groups": np.zeros(3)}, "one group per response"),
        ({"y": np.zeros(N, dtype=int)}, "0 groups of hallucinated"),
    ],
)
def test_invalid_input_raises_an_error(data, changes, message):
    arguments: dict[str, Any] = {"y": data[1], "groups": GROUPS, "C": C} | changes
    with pytest.raises(HQError, match=message):
        stability(data[0], **arguments)


def test_one_group_with_all_of_a_label_raises_an_error(data):
    """Two of the groups have all hallucinated responses; half of the draws separate them."""
    y = (GROUPS < 2).astype(np.int64)
    with pytest.raises(HQError, match="1 groups of hallucinated"):
        stability(data[0], (GROUPS < 1).astype(np.int64), GROUPS, C)
    assert stability(data[0], y, GROUPS, C, pairs=2).subsamples == 4


M, COPIES, PENALTY = 600, 12, 0.02
UNITS = np.arange(M) // 4
FOLDS = UNITS % 5


def planted(copies: int) -> tuple[Features, np.ndarray]:
    """Three causes, each read by `copies` neurons that differ by some noise."""
    rng = np.random.default_rng(1)
    causes = rng.standard_normal((M, 3))
    y = (2 * causes.sum(axis=1) + rng.logistic(size=M) > 0).astype(np.int64)
    logs = rng.standard_normal((M, MODEL.n_neurons))
    for cause in range(3):
        of_cause = logs[:, cause * COPIES : cause * COPIES + copies]
        of_cause[:] = causes[:, [cause]] + 0.15 * of_cause
    return Features(np.exp(logs / 2 - 5).astype(np.float32), "sum", "answer", MODEL, "fp16"), y


@pytest.fixture(scope="module")
def unique():
    return split_half(*planted(1), UNITS, FOLDS, PENALTY, splits=10)


@pytest.fixture(scope="module")
def copied():
    return split_half(*planted(COPIES), UNITS, FOLDS, PENALTY, splits=10)


def test_halves_select_the_same_neurons_where_each_cause_has_one(unique):
    assert unique.consistency.mean() > 0.9
    assert unique.jaccard.mean() > 0.9 > 10 * unique.jaccard_chance.mean()
    assert unique.correlation.mean() > 0.9


def test_copies_make_the_set_unstable_while_scores_agree(unique, copied):
    assert copied.consistency.mean() < 0.3
    assert copied.jaccard.mean() < 0.3
    assert copied.correlation.mean() > 0.9
    assert copied.correlation_within.mean() > 0.8
    assert copied.auroc.mean() == pytest.approx(unique.auroc.mean(), abs=0.03)
    # The neurons of one half only are copies of those of the other.
    assert copied.nearest.mean() > 0.9
    assert copied.nearest_chance.mean() < 0.4


def test_halves_agree_on_nothing_where_nothing_is_planted():
    features, y = planted(1)
    shuffled = np.random.default_rng(2).permutation(y)
    result = split_half(features, shuffled, UNITS, FOLDS, 0.03, splits=10)
    assert abs(result.correlation.mean()) < 0.15
    assert result.auroc.mean() == pytest.approx(0.5, abs=0.05)
    assert abs(result.consistency.mean()) < 0.1
    assert result.nearest.mean() == pytest.approx(result.nearest_chance.mean(), abs=0.03)
    frequencies = frequency_agreement(features, shuffled, UNITS, 0.03, splits=3, pairs=3)
    assert abs(frequencies.mean()) < 0.15


def test_frequencies_agree_where_neurons_are_planted():
    frequencies = frequency_agreement(*planted(1), UNITS, 0.015, splits=3, pairs=3)
    assert frequencies.shape == (3,)
    assert frequencies.mean() > 0.6


def test_halves_exclude_the_held_out_fold_and_share_no_group(monkeypatch):
    parts: list[np.ndarray] = []
    fit_at = module.fit_at

    def recorded(design: Any, given: Any, Cs: Any) -> Iterator[Any]:
        parts.extend(given)
        return fit_at(design, given, Cs)

    monkeypatch.setattr(module, "fit_at", recorded)
    finished: list[int] = []
    split_half(*planted(1), UNITS, FOLDS, PENALTY, splits=6, finished=lambda: finished.append(1))
    assert (len(parts), len(finished)) == (12, 6)
    for split in range(6):
        a, b = parts[2 * split : 2 * split + 2]
        assert not np.intersect1d(UNITS[a], UNITS[b]).size
        outside = np.flatnonzero(split % 5 != FOLDS)
        np.testing.assert_array_equal(np.sort(np.concatenate([a, b])), outside)


def test_agreement_on_three_vs_one_labels_is_that_of_answers():
    features, y = planted(1)
    rng = np.random.default_rng(5)
    others = np.exp(rng.standard_normal(features.values.shape) / 2 - 5).astype(np.float32)
    other = Features(others, "sum", "other", MODEL, "fp16")
    result = split_half(features, y, UNITS, FOLDS, PENALTY, splits=4, other=other)
    assert result.auroc.mean() > 0.8


def test_one_split_has_no_spread():
    with pytest.raises(HQError, match="two splits or more, not 1"):
        split_half(*planted(1), UNITS, FOLDS, PENALTY, splits=1)


def test_halves_that_select_nothing():
    with pytest.raises(HQError, match="selects no neuron: raise C"):
        split_half(*planted(1), UNITS, FOLDS, 1e-4, splits=2)
