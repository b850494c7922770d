"""The rows of detect on small traces: folds, units, controls, text-only controls and draws."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from harness.experiments.detect import compare
from harness.experiments.detect.compare import MARGIN, Comparison
from harness.experiments.detect.design import design, text_scores
from harness.experiments.detect.experiment import DetectExperiment
from harness.experiments.detect.makings import FurtherMaking
from harness.experiments.detect.tables import TABLES, ControlRow
from harness.stages.identify import Rows
from harness.stages.samples import Sample
from harness.stages.uncertainty import Uncertainty
from harness.studies.study import CompareSection
from harness.tables.files import write_tables
from harness.tables.schema import Row
from hq.errors import HQError
from hq.models.audit import AuditRow
from hq.neurons.neuron_set import ModelIdentity, Neuron, NeuronSet
from hq.probe.cross_fit import CrossFit, FoldProbe
from hq.probe.identify import THRESHOLD
from hq.probe.text import TEXT_CONTROLS
from hq.stats.auroc import auroc
from hq.stats.equivalence import Equivalence
from hq.stats.intervals import Estimate, smallest_detectable
from hq.tracing.traces import TraceInfo, Traces, exchanges_digest

UNITS, FOLDS = 60, 3
D_FF, P = 40, 80
MODEL = ModelIdentity(name="m", fingerprint="f", architecture="llama", n_layers=2, d_ff=D_FF)
SECTION = CompareSection(draws=5)
AUDIT = (
    AuditRow("Linear", 30, "int8", 8.0, "float32", 3000),
    AuditRow("Linear", 90, "int8", 9.0, "float32", 1000),
)
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


def probes(shifts: tuple[float, ...] = (0.0, 0.0, 0.0), neurons: NeuronSet = PROBE) -> CrossFit:
    """The same probe in every fold, with a constant added to its scores and its threshold."""

    def shifted(by: float) -> NeuronSet:
        thresholds = {THRESHOLD: neurons.thresholds[THRESHOLD] + by}
        return neurons.model_copy(
            update={"intercept": neurons.intercept + by, "thresholds": thresholds}
        )

    folds = [
        FoldProbe(
            probe=shifted(by),
            calibration={other: shifted(by) for other in range(FOLDS) if other != fold},
        )
        for fold, by in enumerate(shifts)
    ]
    return CrossFit(neurons=neurons, folds=tuple(folds))


def sample(number: int, copy: int = 0) -> Sample:
    """A sample of a unit; every word of its question and its answer occurs once per label."""
    return Sample(
        id=f"{number}.{copy}",
        relation=f"r{number // 2 % 2}",
        question=f"Where is place{number // 2}?",
        text=f"In town{number // 2}",
        answer=f"in town{number // 2}",
        hallucinated=bool(number % 2),
        unit=f"u{number:02d}",
        fold=number // 2 % FOLDS,
        prompt_ids=(1,),
        response_ids=(2,) * (1 + number // 2 % 5),
    )


def comparison(
    folder: Path,
    copies: int = 1,
    text_components: list[str] | None = None,
    further: tuple[float, ...] = (),
) -> Comparison:
    """60 units with `copies` equal samples each; neurons 3 and 9 predict the label.

    `further` has the drift of each further making of the variant.
    """
    rng = np.random.default_rng(0)
    values = rng.lognormal(0, 0.5, (UNITS, P)).astype(np.float32)
    values[1::2, [3, 9]] *= 3**0.5
    values[0::2, [3, 9]] /= 3**0.5
    drifted = values * rng.lognormal(0, 0.3, values.shape).astype(np.float32)
    entropy, texts = rng.random(UNITS), rng.random((3, 12))
    samples = [sample(number, copy) for number in range(UNITS) for copy in range(copies)]
    digest = exchanges_digest([s.exchange for s in samples])

    def traces(name: str, array: np.ndarray) -> Traces:
        rows = np.repeat(array, copies, axis=0).reshape(len(samples), 2, D_FF)
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

    losses = Uncertainty(np.repeat(entropy, copies), *texts[:2], 1 + texts[2], 1.0)
    makings = [
        FurtherMaking(
            traces(f"nf4-{i}", values * other.lognormal(0, drift, values.shape).astype(np.float32)),
            losses._replace(nll=losses.nll + drift),
        )
        for i, drift in enumerate(further, start=1)
        if (other := np.random.default_rng((0, i)))
    ]
    return Comparison(
        samples=samples,
        probes=probes(),
        reference=traces("fp16", values),
        variant=traces("nf4", drifted),
        reidentified=probes(),
        uncertainty=losses,
        further=makings,
        section=SECTION,
        seed=0,
        text_components=text_components,
    )


def scores_of(made: Comparison) -> np.ndarray:
    """The decision values of PROBE at the variant."""
    return PROBE.score(made.variant.features("sum", "answer"))


def estimates(tables: dict[str, list[Row]]) -> dict[tuple[str, int, str], Estimate]:
    return {
        (table, i, name): value
        for table, rows in tables.items()
        for i, row in enumerate(rows)
        for name in type(row).model_fields
        if isinstance(value := getattr(row, name), Estimate)
    }


def test_an_auroc_compares_samples_of_one_fold(tmp_path):
    """Scores that are shifted in each fold: a pooled AUROC would be another."""
    made = comparison(tmp_path)
    shifted = replace(made, probes=probes((0.0, 3.0, -3.0)), reidentified=probes((5.0, 0.0, 9.0)))
    scores, rows = scores_of(made), Rows(made.samples)
    shifts = np.array([0.0, 3.0, -3.0])[rows.folds]
    folds = [rows.folds == fold for fold in range(FOLDS)]
    pairs = [(rows.y[f] == 0).sum() * (rows.y[f] == 1).sum() for f in folds]
    within = np.average([auroc(scores[f], rows.y[f]) for f in folds], weights=pairs)
    assert abs(auroc(scores + shifts, rows.y) - within) > 0.05
    for of in (made, shifted):
        found = of.detection()
        for area in (found.auroc, found.auroc_again):
            assert area.value == pytest.approx(within, abs=1e-12)
    # A threshold belongs to the probe of its fold, so decisions do not change either.
    before, after = made.detection(), shifted.detection()
    for name in ("auroc", "auroc_change", "auroc_h", "accuracy", "f1", "flips"):
        found, expected = getattr(after, name), getattr(before, name)
        assert found.model_dump() == pytest.approx(expected.model_dump(), abs=1e-9), name
    for one, other in zip(made.controls(), shifted.controls(), strict=True):
        difference, expected = one.probe_minus_control, other.probe_minus_control
        assert difference.model_dump() == pytest.approx(expected.model_dump(), abs=1e-9)


@pytest.fixture
def decisions(monkeypatch):
    """Decision values of the controls, in the order in which they are compared with the probe."""
    compared = []
    estimate_difference = compare.estimate_auroc_difference

    def recorded(a, b, *arguments):
        compared.append(np.array(b))
        return estimate_difference(a, b, *arguments)

    monkeypatch.setattr(compare, "estimate_auroc_difference", recorded)
    return compared


def test_controls_of_a_fold_do_not_depend_on_its_labels(tmp_path, decisions):
    made = comparison(tmp_path)
    flipped = replace(
        made,
        samples=[
            s.model_copy(update={"hallucinated": not s.hallucinated}) if s.fold == 0 else s
            for s in made.samples
        ],
    )
    names = [row.control for row in made.controls()]
    assert names == ["random", "matched", "length", "relation", "entropy", *TEXT_CONTROLS]
    before = decisions.copy()
    decisions.clear()
    flipped.controls()
    assert len(before) == len(decisions) >= len(names)
    held_out = Rows(made.samples).folds == 0
    for one, other in zip(before, decisions, strict=True):
        np.testing.assert_allclose(one[..., held_out], other[..., held_out], atol=1e-9)
    assert any(not np.allclose(a, b) for a, b in zip(before, decisions, strict=True))
    texts = [text_scores(of.samples) for of in (made, flipped)]
    for name in TEXT_CONTROLS:
        one, other = (of[name] for of in texts)
        np.testing.assert_allclose(one.out_of_fold[held_out], other.out_of_fold[held_out])
        np.testing.assert_allclose(one.calibration[0], other.calibration[0])
        assert np.isnan(one.calibration[0][held_out]).all()
        assert np.isfinite(one.calibration[0][~held_out]).all()


def control(made: Comparison, name: str) -> ControlRow:
    (row,) = (row for row in made.controls() if row.control == name)
    return row


def test_what_the_probe_adds_to_a_control(tmp_path):
    made = comparison(tmp_path)
    noise = control(made, "entropy")
    assert noise.probe_adds.value == pytest.approx(noise.probe_minus_control.value, abs=0.1)
    assert noise.probe_adds.low > 0.1
    # Nothing is added to a control that is the probe's own score.
    informed = replace(made, uncertainty=made.uncertainty._replace(entropy=scores_of(made)))
    own = control(informed, "entropy")
    assert own.auroc.value == pytest.approx(made.detection().auroc.value)
    assert own.probe_minus_control.value == pytest.approx(0, abs=1e-9)
    assert own.probe_adds.value == pytest.approx(0, abs=1e-9)
    for row in made.controls():
        assert (row.probe_adds is None) == (row.control in ("random", "matched")) == (row.draws > 1)


def leaking(samples: list[Sample]) -> list[Sample]:
    """The same samples with answers that begin with another word if they are hallucinated."""
    return [
        s.model_copy(update={"text": f"{'Probably' if s.hallucinated else 'Certainly'} {s.text}"})
        for s in samples
    ]


def test_matched_texts_are_at_chance_and_have_no_warning(tmp_path):
    made = comparison(tmp_path)
    row = design(made.samples, "answer", 7)
    assert row.warning == ""
    for name in ("answer", "question", "both", "spelling"):
        assert getattr(row, f"text_{name}").value == pytest.approx(0.5, abs=1e-9), name
        assert control(made, f"text-{name}").auroc == getattr(row, f"text_{name}")
    assert (row.balance, row.n, row.answers, row.relations) == ("answer", 60, 30, 2)
    assert (row.units, row.effective_units, row.largest_unit) == (60, 60, 1 / 60)
    assert (row.folds, row.seed) == (FOLDS, 7)


def test_a_design_whose_texts_tell_the_label_has_a_warning(tmp_path):
    made = comparison(tmp_path)
    leaks = replace(made, samples=leaking(made.samples))
    row = design(leaks.samples, "relation", 0)
    assert row.text_answer.value == row.text_both.value == 1
    assert row.text_question.value == pytest.approx(0.5, abs=1e-9)
    assert row.warning.startswith("text-answer 1.000 [")
    assert "text-both 1.000" in row.warning
    assert "text-question" not in row.warning
    probe = leaks.detection().auroc.value
    text = control(leaks, "text-answer")
    assert text.auroc == row.text_answer
    assert text.probe_minus_control.value == pytest.approx(probe - 1)


def test_units_of_different_sizes(tmp_path):
    samples = [s for s in comparison(tmp_path, 2).samples if s.id[-1] == "0" or s.unit < "u20"]
    row = design(samples, "answer", 0)
    assert (row.n, row.units) == (80, 60)
    assert row.effective_units == pytest.approx(80**2 / (20 * 4 + 40))
    assert row.largest_unit == pytest.approx(2 / 80)


@pytest.mark.parametrize("leaks", [False, True])
def test_the_warning_is_in_the_table_in_the_report_and_on_the_screen(tmp_path, leaks):
    made = comparison(tmp_path)
    if leaks:
        made = replace(made, samples=leaking(made.samples))
    experiment = DetectExperiment()
    tables = {name: [] for name in TABLES} | made.tables()
    tables["design"] = [design(made.samples, "answer", 0)]
    facts = {"kind": "detect", "study": "tiny", "fingerprint": "f"}
    write_tables(tmp_path / "run", experiment.tables, tables, facts)
    report = (tmp_path / "run" / "tables.md").read_text(encoding="utf-8")
    assert ("text-answer 1.000 [" in report) == leaks
    csv = (tmp_path / "run" / "design.csv").read_text(encoding="utf-8")
    assert ("text-answer 1.000 [" in csv) == leaks
    console = Console(width=80)
    with console.capture() as screen:
        console.print(experiment.summary(tables))
    shown = " ".join(screen.get().split())
    assert f"Text only: answer {1 if leaks else 0.5:.2f}, question 0.50" in shown
    assert ("Warning: the labels can be predicted from text alone" in shown) == leaks
    smallest = tables["detection"][0].detectable
    assert f"Smallest detectable change (80% power): nf4 {smallest:.3f}" in shown


def test_the_summary_fits_into_80_columns(tmp_path):
    made = comparison(tmp_path)
    tables = {name: [] for name in TABLES} | made.tables()
    tables["design"] = [design(made.samples, "answer", 0)]
    longest = {"precision": "gguf-q4_k_m+kv-q8_0"}
    for name in ("detection", "controls"):
        tables[name] = [row.model_copy(update=longest) for row in tables[name]]
    counts = {"common": 26, "neurons_again": 40}
    tables["detection"] = [row.model_copy(update=counts) for row in tables["detection"]]
    console = Console(width=80)
    with console.capture() as screen:
        console.print(DetectExperiment().summary(tables))
    assert "…" not in screen.get()
    assert "of 40" in screen.get()


def test_verdict_and_smallest_detectable_change(tmp_path):
    made = comparison(tmp_path)
    row = made.detection()
    assert row.detectable == smallest_detectable(row.auroc_change)
    assert row.detectable > row.auroc_change.value - row.auroc_change.low > MARGIN
    assert row.verdict == Equivalence.UNDECIDED
    same = replace(made, variant=made.reference).detection()
    assert (same.auroc_change.value, same.verdict) == (0, Equivalence.PRESERVED)
    assert same.detectable is None  # no score differs, so there is no spread
    for measure in ("sum", "contribution"):  # noise instead of the neurons that predict
        path = made.variant.folder / f"{measure}.answer.npy"
        values = np.load(path)
        values[1::2, 0, [3, 9]] /= 9
        np.save(path, values)
    broken = replace(made, variant=Traces(made.variant.folder, made.variant.info)).detection()
    assert broken.auroc_change.high < -MARGIN
    assert broken.verdict == Equivalence.CHANGED


def test_makings_decide_the_verdict_and_nothing_else(tmp_path):
    one = comparison(tmp_path / "one").tables()
    alone, several = one["detection"][0], comparison(tmp_path / "four", further=(0.3, 2.0, 4.0))
    tables = several.tables()
    assert (one["makings"], one["spread"]) == ([], [])
    (row,), (spread,), makings = tables["detection"], tables["spread"], tables["makings"]
    decided = {"verdict", "detectable"}
    assert row.model_dump(exclude=decided) == alone.model_dump(exclude=decided)
    others = set(tables) - {"detection", "makings", "spread"}
    assert {name: tables[name] for name in others} == {name: one[name] for name in others}
    assert [m.making for m in makings] == [0, 1, 2, 3]
    assert (makings[0].auroc, makings[0].auroc_change) == (row.auroc, row.auroc_change)
    for making in makings:
        assert making.auroc_change.value == pytest.approx(
            making.auroc.value - makings[0].auroc.value + row.auroc_change.value
        )
    assert makings[1].perplexity.value < makings[2].perplexity.value < makings[3].perplexity.value
    values = np.array([m.auroc_change.value for m in makings])
    assert spread.auroc_change.value == pytest.approx(values.mean())
    assert spread.deviation == pytest.approx(values.std(ddof=1))
    assert 0.5 < spread.share < 1
    assert row.detectable == smallest_detectable(spread.auroc_change) > alone.detectable
    assert makings[3].auroc_change.high < -MARGIN  # a single one of them would have decided
    assert row.verdict == Equivalence.UNDECIDED


def test_makings_that_agree_decide_as_one(tmp_path):
    made = comparison(tmp_path)
    same = FurtherMaking(made.reference, made.uncertainty)
    several = replace(made, variant=made.reference, further=[same, same]).tables()
    (row,), (spread,) = several["detection"], several["spread"]
    assert (row.verdict, row.detectable, spread.share) == (Equivalence.PRESERVED, None, None)
    assert (spread.auroc_change.value, spread.deviation) == (0, 0)


def test_a_further_making_of_other_token_ids_is_an_error(tmp_path):
    made, other = comparison(tmp_path / "a"), comparison(tmp_path / "b", copies=2)
    with pytest.raises(HQError, match="traces of other token ids"):
        replace(made, further=[FurtherMaking(other.variant, made.uncertainty)])


def test_more_samples_of_the_same_units_narrow_no_interval(tmp_path):
    """Every sample copied three times within its unit: all intervals stay as they are."""
    once = comparison(tmp_path / "once", 1).tables()
    copied = comparison(tmp_path / "copied", 3).tables()
    expected, found = estimates(once), estimates(copied)
    assert found.keys() == expected.keys()
    for place, of_one in expected.items():
        of_three = found[place]
        if place[0] != "controls":  # their fits see three times as many samples
            assert of_three.value == pytest.approx(of_one.value, abs=1e-9), place
            assert of_one.low - 0.03 < of_three.low <= of_one.low + 1e-9, place
            assert of_one.high - 1e-9 <= of_three.high < of_one.high + 0.03, place
    for name in ("detection", "controls", "fidelity"):
        assert {(row.n, row.units) for row in copied[name]} == {(180, 60)}


def test_texts_of_one_component_are_resampled_together(tmp_path):
    apart = comparison(tmp_path / "apart").tables()["model"][0]
    together = comparison(tmp_path / "together", 1, [f"c{i // 6}" for i in range(12)])
    model = together.tables()["model"][0]
    assert (apart.n, apart.units) == (12, 12)
    assert (model.n, model.units) == (12, 2)
    assert model.perplexity.value == apart.perplexity.value
    assert model.kl.n == 2


def test_bits_are_a_mean_over_weights(tmp_path):
    assert comparison(tmp_path).tables()["model"][0].bits_per_weight == pytest.approx(8.25)


def test_matched_neurons_are_drawn_as_many_as_the_probe_has(tmp_path):
    rows = {row.group: row for row in comparison(tmp_path).fidelity()}
    assert [(r.group, r.neurons, r.draws) for r in rows.values()] == [
        ("probe", 3, 1),
        ("h_neurons", 2, 1),
        ("matched", 3, SECTION.draws),
        ("any", P, 1),
    ]
    assert rows["probe"].relative_error.n == UNITS
    assert rows["matched"].relative_error.n == SECTION.draws
    assert rows["probe"].magnitude == 1
    assert rows["matched"].magnitude == pytest.approx(1, abs=0.2)


def test_any_neurons_do_not_depend_on_the_probe(tmp_path):
    made = comparison(tmp_path)
    other = PROBE.model_copy(update={"neurons": PROBE.neurons[1:]})
    for name in ("correlation", "relative_error", "rank_change"):
        values = {
            getattr(row, name)
            for probe in (PROBE, other)
            for row in replace(made, probes=probes(neurons=probe)).fidelity()
            if row.group == "any"
        }
        assert len(values) == 1


def lacking(folder: Path, **lists: tuple[int, ...]) -> Comparison:
    """A comparison with a variant that lacks some neurons, which its traces hold as zero."""
    made = comparison(folder)
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


def test_no_draw_holds_a_neuron_of_the_set_for_use(tmp_path, drawn):
    """Each fold's probe has one neuron of the set; the draws leave out all of them."""
    folds = [
        probes(neurons=PROBE.model_copy(update={"neurons": (PROBE.neurons[fold],)})).folds[fold]
        for fold in range(FOLDS)
    ]
    made = comparison(tmp_path)
    replace(made, probes=CrossFit(neurons=PROBE, folds=tuple(folds))).controls()
    for draws in drawn.values():
        assert len(draws) >= FOLDS
        assert len(set.union(*draws)) > 1
        assert not set.union(*draws) & set(PROBE.flat.tolist())


def test_missing_neurons_are_in_no_row(tmp_path, drawn):
    """A neuron near in magnitude to the probe's is drawn, unless the variant lacks it."""
    whole = comparison(tmp_path / "whole")
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
def test_a_probe_whose_neuron_is_missing_is_an_error(tmp_path, lists):
    lost = {"unmatched": (3,)} | {lists: (3,)}
    with pytest.raises(HQError, match=r"At nf4 1 of the set's 3 neurons .* \(0, 3\) first"):
        lacking(tmp_path, **lost)
