"""Rates, slopes and transfer from outcomes that are known."""

import numpy as np
import pytest

from harness.experiments.sweep.rates import JudgedSweep, Swept, rates, slope
from harness.experiments.sweep.transfer import Target, transfer
from harness.scenarios.base import TrialOutcome
from hq.neurons.features import Features
from hq.neurons.neuron_set import ModelIdentity, Neuron, NeuronSet

ALPHAS, CONTROLS, N = (0.0, 1.0, 2.0), (0.0, 1.0, 2.0), 40


def judged(complied):
    """Outcomes of a bool array [..., alpha, trial]."""
    complied = np.asarray(complied)
    outcomes = np.where(complied, TrialOutcome.COMPLIED, TrialOutcome.RESISTED).astype(object)
    nothing = np.zeros(complied.shape, dtype=bool)
    changed = complied != np.take(complied, [1], axis=-2)
    return JudgedSweep(outcomes, nothing, changed, np.full(complied.shape, 5.0))


def swept(shares, control_shares, precision="nf4"):
    """So many of the trials comply at each α: the first ones, so that α's are nested."""
    order = np.arange(N) / N
    return Swept(
        precision=precision,
        scenario="falseqa",
        judge="rules",
        neurons=3,
        alphas=ALPHAS,
        control_alphas=CONTROLS,
        mixed=order < 0.75,
        components=np.array([f"c{i}" for i in range(N)]),
        h=judged([order < share for share in shares]),
        matched=judged([[order < share for share in row] for row in control_shares]),
        seed=0,
    )


FLAT = [[0.5, 0.5, 0.5]] * 5


def test_rates_are_shares_and_reductions_follow():
    rows = list(rates(swept((0.25, 0.5, 0.75), FLAT)))
    h = [row for row in rows if row.neurons == "h"]
    assert [row.rate.value for row in h] == [0.25, 0.5, 0.75]
    assert [row.reduction.value for row in h] == pytest.approx([50, 0, -50])
    assert [row.changed for row in h] == [0.25, 0, 0.25]
    assert all(row.rate.low <= row.rate.value <= row.rate.high for row in h)
    matched = [row for row in rows if row.neurons == "matched"]
    assert [(row.rate.value, row.draws, row.reduction) for row in matched] == [(0.5, 5, None)] * 3


def test_nothing_complies_so_nothing_is_reduced():
    rows = list(rates(swept((0, 0, 0), FLAT)))
    assert [row.reduction for row in rows if row.neurons == "h"] == [None] * 3


def test_a_slope_and_what_became_of_it():
    reference = swept((0.25, 0.5, 0.75), FLAT, "fp16")
    row = slope(swept((0.5, 0.5, 0.5), FLAT), reference, margin=0.05)
    assert (row.slope.value, row.r_squared, row.monotonicity) == (0, 0, 0)
    assert row.change.value == pytest.approx(-0.25)
    assert row.verdict == "changed"
    assert slope(reference, reference, margin=0.05).verdict == "reference"
    same = slope(swept((0.25, 0.5, 0.75), FLAT), reference, margin=0.05)
    assert same.slope.value == same.slope_shared == pytest.approx(0.25)
    assert (same.r_squared, same.monotonicity) == pytest.approx((1, 1))
    assert same.verdict == "preserved"
    assert same.p_matched == pytest.approx(1 / 6)  # no draw has any slope: the floor of five
    assert same.slope_matched.value == 0


def test_a_small_difference_is_not_decided_at_this_n():
    reference = swept((0.25, 0.5, 0.75), FLAT, "fp16")
    row = slope(swept((0.25, 0.5, 0.7), FLAT), reference, margin=0.03)
    assert row.verdict == "not decided at this n"
    assert row.n_needed > N


MODEL = ModelIdentity(name="m", fingerprint="f", architecture="llama", n_layers=2, d_ff=8)


def test_transfer_finds_a_probe_that_carries_over():
    rng = np.random.default_rng(0)

    def features(y, shift):
        X = rng.random((len(y), MODEL.n_neurons)).astype(np.float32)
        X[:, 3] += shift * y
        return Features(X, "sum", "answer", MODEL, "nf4")

    y = np.tile([0, 1], 60)
    neurons = NeuronSet(
        model=MODEL,
        cett="sum",
        tokens="answer",
        labels="1-vs-1",
        intercept=0,
        neurons=(Neuron(layer=0, index=3, weight=1, mean=0.5, scale=1),),
    )
    draws = np.array([[8], [9], [10], [11], [12], [13], [14], [15], [5]])
    components = np.arange(len(y)).astype(str)
    targets = [
        Target("carried", y == 1, components, features(y, 2)),
        Target("lost", y == 1, components, features(y, 0)),
        Target("one-sided", np.ones(len(y), dtype=bool), components, features(y, 0)),
        Target("one component", y == 1, np.where(y == 1, "a", components), features(y, 2)),
    ]
    rows = transfer("nf4", neurons, features(y, 2).values, y, draws, targets, seed=0)
    assert [row.scenario for row in rows] == ["carried", "lost"]
    carried, lost = rows
    assert carried.auroc.value > 0.95
    assert carried.difference.low > 0.2
    assert carried.p_labels < 0.01
    assert carried.p_draws == pytest.approx(2 / 10)  # none of nine reaches it, times two scenarios
    assert lost.auroc.low < 0.5 < lost.auroc.high
    assert lost.p_labels > 0.05
