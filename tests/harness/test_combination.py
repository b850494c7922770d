"""H-Neurons combined with token entropy: in a running monitor, and as a cross-fitted score."""

import numpy as np
import pytest
from scipy.special import log_softmax, softmax
from scipy.stats import entropy as scipy_entropy
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from harness.deploy.combining import combine, compare
from harness.stages.alarms import Scores
from hq.errors import HQError
from hq.monitor.combination import Combination, TokenUncertainty, uncertainty_of
from hq.stats.auroc import auroc
from tests.hq.monitored import PROMPT, neuron_set

COMBINATION = Combination(probe=0.7, entropy=1.3, intercept=-0.4, surprisal=0.9)


def test_entropy_and_surprisal_are_those_of_scipy():
    rng = np.random.default_rng(0)
    for scale in (0.1, 1, 30, 300):
        logits = (rng.normal(size=500) * scale).astype(np.float32)
        found = uncertainty_of(logits, 7)
        expected = scipy_entropy(softmax(logits.astype(np.float64)))
        assert found.entropy == pytest.approx(expected, abs=1e-9)
        assert found.surprisal == pytest.approx(-log_softmax(logits.astype(np.float64))[7])
    equal = uncertainty_of(np.zeros(64, dtype=np.float32), 3)
    assert equal == pytest.approx((np.log(64), np.log(64)))


@pytest.fixture
def backend(gguf):
    pytest.importorskip("llama_cpp")
    from hq.backends.llamacpp.backend import LlamaBackend

    with LlamaBackend(gguf("llama", "f32"), "gguf-f32") as opened:
        yield opened


def of(entropy, surprisal):
    return TokenUncertainty(float(entropy), float(surprisal))


def test_a_monitor_scores_both_at_every_token(backend):
    from hq.monitor import LlamaMonitor
    from hq.neurons.prompt_response import PromptResponse

    response, neurons = (9, 20, 31, 42), neuron_set(backend.identity)
    with (
        LlamaMonitor(backend, neurons) as plain,
        LlamaMonitor(backend, neurons, combination=COMBINATION) as combined,
    ):
        alone = list(plain.follow(PROMPT, response))
        both = list(combined.follow(PROMPT, response))
        written = list(combined.answer(PROMPT, backend_ending(), 6))
    (predictions,) = backend.predictions([PromptResponse(PROMPT, response)])
    for k, (one, other) in enumerate(zip(alone, both, strict=True)):
        entropy, surprisal = predictions.entropy[: k + 1], -predictions.log_prob[: k + 1]
        np.testing.assert_array_equal(one.cett, other.cett)
        expected = COMBINATION.decide(one.token_score, of(entropy[k], surprisal[k]))
        assert other.token_score == pytest.approx(expected, abs=1e-4)
        assert other.score == pytest.approx(
            COMBINATION.decide(one.score, of(entropy.mean(), surprisal.mean())), abs=1e-4
        )
    with LlamaMonitor(backend, neurons, combination=COMBINATION) as reader:
        read_again = list(reader.follow(PROMPT, [step.token for step in written]))
    assert [s.score for s in written] == pytest.approx([s.score for s in read_again], abs=1e-5)


def backend_ending():
    from hq.tracing.sampling import StopCriteria

    return StopCriteria(frozenset(), (), lambda ids: " ".join(map(str, ids)))


def test_a_set_of_other_tokens_is_not_combined(backend):
    from hq.monitor import LlamaMonitor

    for tokens in ("prompt", "other"):
        with pytest.raises(HQError, match="without a combination"):
            LlamaMonitor(
                backend, neuron_set(backend.identity, tokens=tokens), combination=COMBINATION
            )


def crossfitted(n=400, seed=0):
    """Cross-fitted scores and uncertainties, each of which knows a part of the label."""
    rng = np.random.default_rng(seed)
    y, folds = np.arange(n) % 2, np.arange(n) // 2 % 4
    rows = type("Rows", (), {"y": y, "folds": folds, "units": np.arange(n)})()
    means = rng.normal(size=4) * 5
    own = y + rng.normal(size=n)
    calibration = np.tile(y + rng.normal(size=n), (4, 1)) - 0.5
    calibration[folds, np.arange(n)] = np.nan
    scores = Scores(own - own.mean() + means[folds], calibration, means, 3.0)
    uncertainty = rng.gamma(2, size=(n, 2)) + y[:, None] * [0.7, 1]
    return scores, uncertainty, rows


def test_the_combination_is_the_fit_of_scikit_learn():
    scores, uncertainty, rows = crossfitted()
    combined = combine(scores, uncertainty, rows)
    centred = scores.out_of_fold - scores.means[rows.folds]
    X = np.column_stack([centred + scores.mean, uncertainty])
    expected = make_pipeline(StandardScaler(), LogisticRegression(tol=1e-10)).fit(X, rows.y)
    found = [COMBINATION.__class__.decide(combined.combination, row[0], of(*row[1:])) for row in X]
    np.testing.assert_allclose(found, expected.decision_function(X), atol=1e-3)
    result = compare(scores, uncertainty, combined.scores, rows)
    assert result.combined_minus_uncertainty.low > 0
    assert result.combined_minus_entropy.low > result.combined_minus_uncertainty.low
    areas = [auroc(column, rows.y, rows.folds) for column in uncertainty.T]
    assert [result.entropy.value, result.log_probability.value] == areas
    assert result.uncertainty.value > max(areas)
    assert result.combined_minus_probe.low > 0
    assert result.combined.value == auroc(combined.scores.out_of_fold, rows.y, rows.folds)


def test_no_score_depends_on_the_labels_of_its_fold():
    scores, uncertainty, rows = crossfitted()
    before = combine(scores, uncertainty, rows).scores
    flipped = type("Rows", (), {"folds": rows.folds, "units": rows.units})()
    flipped.y = np.where(rows.folds == 0, 1 - rows.y, rows.y)
    after = combine(scores, uncertainty, flipped).scores
    own = rows.folds == 0
    np.testing.assert_allclose(after.out_of_fold[own], before.out_of_fold[own])
    np.testing.assert_allclose(after.calibration[0], before.calibration[0])
    assert after.means[0] == before.means[0]
    assert not np.allclose(after.out_of_fold[~own], before.out_of_fold[~own])


def test_calibration_scores_are_centred_as_those_of_the_probe():
    scores, uncertainty, rows = crossfitted()
    combined = combine(scores, uncertainty, rows).scores
    for fold, values in enumerate(combined.calibration):
        assert np.isnan(values[rows.folds == fold]).all()
        assert np.nanmean(values) == pytest.approx(0, abs=1e-9)
