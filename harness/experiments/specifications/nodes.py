"""Specifications, and the nodes that compute them: fits, scores and agreement of halves."""

import json
from collections.abc import Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Int
from pydantic import BaseModel, ConfigDict

from harness.experiments.specifications import partitions
from harness.experiments.specifications.partitions import Partition, Placed
from harness.experiments.specifications.section import SpecificationsSection
from harness.stages import trace
from harness.stages.graph import Graph
from harness.stages.identify import Rows, require_same_tokens
from harness.stages.materials import Materials
from harness.stages.samples import read_samples
from harness.stages.select import SAMPLES_FILE, TOKENS_FILE
from harness.store.environment import FIT, machine_class
from harness.store.node import Node, Stage, Work
from harness.store.runner import Outputs
from harness.studies.study import REFERENCE, IdentifySection
from hq.errors import HQError
from hq.neurons.cett import Span
from hq.probe.rules import DEFAULT_RULE, RULES, FoldSets, cross_fit_by_rule, size_rule
from hq.probe.stability import frequency_agreement, split_half
from hq.stats.auroc import auroc_statistic, estimate_auroc, estimate_auroc_difference
from hq.stats.intervals import Estimate, Weights, estimate
from hq.storage.atomic import write_whole
from hq.tracing.traces import Traces

Cett = Literal["sum", "output"]
Labels = Literal["1-vs-1", "3-vs-1"]
MEASURES: tuple[Cett, ...] = ("sum", "output")
LABELS: tuple[Labels, ...] = ("1-vs-1", "3-vs-1")
_TOKENS: tuple[Span, ...] = ("answer", "prompt")
_SETS_FILE = "sets.json"
_ESTIMATES_FILE = "estimates.json"
_SCORES_FILE = "scores.npy"
_AGREEMENT_FILE = "agreement.json"


class Fit(NamedTuple):
    """Choices with a path of their own: features, labels, folds and samples."""

    cett: Cett
    tokens: Span
    labels: Labels
    partition: Partition

    def __str__(self) -> str:
        return f"{self.cett} {self.tokens} {self.labels} {self.partition}"


class Specification(NamedTuple):
    """One combination of choices."""

    fit: Fit
    rule: str  # which solution along the path

    @property
    def choices(self) -> dict[str, str]:
        """The level of each choice, by the column of the table."""
        fit, (folds, samples) = self.fit, self.fit.partition
        features = {"cett": str(fit.cett), "tokens": str(fit.tokens), "labels": str(fit.labels)}
        return {**features, "rule": self.rule, "folds": folds, "samples": samples}

    def changes(self, other: "Specification") -> int:
        """Return the number of choices that differ."""
        others = other.choices
        return sum(level != others[choice] for choice, level in self.choices.items())


class EstimatedSpecification(NamedTuple):
    """Estimates of a specification at a precision."""

    auroc: Estimate
    change: Estimate | None  # from FP16; None at FP16
    difference: Estimate  # from the default specification on the same samples


class FittedSets(BaseModel):
    """The sets of one fit by rule, or the reason why there are none."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sets: dict[str, FoldSets]
    reason: str = ""


class Agreement(NamedTuple):
    """Agreement of halves over splits: values by the name of the measure."""

    splits: dict[str, list[float]]  # fields of hq.probe.stability.SplitHalf
    frequencies: list[float]  # Spearman's correlation of selection frequencies


class SpecificationNodes:
    """Declares the nodes of the experiment, and reads their outputs once they are finished."""

    def __init__(self, m: Materials) -> None:
        self.m = m
        self.graph = Graph(m)
        values = m.study.sections.get("specifications", {})
        self.section = SpecificationsSection.of(values, "the section [specifications]")
        self._partitions = partitions.node(m, self.section, self.graph.samples)

    @property
    def rules(self) -> list[str]:
        """The rules that decide how many neurons a set has."""
        return [*RULES, *(size_rule(size) for size in self.section.sizes)]

    @property
    def fits(self) -> list[Fit]:
        """The study's own choices first, then all features and labels, other folds, and halves.

        Other folds and halves are combined with the study's own features and labels only.
        """
        section = self.m.study.identify
        own = Fit(section.cett, section.tokens, section.labels, Partition())
        spans = dict.fromkeys((section.tokens, *_TOKENS))
        features = [
            Fit(cett, tokens, labels, Partition())
            for cett, tokens, labels in product(MEASURES, spans, LABELS)
            if _is_valid(section, cett, tokens, labels)
        ]
        others = [own._replace(partition=p) for p in partitions.partitions(self.section)]
        return list(dict.fromkeys((own, *features, *others)))

    @property
    def specifications(self) -> list[Specification]:
        """Every fit with every rule; the study's own specification is the first."""
        return [Specification(fit, rule) for fit in self.fits for rule in self.rules]

    def trace(self, precision: str) -> Node:
        """Declare the traces of both measures; at the reference, also of the other tokens."""
        spans = tuple(dict.fromkeys(fit.tokens for fit in self.fits))
        if precision == REFERENCE:
            spans = tuple(dict.fromkeys((*spans, "other")))
        tokens, n = self.graph.samples.output(TOKENS_FILE), self.graph.trace(precision).units
        about = " ".join(filter(None, (self.m.scope, "both measures")))
        return trace.node(self.m, precision, tokens, n, MEASURES, spans, about)

    def fit(self, fit: Fit) -> Node:
        """Declare the sets of one fit, with every rule."""
        study, traces = self.m.study, self.trace(REFERENCE)
        identify = study.identify.model_dump(include={"folds", "repeats", "max_fraction"})
        return Node(
            FIT_STAGE,
            {
                "machine": machine_class(),
                "fit": [fit.cett, fit.tokens, fit.labels, list(fit.partition)],
                "sizes": list(self.section.sizes),
                "identify": identify,
                "seed": study.seed + fit.partition.seed,
                "own": fit == self.fits[0],
            },
            {
                "traces": traces.output(),
                "samples": self.graph.samples.output(SAMPLES_FILE),
                "partitions": self._partitions.output(),
            },
            about=str(fit),
            unit="fits",
            memory=traces.disk,  # 3-vs-1: two copies of two of the six arrays, and a block of them
        )

    def estimates(self, precision: str) -> Node:
        """Declare the out-of-fold scores of every specification at a precision, with estimates."""
        inputs = {
            "traces": self.trace(precision).output(),
            "samples": self.graph.samples.output(SAMPLES_FILE),
            "partitions": self._partitions.output(),
            **{str(fit): self.fit(fit).output() for fit in self.fits},
        }
        if precision != REFERENCE:
            inputs["reference"] = self.estimates(REFERENCE).output(_SCORES_FILE)
        parameters = {
            "machine": machine_class(),
            "specifications": [[str(s.fit), s.rule] for s in self.specifications],
        }
        traces = self.trace(precision)
        return Node(
            ESTIMATES_STAGE,
            parameters,
            inputs,
            about=precision,
            units=len(self.specifications),
            unit="specifications",
            memory=traces.disk // 2,
        )

    def agreement(self) -> Node:
        """Declare the agreement of probes on complementary halves, with the study's choices."""
        fit, section = self.fits[0], self.section
        traces = self.trace(REFERENCE)
        return Node(
            AGREEMENT_STAGE,
            {
                "machine": machine_class(),
                "fit": [fit.cett, fit.tokens, fit.labels],
                "splits": section.splits,
                "frequency_splits": section.frequency_splits,
                "seed": self.m.study.seed,
            },
            {
                "traces": traces.output(),
                "samples": self.graph.samples.output(SAMPLES_FILE),
                "sets": self.fit(fit).output(),
            },
            units=section.splits + section.frequency_splits,
            unit="splits",
            memory=traces.disk,
        )

    def read_sets(self, outputs: Outputs) -> dict[Specification, FoldSets]:
        """Return the sets of every specification that could be fitted."""
        fitted = {fit: _read_sets(outputs[self.fit(fit)]).sets for fit in self.fits}
        return {s: fitted[s.fit][s.rule] for s in self.specifications if fitted[s.fit]}

    def read_failures(self, outputs: Outputs) -> dict[Fit, str]:
        """Return the fits without sets, each with the reason."""
        reasons = {fit: _read_sets(outputs[self.fit(fit)]).reason for fit in self.fits}
        return {fit: reason for fit, reason in reasons.items() if reason}

    def read_partitions(self, outputs: Outputs) -> dict[Partition, Placed]:
        """Return the partitions of the samples."""
        return partitions.read(outputs[self._partitions])

    def read_estimates(
        self, outputs: Outputs, precision: str
    ) -> dict[Specification, EstimatedSpecification]:
        """Return the estimates of every specification that could be fitted, at a precision."""
        text = (outputs[self.estimates(precision)] / _ESTIMATES_FILE).read_text(encoding="utf-8")
        return {
            s: EstimatedSpecification(
                Estimate.model_validate(row[0]),
                None if row[1] is None else Estimate.model_validate(row[1]),
                Estimate.model_validate(row[2]),
            )
            for s, row in zip(self.specifications, json.loads(text), strict=True)
            if row is not None
        }

    def read_scores(
        self, outputs: Outputs, precision: str
    ) -> dict[Specification, Float[np.ndarray, " n"]]:
        """Return the scores of every sample; NaN for samples that are not in the partition."""
        scores = np.load(outputs[self.estimates(precision)] / _SCORES_FILE)
        return dict(zip(self.specifications, scores, strict=True))

    def read_agreement(self, outputs: Outputs) -> Agreement:
        """Return the agreement of halves."""
        path = outputs[self.agreement()] / _AGREEMENT_FILE
        return Agreement(**json.loads(path.read_text(encoding="utf-8")))


def _is_valid(section: IdentifySection, cett: Cett, tokens: Span, labels: Labels) -> bool:
    """Whether a study may have this section."""
    values = section.model_dump() | {"cett": cett, "tokens": tokens, "labels": labels}
    try:
        IdentifySection.of(values, "a specification")
    except HQError:
        return False
    return True


def _make_fit(work: Work[Materials]) -> None:
    """Write the sets of one fit, with every rule."""
    cett, tokens, labels, name = work.parameters["fit"]
    identify, sizes = work.parameters["identify"], work.parameters["sizes"]
    samples, traces = _samples_and_traces(work)
    placed = partitions.read(work.inputs["partitions"])[Partition(*name)]
    rows = placed.rows
    of_samples = Rows([samples[row] for row in rows.tolist()])
    features = traces.features(cett, tokens)[rows]
    with work.task(identify["folds"] + 2, "fits") as task:
        fitted = partial(
            cross_fit_by_rule,
            features,
            of_samples.y,
            of_samples.units,
            placed.fold[rows],
            sizes,
            repeats=identify["repeats"],
            max_fraction=identify["max_fraction"],
            seed=work.parameters["seed"],
            other=traces.features(cett, "other")[rows] if labels == "3-vs-1" else None,
            finished=lambda: task.advance(1),
        )
        try:
            sets, reason = fitted(), ""
        except HQError as error:  # a result: with these choices, the study would not have a probe
            sets, reason = {}, str(error)
    write_whole(work.folder / _SETS_FILE, FittedSets(sets=sets, reason=reason).model_dump_json())


def _make_estimates(work: Work[Materials]) -> None:
    """Write the scores of every specification, and its AUROC and differences with intervals."""
    names = [(fit, rule) for fit, rule in work.parameters["specifications"]]
    samples, traces = _samples_and_traces(work)
    sets = {fit: _read_sets(work.inputs[fit]).sets for fit, _ in names}
    placed = {str(p): one for p, one in partitions.read(work.inputs["partitions"]).items()}
    folds = {fit: placed[fit.split(" ", 3)[3]].fold for fit in sets}
    scores = np.full((len(names), len(samples)), np.nan)
    features_of = {fit: tuple(fit.split(" ")[:2]) for fit in sets}
    for cett, tokens in dict.fromkeys(features_of.values()):
        # In memory: each set reads some columns of all rows.
        features = traces.features(cett, tokens)[np.arange(len(samples))]
        for i, (fit, rule) in enumerate(names):
            if features_of[fit] == (cett, tokens) and rule in sets[fit]:
                scores[i] = sets[fit][rule].scores(features, folds[fit])
    reference = work.inputs.get("reference")
    before = None if reference is None else np.load(reference / _SCORES_FILE)
    rows, own = Rows(samples), (scores[0], folds[names[0][0]])
    written: list[list[dict[str, Any] | None] | None] = []
    with work.task(len(names), "specifications") as task:
        for i, (fit, _) in enumerate(names):
            if np.isnan(scores[i]).all():  # the fit failed
                written.append(None)
                continue
            earlier = None if before is None else before[i]
            row = estimated(rows, (scores[i], folds[fit]), own, earlier)
            written.append([None if one is None else one.model_dump() for one in row])
            task.advance(1)
    np.save(work.folder / _SCORES_FILE, scores)
    write_whole(work.folder / _ESTIMATES_FILE, json.dumps(written) + "\n")


def estimated(
    rows: Rows,
    scored: tuple[Float[np.ndarray, " n"], Int[np.ndarray, " n"]],
    own: tuple[Float[np.ndarray, " n"], Int[np.ndarray, " n"]],
    reference: Float[np.ndarray, " n"] | None,
) -> EstimatedSpecification:
    """Return the estimates of a specification on the samples that it scores.

    Args:
        rows: Labels and units of all samples.
        scored: Scores of the specification, NaN for samples that it does not score, and folds.
        own: Scores and folds of the study's own specification.
        reference: Scores of the specification at FP16; None at FP16.
    """
    inside = np.flatnonzero(~np.isnan(scored[0]))
    y, units = rows.y[inside], rows.units[inside]
    now, fold = scored[0][inside], scored[1][inside]
    change = None
    if reference is not None:
        change = estimate_auroc_difference(now, reference[inside], y, units, fold)
    difference = _difference((now, fold), (own[0][inside], own[1][inside]), y, units)
    return EstimatedSpecification(estimate_auroc(now, y, units, fold), change, difference)


def _difference(
    a: tuple[np.ndarray, np.ndarray], b: tuple[np.ndarray, np.ndarray], y: np.ndarray, units: Any
) -> Estimate:
    """AUROC of scores a minus that of b, each within its own folds, paired by units."""
    first, second = (auroc_statistic(scores, y, folds) for scores, folds in (a, b))

    def difference(weights: Weights) -> Float[np.ndarray, " weightings"]:
        return first(weights) - second(weights)

    return estimate(difference, len(y), units, "difference of AUROCs")


def _make_agreement(work: Work[Materials]) -> None:
    """Write the agreement of probes on complementary halves."""
    cett, tokens, labels = work.parameters["fit"]
    samples, traces = _samples_and_traces(work)
    rows = Rows(samples)
    neurons = _read_sets(work.inputs["sets"]).sets[DEFAULT_RULE].neurons
    seed, splits = work.parameters["seed"], work.parameters["splits"]
    of_frequencies = work.parameters["frequency_splits"]
    features = traces.features(cett, tokens)
    other = traces.features(cett, "other") if labels == "3-vs-1" else None
    C = float(neurons.provenance["C"])
    with work.task(splits + of_frequencies, "splits") as task:
        halves = split_half(
            features,
            rows.y,
            rows.units,
            rows.folds,
            C,
            splits=splits,
            seed=seed,
            other=other,
            finished=lambda: task.advance(1),
        )
        frequencies = frequency_agreement(
            features,
            rows.y,
            rows.units,
            C,
            splits=of_frequencies,
            seed=seed,
            other=other,
            finished=lambda: task.advance(1),
        )
    values = {name: np.asarray(v).tolist() for name, v in vars(halves).items()}
    agreement = Agreement(values, frequencies.tolist())
    write_whole(work.folder / _AGREEMENT_FILE, json.dumps(agreement._asdict()) + "\n")


def _samples_and_traces(work: Work[Materials]) -> tuple[Sequence[Any], Traces]:
    samples = read_samples(work.inputs["samples"] / SAMPLES_FILE)
    traces = Traces.open(work.inputs["traces"])
    require_same_tokens(traces, samples)
    return samples, traces


def _read_sets(folder: Path) -> FittedSets:
    return FittedSets.model_validate_json((folder / _SETS_FILE).read_text(encoding="utf-8"))


def _verify_own(node: Node, folder: Path) -> None:
    """Raises HQError if the study's own choices have no probe."""
    reason = _read_sets(folder).reason
    if reason and node.parameters["own"]:
        raise HQError(reason)


FIT_STAGE = Stage("specification-fit", _make_fit, version=2, packages=FIT, verify=_verify_own)
ESTIMATES_STAGE = Stage("specification-estimates", _make_estimates, packages=FIT)
AGREEMENT_STAGE = Stage("specification-agreement", _make_agreement, packages=FIT)
