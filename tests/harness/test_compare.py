"""Stage `compare` on traces made here: what its intervals resample, and what its rows say."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from harness.experiments.detect import compare
from harness.experiments.detect.compare import Comparison
from harness.stages.identify import THRESHOLD
from harness.stages.samples import Sample
from harness.stages.uncertainty import Uncertainty
from harness.studies.study import CompareSection
from harness.tables.schema import Row
from hq.errors import HQError
from hq.models.audit import AuditRow
from hq.neurons.neuron_set import ModelIdentity, Neuron, NeuronSet
from hq.stats.intervals import Estimate
from hq.tracing.traces import TraceInfo, Traces, exchanges_digest

D_FF, P = 40, 80
MODEL = ModelIdentity(name="m", fingerprint="f", architecture="llama", n_layers=2, d_ff=D_FF)
SECTION = CompareSection(draws=5, replicates=100)
AUDIT = (
    AuditRow("Linear", 30, "int8", 8.0, "float32", 3000),
    AuditRow("Linear", 90, "int8", 9.0, "float32", 1000),
)
SPLITS = ("train", "calibration", "test")
PROBE = NeuronSet(
    model=MODEL,
    cett="sum",
    tokens="answer",
    labels="1-vs-1",
    intercept=0.0,
    neurons=tuple(
        Neuron(layer=layer, index=index, weight=weight, mean=1.0, scale=1.0)
        for layer, index, weight in ((0, 3, 1.0), (0, 9, 0.5), (1, 5, -0.5))
    ),
    thresholds={THRESHOLD: 0.2},
)


def sample(number: int, split: str, copy: int) -> Sample:
    return Sample(
        id=f"{split}{number}.{copy}",
        relation=f"r{number // 2 % 2}",
        split=split,
        component=f"{split}{number:02d}",
        hallucinated=bool(number % 2),
        text="a" * (1 + number % 7),
        prompt_ids=(1,),
        response_ids=(2,) * (1 + number % 5),
    )


def comparison(folder: Path, copies: int, text_components: list[str] | None = None) -> Comparison:
    """20 entities a split; each has `copies` questions in the test split, all alike."""
    rng = np.random.default_rng(0)
    values = rng.lognormal(0, 0.5, (len(SPLITS) * 20, P)).astype(np.float32)
    values[1::2, [3, 9]] *= 1.5
    drifted = values * rng.lognormal(0, 0.3, values.shape).astype(np.float32)
    entropy, texts = rng.random(len(values)), rng.random((3, 12))
    repeats = np.repeat([1, 1, copies], 20)
    samples = [
        sample(number, split, copy)
        for split in SPLITS
        for number in range(20)
        for copy in range(copies if split == "test" else 1)
    ]
    digest = exchanges_digest([s.exchange for s in samples])

    def traces(name: str, array: np.ndarray) -> Traces:
        rows = np.repeat(array, repeats, axis=0).reshape(len(samples), 2, D_FF)
        where = folder / name
        where.mkdir(parents=True)
        for measure in ("sum", "contribution"):
            np.save(where / f"{measure}.answer.npy", rows)
        info = TraceInfo(
            model=MODEL,
            precision=name,
            compute="float32",
            n=len(samples),
            exchanges=digest,
            measures=("sum", "contribution"),
            spans=("answer",),
            dtype="float32",
            weight_bytes=1,
            audit=AUDIT,
        )
        return Traces(where, info)

    return Comparison(
        samples=samples,
        neurons=PROBE,
        reference=traces("fp16", values),
        variant=traces("nf4", drifted),
        reidentified=PROBE,
        uncertainty=Uncertainty(np.repeat(entropy, repeats), *texts[:2], 1 + texts[2], 1.0),
        section=SECTION,
        seed=0,
        text_components=text_components,
    )


def estimates(tables: dict[str, list[Row]]) -> dict[tuple[str, int, str], Estimate]:
    return {
        (table, i, name): value
        for table, rows in tables.items()
        for i, row in enumerate(rows)
        for name in type(row).model_fields
        if isinstance(value := getattr(row, name), Estimate)
    }


def test_questions_about_the_same_entity_narrow_no_interval(tmp_path):
    """Every test question copied three times within its entity: all intervals stay as they are."""
    once = comparison(tmp_path / "once", 1).tables()
    copied = comparison(tmp_path / "copied", 3).tables()
    expected, found = estimates(once), estimates(copied)
    assert found.keys() == expected.keys()
    for place, estimate in expected.items():
        near = pytest.approx((estimate.value, estimate.low, estimate.high), abs=1e-9)
        assert (found[place].value, found[place].low, found[place].high) == near, place
    for name in ("detection", "controls", "fidelity"):
        assert {(row.n, row.entities) for row in copied[name]} == {(60, 20)}


def test_texts_of_one_component_are_resampled_together(tmp_path):
    apart = comparison(tmp_path / "apart", 1).tables()["model"][0]
    together = comparison(tmp_path / "together", 1, [f"c{i // 6}" for i in range(12)])
    model = together.tables()["model"][0]
    assert (apart.n, apart.entities) == (12, 12)
    assert (model.n, model.entities) == (12, 2)
    assert model.perplexity.value == apart.perplexity.value
    assert model.kl.n == 2


def test_bits_are_a_mean_over_weights(tmp_path):
    assert comparison(tmp_path, 1).tables()["model"][0].bits_per_weight == pytest.approx(8.25)


def test_matched_neurons_are_drawn_as_many_as_the_probe_has(tmp_path):
    rows = {row.group: row for row in comparison(tmp_path, 1).fidelity()}
    assert [(r.group, r.neurons, r.draws) for r in rows.values()] == [
        ("probe", 3, 1),
        ("h_neurons", 2, 1),
        ("matched", 3, SECTION.draws),
        ("any", P, 1),
    ]
    assert rows["probe"].relative_error.n == 20
    assert rows["matched"].relative_error.n == SECTION.draws
    assert rows["probe"].magnitude == 1
    assert rows["matched"].magnitude == pytest.approx(1, abs=0.2)


def test_any_neurons_do_not_depend_on_the_probe(tmp_path):
    made = comparison(tmp_path, 1)
    other = PROBE.model_copy(update={"neurons": PROBE.neurons[1:]})
    for name in ("correlation", "relative_error", "rank_change"):
        values = {
            getattr(row, name)
            for probe in (PROBE, other)
            for row in replace(made, neurons=probe).fidelity()
            if row.group == "any"
        }
        assert len(values) == 1


def lacking(folder: Path, **lists: tuple[int, ...]) -> Comparison:
    """A comparison with a variant that lacks some neurons, which its traces hold as zero."""
    made = comparison(folder, 1)
    for measure in ("sum", "contribution"):
        path = made.variant.folder / f"{measure}.answer.npy"
        array = np.load(path)
        array.reshape(len(array), -1)[:, list(lists.get("missing", ()))] = 0
        np.save(path, array)
    info = made.variant.info.model_copy(update=lists)
    return replace(made, variant=Traces(made.variant.folder, info))


@pytest.fixture
def drawn(monkeypatch):
    """The neurons of each draw of controls, by the function that draws them."""
    sets = {"random_neurons": [], "matched_neurons": []}

    def recording(name):
        draw = getattr(compare, name)

        def recorded(*arguments, **options):
            neurons = draw(*arguments, **options)
            sets[name].append(set(neurons.ravel().tolist()))
            return neurons

        return recorded

    for name in sets:
        monkeypatch.setattr(compare, name, recording(name))
    return sets


def test_missing_neurons_are_in_no_row(tmp_path, drawn):
    """A neuron near in magnitude to the probe's is drawn, unless the variant lacks it."""
    whole = comparison(tmp_path / "whole", 1)
    whole.tables()
    missing = tuple(sorted(set.union(*drawn["matched_neurons"]))[:20])
    for sets in drawn.values():
        sets.clear()
    tables = lacking(tmp_path / "lacking", missing=missing, unmatched=missing).tables()
    for sets in drawn.values():
        assert not set(missing) & set.union(*sets)
    (everyone,) = (row for row in tables["fidelity"] if row.group == "any")
    assert everyone.neurons == P - len(missing)
    assert everyone.relative_error.value < 0.5  # that of a missing neuron is 1
    assert np.isfinite([e.value for e in estimates(tables).values()]).all()
    assert tables["detection"][0].auroc == whole.detection().auroc


@pytest.mark.parametrize("lists", ["missing", "unmatched"])
def test_a_probe_whose_neuron_is_not_found_is_refused(tmp_path, lists):
    lost = {"unmatched": (3,)} | {lists: (3,)}
    with pytest.raises(HQError, match=r"At nf4 1 of the set's 3 neurons .* \(0, 3\) first"):
        lacking(tmp_path, **lost)
