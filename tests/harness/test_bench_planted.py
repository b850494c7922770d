"""Planted neurons are what they are said to be, and the benchmark measures what is found of them."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from numpy.testing import assert_array_equal
from scipy.stats import norm

import hq
from harness.bench import BENCHES
from harness.bench.planted import (
    BEGIN,
    CAP,
    DATA_FILE,
    END,
    NOISE,
    NOISES,
    PRECISIONS,
    SIZE,
    SIZES,
    TABLE_FILE,
    Measured,
    balanced,
    bench_planted,
    bench_rows,
    jobs,
    means,
    measure,
    silencing,
    tables,
    traced,
    write_planted,
)
from harness.bench.planted_model import (
    CUES,
    KINDS,
    SHARED,
    Kind,
    Planted,
    expected_auroc,
    greedy,
    planted_model,
    share_in,
)
from hq.backends.base import Backend
from hq.errors import HQError
from hq.probe.controls import matched_neurons
from hq.probe.identify import identify
from hq.stats.auroc import auroc

DOCS = Path(__file__).parents[2] / "docs"
LOW = 0.25  # noise


def in_memory(kind: Kind, noise: float = LOW, subjects: int = 1500) -> tuple[Planted, Backend]:
    planted = planted_model(kind, subjects, noise, seed=0)
    return planted, hq.wrap(planted.llama, model_identity=planted.identity).backend


def matched(planted: Planted, backend: Backend, neurons: np.ndarray) -> np.ndarray:
    """Neurons that read no cue, of the layer and the magnitude of others."""
    contributions = traced(backend, planted.ask(backend)[:300], "contribution").values
    return matched_neurons(
        neurons,
        contributions.mean(axis=0),
        planted.identity.space,
        draws=2,
        seed=0,
        exclude=planted.signal,
    )


@pytest.mark.parametrize("kind", ["causal", "bystanders", "twins"])
def test_silencing_the_causal_neurons_ends_wrong_answers_and_matched_ones_do_not(kind):
    planted, backend = in_memory(kind)
    ended = silencing(backend, planted)
    assert ended(planted.causal) > 0.99
    assert all(ended(draw) < 0.02 for draw in matched(planted, backend, planted.causal))
    others = np.setdiff1d(planted.signal, planted.causal)
    assert len(others) == (0 if kind == "causal" else CUES)
    assert len(others) == 0 or ended(others) < 0.02


def test_silencing_neurons_that_only_read_the_cues_ends_nothing():
    planted, backend = in_memory("correlates")
    assert len(planted.causal) == 0
    assert silencing(backend, planted)(planted.signal) < 0.02


@pytest.mark.parametrize("kind", KINDS)
def test_half_of_the_answers_are_wrong_and_the_kind_says_what_is_planted(kind):
    planted, backend = in_memory(kind)
    wrong = np.mean([question.hallucinated for question in planted.ask(backend)])
    assert 0.45 < wrong < 0.55
    sizes = {
        "causal": (12, 12),
        "bystanders": (12, 24),
        "twins": (12, 24),
        "correlates": (0, 12),
        "nothing": (0, 0),
    }
    assert (len(planted.causal), len(np.unique(planted.signal))) == sizes[kind]


@pytest.mark.parametrize("noise", [LOW, 2.0])
@pytest.mark.parametrize("kind", ["causal", "correlates"])
def test_a_planted_neuron_has_the_auroc_of_its_cue(kind, noise):
    """Within four standard errors; CETT loses some of it to the other neurons of the layer."""
    planted, backend = in_memory(kind, noise)
    questions = planted.ask(backend)
    y = np.array([q.hallucinated for q in questions], dtype=np.int64)
    contributions = traced(backend, questions, "contribution").values[:, planted.signal]
    cett = traced(backend, questions).values[:, planted.signal]
    one, every = expected_auroc(noise, 1), expected_auroc(noise)
    error = np.sqrt(1 / (12 * 1500 / 4)) / np.sqrt(2)  # of an AUROC of n/2 against n/2 scores
    areas = [auroc(column, y) for column in contributions.T]
    assert np.mean(areas) == pytest.approx(one, abs=4 * error)
    assert auroc(contributions.sum(axis=1), y) == pytest.approx(every, abs=4 * error)
    assert one - 0.05 < np.mean([auroc(column, y) for column in cett.T]) < one + 4 * error


def test_the_expected_auroc_is_that_of_normal_variables():
    rng = np.random.default_rng(0)
    n = 200_000
    cues = np.sqrt(SHARED) * rng.standard_normal((n, 1))
    cues = cues + np.sqrt(1 - SHARED) * rng.standard_normal((n, CUES))
    doubt = cues.sum(axis=1) / cues.sum(axis=1).std()
    label = (doubt > rng.standard_normal(n)).astype(np.int64)
    assert auroc(cues[:, 0], label) == pytest.approx(expected_auroc(1, 1), abs=0.005)
    assert auroc(cues.sum(axis=1), label) == pytest.approx(expected_auroc(1), abs=0.005)
    assert expected_auroc(0) == 1.0
    assert expected_auroc(1e6) == pytest.approx(0.5, abs=1e-5)


def test_for_weak_cues_the_expected_auroc_is_that_of_two_normal_classes():
    """Φ(d/√2), with the difference d of the class means of a cue, in its standard deviations."""
    noise = 30.0
    rho = 1 / np.sqrt(1 + noise**2)
    difference = 2 * rho * np.sqrt(2 / np.pi)
    assert expected_auroc(noise) == pytest.approx(norm.cdf(difference / np.sqrt(2)), abs=1e-4)


def test_rotated_weights_are_dense_and_the_checkpoint_is_the_model(tmp_path):
    planted, backend = in_memory("causal", subjects=300)
    down = planted.llama.model.layers[0].mlp.down_proj.weight
    assert (down != 0).float().mean() > 0.99
    planted.save(tmp_path)
    with hq.load(tmp_path, "fp16", device="cpu") as loaded:
        assert greedy(loaded.backend, planted.prompts) == greedy(backend, planted.prompts)


@pytest.fixture(scope="module")
def found() -> Iterator[dict[Kind, tuple[Planted, np.ndarray]]]:
    """The neurons that are identified on 600 answers at low noise."""
    selected = {}
    for kind in ("causal", "twins"):
        planted, backend = in_memory(kind, subjects=2500)
        samples = balanced(planted.ask(backend), 600, seed=0)
        features = traced(backend, samples.questions)
        neurons = identify(features, samples.y, groups=samples.groups, max_fraction=CAP)
        selected[kind] = planted, neurons.flat_positive
    return selected


def test_nearly_all_causal_neurons_are_found_at_low_noise(found):
    planted, selected = found["causal"]
    assert share_in(planted.causal, selected) >= 0.9
    assert share_in(selected, planted.causal) >= 0.9


def test_half_of_what_is_found_among_twins_is_causal(found):
    """Twins have equal CETT, so the solver selects both, or one of them at random."""
    planted, selected = found["twins"]
    assert share_in(selected, planted.signal) >= 0.9
    assert share_in(selected, planted.causal) == pytest.approx(0.5, abs=0.15)


def test_a_run_has_all_measures_and_nothing_planted_is_not_believed():
    rows = measure("nothing", 1.0, 1, (200,))
    assert [(row.precision, row.n) for row in rows] == [(name, 200) for name in PRECISIONS]
    assert all(row.low < 0.5 < row.high and row.believed == 0 for row in rows)
    assert all(np.isnan([row.recall, row.neuron, row.ended_causal]).all() for row in rows)
    assert all(row.causal == row.signal == 0 for row in rows)
    assert rows[0].ended == 0
    assert rows[0].jaccard == 1


def test_the_balance_needs_enough_answers():
    planted, backend = in_memory("nothing", subjects=200)
    with pytest.raises(HQError, match="200 questions have"):
        balanced(planted.ask(backend), 400, seed=0)


def row(kind: Kind, noise: float, n: int, precision: str, **values: float) -> Measured:
    fields = dict.fromkeys(Measured._fields[5:], np.nan) | values
    return Measured(kind, noise, n, precision, 1, **fields)


def test_means_are_over_the_runs_in_which_a_measure_is_defined():
    runs = [
        row("causal", 1.0, 200, "fp16", recall=0.5, causal=1.0),
        row("causal", 1.0, 200, "fp16", recall=1.0),
        row("causal", 1.0, 200, "nf4", recall=0.25),
    ]
    first, second = means(runs)
    assert (first.runs, first.recall, first.causal) == (2, 0.75, 1.0)
    assert np.isnan(first.auroc)
    assert (second.precision, second.runs, second.recall) == ("nf4", 1, 0.25)


def test_the_benchmark_compares_with_its_goals():
    rows = [
        row(kind, noise, SIZE, precision, **dict.fromkeys(Measured._fields[5:], 1.0))
        for kind in KINDS
        for noise in ((NOISE,) if kind == "nothing" else NOISES)
        for precision in PRECISIONS
    ]
    by_name = {r.name: r for r in bench_rows(rows)}
    assert by_name["recall"].ok
    assert by_name["precision"].ok
    assert by_name["ended_causal"].ok
    assert by_name["ended_correlates"].ok is False
    assert by_name["believed_with_nothing_planted"].ok is False
    assert "of 3 cross-fits" in by_name["believed_with_nothing_planted"].note
    assert BENCHES["planted"] is bench_planted


def test_the_tables_of_the_documentation_are_those_of_the_data():
    document = (DOCS / TABLE_FILE).read_text(encoding="utf-8")
    assert document.split(BEGIN)[1].split(END)[0].strip() == tables(DOCS).strip()
    data = pl.read_csv(DOCS / DATA_FILE)
    expected = {
        (kind, noise, n, precision)
        for kind, noise, _, sizes in jobs(1, SIZES)
        for n in sizes
        for precision in PRECISIONS
    }
    assert set(data.select("kind", "noise", "n", "precision").iter_rows()) == expected


def test_data_and_tables_are_written(tmp_path):
    rows = [row("causal", NOISE, SIZE, "fp16", selected=9.0, recall=0.7512, low=0.5, high=0.9)]
    (tmp_path / TABLE_FILE).write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n", encoding="utf-8")
    write_planted(tmp_path, rows)
    document = (tmp_path / TABLE_FILE).read_text(encoding="utf-8")
    assert document == f"before\n{BEGIN}\n{tables(tmp_path)}{END}\nafter\n"
    assert "| causal | 1 | 800 | 1 | 9.0 | 0.75 |" in document
    (values,) = pl.read_csv(tmp_path / DATA_FILE).iter_rows(named=True)
    assert values["recall"] == 0.7512
    assert values["causal"] is None
    assert_array_equal([values["kind"], values["precision"], values["runs"]], ["causal", "fp16", 1])
