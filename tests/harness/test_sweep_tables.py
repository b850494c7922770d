"""Rates, slopes and transfer from outcomes that are known, the trials, and the picture."""

from dataclasses import replace

import numpy as np
import pytest

from harness.experiments.sweep.rates import JudgedSweep, Swept, rates, slope
from harness.experiments.sweep.tables import TABLES
from harness.experiments.sweep.transfer import Target, transfer
from harness.experiments.sweep.trials import near_the_decision, unrelated
from harness.judges.base import Question
from harness.report.picture import draw
from harness.scenarios.base import Trial, TrialOutcome
from harness.tables.files import frame_of
from hq.errors import HQError
from hq.neurons.features import Features
from hq.neurons.neuron_set import ModelIdentity, Neuron, NeuronSet
from hq.stats.intervals import smallest_detectable

ALPHAS, CONTROLS, N = (0.0, 1.0, 2.0), (0.0, 1.0, 2.0), 40


def judged(complied):
    """Outcomes of a bool array [..., alpha, trial]."""
    complied = np.asarray(complied)
    outcomes = np.where(complied, TrialOutcome.COMPLIED, TrialOutcome.RESISTED).astype(object)
    nothing = np.zeros(complied.shape, dtype=bool)
    changed = complied != np.take(complied, [1], axis=-2)
    return JudgedSweep(outcomes, nothing, changed, np.full(complied.shape, 5.0))


def swept(shares, control_shares, precision="nf4", scenario="falseqa"):
    """So many of the trials comply at each α: the first ones, so that α's are nested."""
    order = np.arange(N) / N
    return Swept(
        precision=precision,
        scenario=scenario,
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


def test_a_slope_has_what_it_could_show_and_its_excess_over_the_draws():
    draws = [[0.5, 0.5, 0.5 + 0.05 * (i % 2)] for i in range(20)]
    reference = swept((0.25, 0.5, 0.75), draws, "fp16")
    row = slope(reference, reference, margin=0.05)
    assert row.mixed == 30
    assert row.detectable == pytest.approx(smallest_detectable(row.slope))
    assert row.excess.value == pytest.approx(row.slope_shared - row.slope_matched.value)
    assert row.excess.low > 0
    assert row.excess_detectable == pytest.approx(smallest_detectable(row.excess))
    assert row.p_matched == pytest.approx(1 / 21)
    assert row.change_detectable is None  # it is the reference
    other = slope(swept((0.3, 0.5, 0.7), draws), reference, margin=0.05)
    assert other.change_detectable == pytest.approx(smallest_detectable(other.change))


def test_a_slope_that_nothing_shows_detects_nothing():
    flat = swept((0.5, 0.5, 0.5), FLAT, "fp16")
    row = slope(flat, flat, margin=0.05)
    assert (row.detectable, row.excess_detectable, row.shape) == (None, None, "linear")


@pytest.mark.parametrize(
    ("shares", "shape"),
    [
        ((0.25, 0.5, 0.75), "linear"),
        ((0.1, 0.9, 0.95), "curved"),
        ((0.3, 0.9, 0.1), "not monotone: see the curve"),
    ],
)
def test_the_shape_of_a_curve(shares, shape):
    curve = swept(shares, FLAT, "fp16")
    assert slope(curve, curve, margin=0.05).shape == shape


def test_trials_near_the_decision_come_first_and_relatives_of_samples_are_left_out():
    def trial(number, entity):
        return Trial(f"t{number}", f"ask {number}", (entity,), question=f"q{number}")

    trials = [trial(0, "a"), trial(1, "b"), trial(2, "c"), trial(3, "d"), trial(4, "d")]
    sample = Question("q9", "another wording", ("x",), "r", ("a", "e"))
    same_words = Question("q8", "ask 1", ("x",), "r", ("f",))
    kept = unrelated("s", trials, [sample, replace(same_words, question="\nask 1")])
    assert [t.id for t in kept] == ["t2", "t3", "t4"]
    assert [t.id for t in near_the_decision(kept, {"q3", "q4"})] == ["t3", "t4", "t2"]
    with pytest.raises(HQError, match="All 1 trials of 's' share"):
        unrelated("s", trials[:1], [sample])


def test_a_sweep_is_drawn_as_a_panel_per_scenario_and_precision(tmp_path):
    pytest.importorskip("altair")
    hump, line = (0.3, 0.9, 0.1), (0.25, 0.5, 0.75)
    every = [
        swept(shares, FLAT, precision, scenario)
        for precision in ("fp16", "nf4")
        for scenario, shares in (("facts", line), ("sycophancy:pushback", hump))
    ]
    rows = {
        "rates": [row for one in every for row in rates(one)],
        "slopes": [slope(one, one, 0.05) for one in every],
    }
    for name, of_table in rows.items():
        frame_of(TABLES[name][0], of_table).write_csv(tmp_path / f"{name}.csv")
    draw(tmp_path, tmp_path / "curves.svg")
    picture = (tmp_path / "curves.svg").read_text(encoding="utf-8")
    for words in ("fp16", "nf4", "facts", "sycophancy:pushback", "H-Neurons", "matched neurons"):
        assert f">{words}</text>" in picture
    assert picture.count(">not monotone</text>") == 2
    with pytest.raises(HQError, match=r"has no detection\.csv or rates\.csv"):
        draw(tmp_path / "nowhere", tmp_path / "none.svg")


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
