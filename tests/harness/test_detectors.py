"""The detectors: scores against lm-polygraph and by hand, folds of the probes, and the experiment."""

import importlib
import shutil
import sys
from importlib.metadata import distribution
from itertools import combinations
from types import ModuleType

import numpy as np
import polars as pl
import pytest
from sklearn.metrics import log_loss

from harness.experiments.detectors import confidence, sampled, timing
from harness.experiments.detectors.hidden import Hidden
from harness.experiments.detectors.parts import Parts
from harness.experiments.detectors.probes import PROBES, fits_of, scores
from harness.experiments.detectors.registry import DETECTORS, Readings
from harness.experiments.run import load_study
from harness.judges.text import normalise
from harness.stages.materials import Materials
from hq.errors import HQError
from hq.probe.stacking import for_folds, log_losses, stacked
from hq.stats.auroc import auroc

ANSWERS = ["Paris", "paris.", "Paris, France", "Lyon", "the city of Lyon", "", "Nice"]


@pytest.fixture
def polygraph():
    """Loads an estimator of lm-polygraph without its package, which imports a server and models."""
    folder = distribution("lm-polygraph").locate_file("lm_polygraph")
    for name in ("", ".estimators", ".utils"):
        module = ModuleType(f"lm_polygraph{name}")
        module.__path__ = [str(folder / name.removeprefix("."))]
        sys.modules[module.__name__] = module
    yield lambda module: importlib.import_module(f"lm_polygraph.estimators.{module}")
    for name in [name for name in sys.modules if name.startswith("lm_polygraph")]:
        del sys.modules[name]


def readings(entropy, log_prob, ends):
    """Readings of answers with these tokens, and nothing else."""
    rows = type("Rows", (), {"folds": np.arange(len(ends)) % 2})()
    read = confidence.Confidence(entropy, log_prob, ends, np.zeros(len(ends)))
    return Readings([], rows, None, None, read, [], np.zeros(0), None, {}, 0)


@pytest.mark.parametrize(
    ("detector", "module", "estimator", "statistic"),
    [
        ("entropy", "token_entropy", "MeanTokenEntropy", "entropy"),
        ("log-probability", "perplexity", "Perplexity", "greedy_log_likelihoods"),
        (
            "sequence-probability",
            "max_probability",
            "MaximumSequenceProbability",
            "greedy_log_likelihoods",
        ),
    ],
)
def test_scores_of_tokens_are_those_of_lm_polygraph(
    polygraph, detector, module, estimator, statistic
):
    rng = np.random.default_rng(0)
    ends = np.cumsum(rng.integers(1, 6, 40))
    entropy, log_prob = rng.gamma(2, size=ends[-1]), -rng.gamma(2, size=ends[-1])
    values = entropy if statistic == "entropy" else log_prob
    expected = getattr(polygraph(module), estimator)()({statistic: np.split(values, ends[:-1])})
    found = DETECTORS[detector].score(readings(entropy, log_prob, ends)).out_of_fold
    np.testing.assert_allclose(found, expected)


def test_perplexity_ranks_answers_as_the_log_probability():
    rng = np.random.default_rng(1)
    ends = np.cumsum(rng.integers(1, 6, 30))
    read = readings(rng.gamma(2, size=ends[-1]), -rng.gamma(2, size=ends[-1]), ends)
    one, other = (DETECTORS[n].score(read).out_of_fold for n in ("perplexity", "log-probability"))
    np.testing.assert_array_equal(np.argsort(one), np.argsort(other))
    np.testing.assert_allclose(np.log(one), other)


def test_a_score_that_is_not_fitted_is_the_same_in_every_fold():
    read = readings(np.array([1.0, 2, 3, 4]), -np.ones(4), np.arange(1, 5))
    found = DETECTORS["entropy"].score(read)
    assert np.isnan(found.calibration).tolist() == [
        [True, False, True, False],
        [False, True, False, True],
    ]
    for features in for_folds(found.out_of_fold, found.calibration):
        assert features[:, 0].tolist() == [1, 2, 3, 4]


def test_clusters_of_answers():
    assert sampled.clusters(ANSWERS) == [0, 0, 0, 1, 1, 2, 3]
    # A chain of containment is one cluster.
    assert sampled.clusters(["a b", "b c", "a b c"]) == [0, 0, 0]


def test_semantic_entropy_is_that_of_lm_polygraph(polygraph):
    cluster = sampled.clusters(ANSWERS)
    estimator = polygraph("semantic_entropy").SemanticEntropy(
        class_probability_estimation="frequency"
    )
    of_class = [[i for i, c in enumerate(cluster) if c == k] for k in range(max(cluster) + 1)]
    classes = {"class_to_sample": [of_class], "sample_to_class": [cluster]}
    expected = estimator({"sample_texts": [ANSWERS], "semantic_classes_entail": classes})
    assert sampled.semantic_entropy(ANSWERS) == pytest.approx(expected[0])
    assert sampled.semantic_entropy(["x"] * 5) == 0
    assert sampled.semantic_entropy(list("abcdefgh")) == pytest.approx(np.log(8))


def test_disagreement_is_a_share():
    assert sampled.disagreement("Paris", ["Paris", "Paris, France", "Lyon", "Nice"]) == 0.5
    assert sampled.disagreement("Paris", ["paris"] * 3) == 0


def test_unigram_surprise_by_hand():
    # Words: red 2 (the answer's own among them), big 1, bus 2, of 5 in all.
    assert sampled.unigram_surprise("red bus", ["bus", "big red"]) == pytest.approx(-np.log(2 / 5))
    assert sampled.unigram_surprise("x", ["y"] * 9) == pytest.approx(np.log(10))
    assert sampled.unigram_surprise("x", ["x"] * 9) == 0
    assert sampled.unigram_surprise("", ["", ""]) == 0


def test_rouge_l_is_the_longest_common_subsequence():
    rng = np.random.default_rng(0)
    for _ in range(30):
        one, other = (
            "".join(f"{w} " for w in rng.choice(list("klm"), rng.integers(1, 6))) for _ in "ab"
        )
        a, b = normalise(one).split(), normalise(other).split()
        common = max(
            k for k in range(len(a) + 1) if k == 0 or {*combinations(a, k)} & {*combinations(b, k)}
        )
        assert sampled.rouge_l(one, other) == pytest.approx(2 * common / (len(a) + len(b)))
    assert sampled.rouge_distance("a b", ["a b", "c"]) == pytest.approx(0.5)


# --- probes


def planted(n=150, layers=4, width=12, heads=2, strength=2.5, seed=0):
    """States whose label is a direction in layer 2, and in the second head of layer 1."""
    rng = np.random.default_rng(seed)
    y = np.arange(n) % 2
    residual, head = (rng.normal(size=(n, layers, width)) for _ in "rh")
    direction = rng.normal(size=width)
    residual[:, 2] += strength * np.outer(y, direction / np.linalg.norm(direction))
    head[:, 1, width // heads :] += strength * y[:, None] / np.sqrt(width // heads)
    states = Hidden(residual, residual, head)
    rows = type("Rows", (), {"y": y, "folds": np.arange(n) // 2 % 3, "units": np.arange(n)})()
    return states, rows, width // heads


@pytest.mark.parametrize("probe", PROBES, ids=lambda probe: probe.name)
def test_probes_find_what_is_planted_and_nothing_in_noise(probe):
    areas = {}
    for strength in (2.5, 0.0):
        states, rows, width = planted(strength=strength)
        arrays = arrays_of(probe, states, rows, width)
        found = scores(probe, arrays, states, rows, width).out_of_fold
        areas[strength] = auroc(found, rows.y, rows.folds)
    assert areas[2.5] > 0.85
    assert areas[0.0] < 0.68


@pytest.mark.parametrize("probe", PROBES, ids=lambda probe: probe.name)
def test_no_score_depends_on_the_labels_of_its_fold(probe):
    states, rows, width = planted(n=90)
    before = scores(probe, arrays_of(probe, states, rows, width), states, rows, width)
    flipped = type("Rows", (), vars(rows) | {"y": np.where(rows.folds == 0, 1 - rows.y, rows.y)})
    flipped.folds, flipped.units = rows.folds, rows.units
    after = scores(probe, arrays_of(probe, states, flipped, width), states, flipped, width)
    own = rows.folds == 0
    np.testing.assert_allclose(after.out_of_fold[own], before.out_of_fold[own])
    np.testing.assert_allclose(after.calibration[0], before.calibration[0])
    assert not np.allclose(after.out_of_fold[~own], before.out_of_fold[~own])


def arrays_of(probe, states, rows, width):
    fits = fits_of(probe, states, rows, width, seed=0)
    return {f"{probe.name}/{key}/{n}": a for key, fitted in fits for n, a in fitted.items()}


# --- combinations


def test_a_second_score_adds_what_the_first_lacks():
    rng = np.random.default_rng(0)
    y, folds = np.arange(600) % 2, np.arange(600) // 2 % 5
    one, other = (y + rng.normal(size=600) for _ in "ab")
    alone = stacked([one[:, None]] * 5, y, folds)
    both = stacked([np.column_stack([one, other])] * 5, y, folds)
    assert auroc(both, y) == pytest.approx(0.84, abs=0.03)  # Φ(√2 · 1/√2) for d = √2
    assert auroc(alone, y) == pytest.approx(0.76, abs=0.03)  # Φ(1/√2)
    assert log_losses(both, y).mean() < log_losses(alone, y).mean()


def test_log_losses_are_those_of_scikit_learn():
    rng = np.random.default_rng(0)
    y, odds = rng.integers(0, 2, 50), rng.normal(size=50) * 3
    expected = log_loss(y, 1 / (1 + np.exp(-odds)))
    assert log_losses(odds, y).mean() == pytest.approx(expected)


# --- the experiment


def test_parts_survive_a_kill(tmp_path):
    parts = Parts(tmp_path)
    parts.write(3, np.array([1, 0]), values=np.ones((2, 4))[:, ::2])
    (tmp_path / "batch-4.incomplete").write_bytes(b"half")
    assert parts.done == {3}
    assert parts.read(3)["values"].shape == (2, 2)
    parts.remove()
    assert not list(tmp_path.iterdir())


def test_p_true_asks_about_the_answer(tiny_study):
    with Materials(load_study(str(tiny_study))) as m:
        common, true, false = confidence.verdict_tokens(m)
        assert m.tokenizer.decode([*common, true]) == " T"
        assert m.tokenizer.decode([*common, false]) == " F"
        prompts = [confidence.p_true_prompt(m.tokenizer, "q", a) for a in ("x", "y")]
        assert prompts[0] != prompts[1]
        assert m.tokenizer.decode(prompts[0]).endswith("Is the proposed answer true or false?")


def test_two_verdicts_of_the_same_tokens_raise(tiny_study, monkeypatch):
    monkeypatch.setattr(confidence, "_VERDICTS", (" T", " True"))
    with Materials(load_study(str(tiny_study))) as m:
        with pytest.raises(HQError, match="does not distinguish"):
            confidence.verdict_tokens(m)


def test_the_ratio_includes_generation():
    seconds = {"plain": 2.0, "pass": 1.0, "samples": 20.0}
    assert timing.ratio(seconds, "pass") == 1.5
    assert timing.ratio(seconds, "samples") == 11


def test_the_experiment_leaves_its_tables(hq, tiny_study, tmp_path, finished):
    shutil.copytree(finished / "cache", tmp_path / "cache")
    options = ("run", tiny_study, "-e", "detectors", "--set", "detectors.timed=4")
    ran = hq(*options, "--set", "detectors.responses=4", "--precisions", "fp16", "--quiet")
    assert ran.code == 0, ran.err
    assert "semantic-entropy" in ran.out
    run = tmp_path / "runs" / "tiny-detectors"
    table = pl.read_csv(run / "detectors.csv")
    assert set(table["detector"]) == set(DETECTORS)
    detect = pl.read_csv(finished / "runs" / "tiny" / "detection.csv")
    own = table.filter(pl.col("detector") == "h-neurons")
    assert own["auroc"][0] == detect.filter(pl.col("precision") == "fp16")["auroc"][0]
    assert table.filter(pl.col("detector") == "semantic-entropy")["passes"][0] == 4
    nested = pl.read_csv(run / "nested.csv").join(table, on=["precision", "detector"])
    assert nested.height == len(list(DETECTORS)) - 1
    gains = nested["auroc_both"] - nested["auroc"]
    assert gains.to_list() == pytest.approx(nested["probe_adds"].to_list(), abs=1e-5)
    costs = pl.read_csv(run / "costs.csv")
    assert (costs["ratio_to_generation"] >= 1).all()
    before = (run / "detectors.csv").read_bytes()
    again = hq(*options, "--set", "detectors.responses=4", "--precisions", "fp16", "--quiet")
    assert again.code == 0
    assert (run / "detectors.csv").read_bytes() == before
    assert hq("check", run, "--against", tmp_path / "results", "--accept").code == 0
    assert hq("check", run, "--against", tmp_path / "results").code == 0
