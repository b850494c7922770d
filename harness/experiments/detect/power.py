"""The smallest change of the AUROC that a study can show, before its tables exist.

With 80% power, a true change of (t_{0.975} + t_{0.8})·se is shown: its 95% interval excludes 0. If
the scores at a precision are finished, se is that of the table detection. Else it is expected to be
c ÷ √u for u effective units, and df = u − 1. c depends on how much a precision changes the scores
and on the number of samples per unit, so it is taken from a committed study of the same balance.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from harness.experiments.base import Power
from harness.experiments.detect.makings import over_makings
from harness.stages import pack
from harness.stages.graph import Graph
from harness.stages.identify import Rows
from harness.stages.materials import Materials
from harness.store.runner import Outputs
from harness.studies.study import REFERENCE, Balance
from hq.stats.intervals import Estimate, smallest_detectable

Basis = Literal["quota", "samples", "scores"]


class Reference(NamedTuple):
    """A committed study, in which c was measured."""

    study: str
    units_per_sample: float  # effective units
    c: float  # se·√u of the change of the AUROC at NF4


REFERENCES: dict[Balance, Reference] = {
    "answer": Reference("smollm2-facts", 0.0139, 0.035),
    "text": Reference("smollm2-knowledge", 0.137, 0.121),
}
"""Measured at NF4; `tests/harness/test_power.py` computes them from the committed tables."""


class DetectableChange(NamedTuple):
    """The smallest change of the AUROC from FP16 that is shown with 80% power."""

    precision: str
    change: float
    samples: int
    effective_units: float
    basis: Basis  # what is known: the quota, the finished samples, or their scores


def effective_units(units: Sequence[str]) -> float:
    """Return (Σ m)² ÷ Σ m² for units of m samples: as many units of equal size."""
    sizes = np.array([*Counter(units).values()])
    return float(sizes.sum() ** 2 / (sizes**2).sum())


def expected_change(c: float, units: float) -> float:
    """Return the smallest change that a study with this many effective units can show."""
    df = max(units - 1, 1.0)
    se = c / np.sqrt(units)
    unknown = Estimate(value=0, low=0, high=0, n=round(units), se=se, df=df)
    return smallest_detectable(unknown)


def detectable_changes(m: Materials, outputs: Outputs) -> list[DetectableChange]:
    """Return the smallest change at each precision, from the finished nodes of a study."""
    graph, sampling = Graph(m), m.study.sampling
    reference, others = REFERENCES[sampling.balance], m.study.precisions[1:]
    basis: Basis = "samples" if graph.samples in outputs else "quota"
    if basis == "samples":
        samples = graph.read_samples(outputs)
        n, units = len(samples), effective_units([sample.unit for sample in samples])
    else:
        asked = sum(prompted.part == "sample" for prompted in m.prompted)
        n = min(2 * sampling.quota, asked)
        units = n * reference.units_per_sample
    expected = expected_change(reference.c, units)
    changes = []
    for precision in others:
        measured = _measured(graph, outputs, precision)
        if measured is None:
            changes.append(DetectableChange(precision, expected, n, units, basis))
        else:
            changes.append(DetectableChange(precision, measured, n, units, "scores"))
    return changes


def _measured(graph: Graph, outputs: Outputs, precision: str) -> float | None:
    """Return the smallest change by the scores at a precision; None if they are not finished."""
    makings = pack.makings(graph.m, precision)
    traces = [graph.trace(precision, making) for making in makings]
    needed = (graph.identify(REFERENCE), graph.trace(REFERENCE), *traces)
    if any(node not in outputs for node in needed):
        return None
    rows, probes = Rows(graph.read_samples(outputs)), graph.read_probes(outputs, REFERENCE)
    cett, span = probes.neurons.cett, probes.neurons.tokens
    before, *after = (
        probes.scores(graph.read_traces(outputs, p, making).features(cett, span), rows.folds)
        for p, making in ((REFERENCE, 0), *((precision, making) for making in makings))
    )
    return smallest_detectable(over_makings(before, after, rows).decisive)


def power(m: Materials, outputs: Outputs) -> Power | None:
    """Return what `hq plan` shows; None for a study of the reference precision alone."""
    changes = detectable_changes(m, outputs)
    if not changes:
        return None
    return Power(_sentence(changes, REFERENCES[m.study.sampling.balance].study), changes)


def _sentence(changes: Sequence[DetectableChange], study: str) -> str:
    first = changes[0]
    measured = [change for change in changes if change.basis == "scores"]
    expected = [change for change in changes if change.basis != "scores"]
    at_most = "at most " if first.basis == "quota" else ""
    parts = [f"{change.precision} {change.change:.3f} (by its scores)" for change in measured]
    if expected:
        assumed = "the scores change as at nf4"
        if first.basis == "quota":
            assumed = f"samples have as many units and {assumed}"
        names = ", ".join(change.precision for change in expected)
        parts.append(f"{names} {expected[0].change:.3f} (if {assumed} in the study {study})")
    return (
        f"Smallest change of the AUROC from FP16 that {at_most}{first.samples:,} samples in "
        f"{first.effective_units:.0f} effective units show with 80% power: {', '.join(parts)}."
    )
