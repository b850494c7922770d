import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from hq.errors import HQError
from hq.stats.bootstrap import (
    auroc,
    auroc_statistic,
    bootstrap,
    bootstrap_auroc,
    bootstrap_auroc_difference,
    bootstrap_mean,
    grouped_auroc_statistic,
)


@st.composite
def scored(draw) -> tuple[np.ndarray, np.ndarray]:
    """Scores with many ties, and labels of both classes."""
    n = draw(st.integers(2, 40))
    scores = draw(st.lists(st.integers(-8, 8), min_size=n, max_size=n))
    labels = draw(
        st.lists(st.integers(0, 1), min_size=n, max_size=n).filter(lambda y: 0 < sum(y) < n)
    )
    return np.array(scores, dtype=float), np.array(labels)


@given(scored())
def test_auroc_equals_scikit_learns(data):
    scores, labels = data
    assert auroc(scores, labels) == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)


@given(scored(), st.integers(0, 2**32 - 1))
def test_weighted_auroc_equals_scikit_learns(data, seed):
    scores, labels = data
    weights = np.random.default_rng(seed).integers(1, 6, size=(3, len(labels))).astype(float)
    expected = [roc_auc_score(labels, scores, sample_weight=w) for w in weights]
    np.testing.assert_allclose(auroc_statistic(scores, labels)(weights), expected, atol=1e-12)


@given(scored(), st.integers(0, 2**32 - 1))
def test_auroc_over_groups_is_that_over_their_rows(data, seed):
    scores, labels = data
    rng = np.random.default_rng(seed)
    groups = rng.integers(4, size=len(labels))
    names, of_row = np.unique(groups, return_inverse=True)
    weights = rng.integers(0, 3, size=(5, len(names))).astype(float)
    np.testing.assert_allclose(
        grouped_auroc_statistic(scores, labels, groups)(weights),
        auroc_statistic(scores, labels)(weights[:, of_row]),
        atol=1e-12,
    )


@given(scored())
def test_auroc_sees_ranks_only_and_turns_with_the_sign(data):
    scores, labels = data
    area = auroc(scores, labels)
    assert auroc(np.exp(scores / 3), labels) == pytest.approx(area, abs=1e-12)
    assert auroc(-scores, labels) == pytest.approx(1 - area, abs=1e-12)
    assert auroc(scores, 1 - labels) == pytest.approx(1 - area, abs=1e-12)


def test_infinite_scores_are_ranked():
    assert auroc([-np.inf, 0.0, np.inf, np.inf], [0, 0, 1, 0]) == pytest.approx(2.5 / 3)


@pytest.mark.parametrize(
    ("scores", "labels", "message"),
    [
        ([1.0, 2.0], [1, 1], "one class"),
        ([1.0, np.nan], [0, 1], "1 of 2 scores are NaN"),
        ([1.0, 2.0], [0, 2], "Labels must be"),
        ([1.0, 2.0, 3.0], [0, 1], "differ"),
        ([], [], "one class"),
    ],
)
def test_auroc_refuses(scores, labels, message):
    with pytest.raises(HQError, match=message):
        auroc(scores, labels)


def test_the_interval_covers_the_truth_about_95_times_in_100():
    rng = np.random.default_rng(7)
    truth = norm.cdf(1 / np.sqrt(2))  # AUROC of N(1, 1) against N(0, 1)
    labels = np.repeat([0, 1], 60)
    inside = 0
    for seed in range(200):
        found = bootstrap_auroc(rng.standard_normal(120) + labels, labels, seed, replicates=400)
        inside += found.low <= truth <= found.high
    assert 0.90 <= inside / 200 <= 0.99


def test_a_seed_gives_the_same_interval_whatever_the_chunks(monkeypatch):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 50)
    scores = rng.random(50)
    whole = bootstrap_auroc(scores, labels, seed=3, replicates=100)
    assert whole == bootstrap_auroc(scores, labels, seed=3, replicates=100)
    assert whole != bootstrap_auroc(scores, labels, seed=4, replicates=100)
    monkeypatch.setattr("hq.stats.bootstrap._CHUNK", 50 * 7)
    assert whole == bootstrap_auroc(scores, labels, seed=3, replicates=100)


def test_groups_are_resampled_whole():
    """Rows copied within their group carry no information: the interval does not shrink."""
    rng = np.random.default_rng(1)
    labels, scores = rng.integers(0, 2, 30), rng.random(30)
    alone = bootstrap_auroc(scores, labels, seed=0, replicates=200)
    names = np.array([f"entity {i:02d}" for i in range(30)])
    copied = bootstrap_auroc(
        np.repeat(scores, 4), np.repeat(labels, 4), 0, replicates=200, groups=np.repeat(names, 4)
    )
    assert (copied.low, copied.high) == pytest.approx((alone.low, alone.high))
    assert copied.n == alone.n == 30


def clustered(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores, labels and groups: 60 entities, of which the model knows everything or nothing.

    Scores share a part within an entity, which has 1 to 9 questions. The AUROC is Φ(1 / √2).
    """
    groups = np.repeat(np.arange(60), rng.integers(1, 10, 60))
    labels = np.tile([0, 1], 30)[groups]
    shared, own = rng.standard_normal(60)[groups], rng.standard_normal(len(groups))
    return labels + np.sqrt(0.8) * shared + np.sqrt(0.2) * own, labels, groups


def test_questions_about_one_entity_count_once():
    """The bootstrap over groups covers the truth; over rows, its intervals are too narrow."""
    rng = np.random.default_rng(11)
    truths = {"auroc": norm.cdf(1 / np.sqrt(2)), "mean": 0.5}
    inside = {(name, grouped): 0 for name in truths for grouped in (False, True)}
    for seed in range(200):
        scores, labels, names = clustered(rng)
        for grouped in (False, True):
            draw = (seed, 300, names if grouped else None)
            for name, found in (
                ("auroc", bootstrap_auroc(scores, labels, *draw)),
                ("mean", bootstrap_mean(scores - labels + 0.5, *draw)),
            ):
                inside[name, grouped] += found.low <= truths[name] <= found.high
    for name in truths:
        assert 0.90 <= inside[name, True] / 200 <= 0.99, inside
        assert inside[name, False] / 200 < 0.75, inside


def test_resamples_without_a_class_are_drawn_again():
    found = bootstrap_auroc([0.1, 0.2, 0.3, 0.9], [0, 0, 0, 1], seed=0, replicates=500)
    assert (found.value, found.low, found.high) == (1.0, 1.0, 1.0)


def test_a_statistic_that_is_never_defined_is_refused_by_name():
    with pytest.raises(HQError, match="The correlation is undefined for these 3 rows"):
        bootstrap(lambda w: np.full(len(w), np.nan), 3, 0, replicates=10, name="correlation")


def test_a_statistic_that_no_resample_defines_is_refused_by_name():
    def whole_only(weights):
        return np.where((weights == 1).all(axis=1), 0.5, np.nan)

    with pytest.raises(HQError, match="The entropy is undefined for nearly every resample"):
        bootstrap(whole_only, 50, 0, replicates=10, name="entropy")


def test_nothing_to_resample_is_refused():
    with pytest.raises(HQError, match="no rows"):
        bootstrap_mean([], seed=0)


def test_a_paired_difference_is_far_narrower_than_two_intervals():
    rng = np.random.default_rng(2)
    labels = np.repeat([0, 1], 100)
    first = rng.standard_normal(200) + labels
    second = first + 0.05 * rng.standard_normal(200)
    difference = bootstrap_auroc_difference(first, second, labels, seed=0, replicates=300)
    alone = bootstrap_auroc(first, labels, seed=0, replicates=300)
    assert difference.value == pytest.approx(auroc(first, labels) - auroc(second, labels))
    assert difference.high - difference.low < (alone.high - alone.low) / 4
    same = bootstrap_auroc_difference(first, 3 * first, labels, seed=0, replicates=50)
    assert (same.value, same.low, same.high) == (0, 0, 0)


def test_a_difference_from_several_subtracts_their_mean():
    rng = np.random.default_rng(5)
    labels, first, others = rng.integers(0, 2, 60), rng.random(60), rng.random((3, 60))
    found = bootstrap_auroc_difference(first, others, labels, seed=0, replicates=50)
    mean = np.mean([auroc(row, labels) for row in others])
    assert found.value == pytest.approx(auroc(first, labels) - mean)


def test_the_mean_has_the_interval_of_the_central_limit():
    values = np.random.default_rng(3).standard_normal(400)
    found = bootstrap_mean(values, seed=0)
    half = 1.96 * values.std() / 20
    assert found.value == pytest.approx(values.mean())
    assert found.low == pytest.approx(values.mean() - half, abs=0.01)
    assert found.high == pytest.approx(values.mean() + half, abs=0.01)


@pytest.mark.parametrize("values", [[np.nan, 1.0], [[1.0], [2.0]]])
def test_a_mean_needs_one_finite_number_per_row(values):
    with pytest.raises(HQError, match="finite"):
        bootstrap_mean(values, seed=0)


def test_one_group_per_row():
    with pytest.raises(HQError, match="one group per row"):
        bootstrap_mean([1.0, 2.0], seed=0, groups=np.array(["a"]))


def test_an_estimate_reads_as_value_and_interval():
    assert str(bootstrap_mean([0.5, 0.5], seed=0, replicates=5)) == "0.500 [0.500, 0.500]"
