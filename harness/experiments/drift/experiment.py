"""Experiment drift: the verdicts of `hq drift` at each precision, and repair without labels."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Table

from harness.experiments.base import Experiment, estimate_cell
from harness.experiments.drift.repair import RepairAnalysis
from harness.experiments.drift.tables import TABLES, DriftRow, RepairRow
from harness.stages import mapping
from harness.stages.alarms import Scores, domain_of, require_calibration
from harness.stages.drift import answers_at, paired_reference
from harness.stages.graph import Graph
from harness.stages.identify import NEURONS_FILE, Rows
from harness.stages.materials import Materials
from harness.stages.samples import Sample, require_origin
from harness.store.node import Node
from harness.store.runner import Outputs
from harness.studies.study import REFERENCE, Study
from harness.tables.schema import Row
from hq.errors import HQError
from hq.monitor.drift import (
    Margins,
    MonitorReference,
    measure_drift,
    verdict_without_labels,
)
from hq.neurons.features import Features
from hq.probe.cross_fit import CrossFit
from hq.stats.intervals import smallest_detectable

PROMISED = 0.1
"""False-alarm rate that the threshold promises."""


class DriftExperiment(Experiment):
    """The FP16 probe at each other precision: drift, and what repairs without labels restore."""

    name = "drift"
    measures = "drift of the FP16 probe and threshold at each precision, and repair without labels"
    tables = TABLES
    committed = (NEURONS_FILE,)

    def check(self, m: Materials) -> None:
        """Raises HQError if there is no precision besides the reference."""
        if not _others(m.study):
            raise HQError(
                f"Drift is measured from {REFERENCE} to other precisions: give one or more, as "
                f"--precisions {REFERENCE},nf4."
            )

    def nodes(self, m: Materials) -> Sequence[Node]:
        """Declare the map, traces and neurons of every precision."""
        graph = Graph(m)
        return [
            *(mapping.node(m, p) for p in _others(m.study)),
            *(graph.identify(p) for p in m.study.precisions),
        ]

    def rows(self, m: Materials, outputs: Outputs) -> dict[str, list[Row]]:
        """Return the rows of both tables."""
        graph = Graph(m)
        samples = graph.read_samples(outputs)
        probes, known = (
            graph.read_probes(outputs, REFERENCE),
            graph.read_traces(outputs, REFERENCE),
        )
        require_origin(probes.neurons, samples, known)
        analysis = DriftAnalysis(
            samples,
            probes,
            known.features(probes.neurons.cett, probes.neurons.tokens),
            m.study.seed,
        )
        tables: dict[str, list[Row]] = {name: [] for name in self.tables}
        for precision in _others(m.study):
            mapping.require(outputs[mapping.node(m, precision)], precision, probes.neurons)
            traces = graph.read_traces(outputs, precision)
            variant = traces.features(probes.neurons.cett, probes.neurons.tokens)
            again = graph.read_probes(outputs, precision)
            for name, rows in analysis.tables(variant, again).items():
                tables[name] += rows
        return tables

    def write(self, folder: Path, m: Materials, outputs: Outputs) -> None:
        """Write the neurons of the reference."""
        shutil.copyfile(Graph(m).neurons_file(outputs), folder / NEURONS_FILE)

    def definition(self, study: Study) -> dict[str, Any]:
        """Return the promised rate and the margins of the verdicts."""
        return {"drift": {"promised": PROMISED, **vars(Margins())}}

    def summary(self, tables: Mapping[str, Sequence[Any]]) -> Group:
        """Return verdicts, and what each repair restores with all texts."""
        return Group(_drift_table(tables["drift"]), _repair_table(tables["repair"]))


class DriftAnalysis:
    """The probes of the reference, whose drift is measured at other precisions."""

    def __init__(
        self, samples: Sequence[Sample], probes: CrossFit, reference: Features, seed: int
    ) -> None:
        self.samples, self.probes, self.reference, self.seed = samples, probes, reference, seed
        self.sample_rows = Rows(samples)
        require_calibration(samples, self.sample_rows, PROMISED)
        self.before = Scores.of(probes, reference, self.sample_rows)
        self.known: MonitorReference = paired_reference(
            samples, self.sample_rows, self.before, PROMISED
        )

    def tables(self, variant: Features, again: CrossFit) -> dict[str, list[Row]]:
        """Return the rows of a precision; `again` are the probes that were identified there."""
        rows = self.sample_rows
        after, identified = (Scores.of(probes, variant, rows) for probes in (self.probes, again))
        repair = RepairAnalysis(
            samples=self.samples,
            rows=rows,
            probes=self.probes,
            reference=self.reference,
            variant=variant,
            before=self.before,
            after=after,
            again=identified,
            promised=PROMISED,
            seed=self.seed,
        )
        return {"drift": [self._drift(variant.precision, after)], "repair": [*repair.table()]}

    def _drift(self, precision: str, after: Scores) -> DriftRow:
        rows, known = self.sample_rows, self.known
        new = answers_at(self.samples, rows, self.before, after, PROMISED)
        drift = measure_drift(known, new, Margins(), self.seed)
        shift, change = drift.shift, drift.auroc_change
        # The reference has answers with labels and units, so nothing is unknown.
        assert known.answers is not None
        assert drift.auroc is not None
        assert change is not None
        assert drift.false_alarms is not None
        assert drift.calibration_error is not None
        assert drift.calibration_error_reference is not None
        assert drift.calibration_slope is not None
        assert shift.psi_p is not None
        assert shift.ks_p is not None
        domain = domain_of(self.samples, rows)
        return DriftRow(
            precision=precision,
            n=drift.n,
            units=drift.units,
            auroc=drift.auroc,
            auroc_change=change.difference,
            detectable=smallest_detectable(change.difference),
            false_alarms_fp16=domain.rate(domain.right, known.answers.flags),
            false_alarms=drift.false_alarms,
            promised=PROMISED,
            flagged_fp16=drift.flagged_reference.value,
            flagged=drift.flagged,
            flagged_change=drift.flagged_change.difference,
            psi=shift.psi,
            psi_p=shift.psi_p,
            ks=shift.ks,
            ks_p=shift.ks_p,
            calibration_error_fp16=drift.calibration_error_reference,
            calibration_error=drift.calibration_error,
            calibration_slope=drift.calibration_slope,
            verdict=drift.verdict.value,
            more=drift.more,
            without_labels=verdict_without_labels(drift.flagged_change)[0].value,
        )


def _drift_table(rows: Sequence[DriftRow]) -> Table:
    table = Table(
        title=f"The FP16 probe at other precisions; 95% intervals over {rows[0].units} units.\n"
        f"Its threshold promises a false-alarm rate of {rows[0].promised:g}.",
        box=SIMPLE_HEAD,
        padding=(0, 1),
    )
    for column in ("precision", "change\nof AUROC", "false\nalarms", "PSI", "verdict"):
        table.add_column(column, overflow="fold")
    for row in rows:
        alone = (
            "" if row.without_labels == row.verdict else f"\n[dim]no labels: {row.without_labels}"
        )
        table.add_row(
            row.precision,
            estimate_cell(row.auroc_change, signed=True),
            estimate_cell(row.false_alarms),
            f"{row.psi:.3f}",
            row.verdict + alone,
        )
    return table


def _repair_table(rows: Sequence[RepairRow]) -> Table:
    table = Table(
        title="Gains of AUROC by repair on all texts of other folds, or by\n"
        "identification with labels. False alarms: threshold set at FP16, and at\n"
        "the same quantile of the scores of the texts.",
        box=SIMPLE_HEAD,
        padding=(0, 1),
    )
    gains = ("standardised", "reweighted", "labels")
    for column in ("precision", *gains, "set at\nFP16", "same\nquantile"):
        table.add_column(column, overflow="fold")
    most = max(row.texts for row in rows)
    by_key = {(row.precision, row.method): row for row in rows if row.texts == most}
    for precision in dict.fromkeys(row.precision for row in rows):
        frozen = by_key[precision, "none"]
        matched = frozen.false_alarms_matched
        table.add_row(
            precision,
            *(estimate_cell(by_key[precision, gain].gain, signed=True) for gain in gains),
            estimate_cell(frozen.false_alarms),
            "" if matched is None else estimate_cell(matched),
        )
    return table


def _others(study: Study) -> list[str]:
    return [precision for precision in study.precisions if precision != REFERENCE]
