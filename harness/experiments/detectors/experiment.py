"""Experiment detectors: H-Neurons and their competitors, on the same answers and folds."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from harness.experiments.base import Experiment, estimate_cell
from harness.experiments.detectors import (
    confidence,
    hidden,
    probes,
    resampling,
    timing,
    verification,
)
from harness.experiments.detectors.compare import detector_rows, nested_rows, score_all
from harness.experiments.detectors.registry import DETECTORS, Readings
from harness.experiments.detectors.section import DetectorsSection
from harness.experiments.detectors.tables import TABLES
from harness.stages.graph import Graph
from harness.stages.identify import Rows
from harness.stages.materials import Materials
from harness.stages.samples import require_origin
from harness.store.node import Node
from harness.store.runner import Outputs
from harness.studies.study import REFERENCE, Study
from harness.tables.schema import Row
from hq.models.architectures.llama_cpp import head_width
from hq.models.checkpoint import text_config
from hq.storage.atomic import write_whole

COSTS_FILE = "costs.csv"


class DetectorsExperiment(Experiment):
    """Token probabilities, P(True), sampling, verification and probes, beside H-Neurons."""

    name = "detectors"
    measures = "AUROC of H-Neurons and of every detector it competes with, on the same answers"
    tables = TABLES
    section = DetectorsSection
    committed = (COSTS_FILE,)

    def check(self, m: Materials) -> None:
        """Raises HQError if P(True) cannot be read, or a prompt is longer than the model takes."""
        _ = confidence.verdict_tokens(m)

    def nodes(self, m: Materials) -> Sequence[Node]:
        """Declare what each detector reads at every precision, and the probes of the reference."""
        graph, section = Graph(m), self._section(m.study)
        return [
            graph.identify(REFERENCE),
            probes.node(m),
            *(
                node
                for precision in m.study.precisions
                for node in (
                    graph.trace(precision),
                    confidence.node(m, precision),
                    hidden.node(m, precision),
                    resampling.node(m, precision, section),
                    verification.node(m, precision, section),
                    *([timing.node(m, precision, section)] if section.timed else []),
                )
            ),
        ]

    def rows(self, m: Materials, outputs: Outputs) -> dict[str, list[Row]]:
        """Return the rows of both tables."""
        section = self._section(m.study)
        tables: dict[str, list[Row]] = {name: [] for name in self.tables}
        before = None
        for precision in m.study.precisions:
            readings = self._readings(m, outputs, precision)
            scored = score_all(readings, precision)
            before = before or scored  # the reference is the first precision
            tables["detectors"] += detector_rows(
                precision, readings, before, scored, section.responses
            )
            tables["nested"] += nested_rows(precision, readings.rows, scored)
        return tables

    def write(self, folder: Path, m: Materials, outputs: Outputs) -> None:
        """Write how long each detector takes, which differs between runs."""
        section = self._section(m.study)
        if not section.timed:
            return
        lines = ["precision,detector,seconds_per_answer,ratio_to_generation\n"]
        for precision in m.study.precisions:
            seconds = timing.read(outputs[timing.node(m, precision, section)])
            for name in DETECTORS:
                need = DETECTORS[name].needs
                ratio = timing.ratio(seconds, need)
                lines.append(f"{precision},{name},{seconds[need]:.4g},{ratio:.3g}\n")
        write_whole(folder / COSTS_FILE, "".join(lines))

    def definition(self, study: Study) -> dict[str, Any]:
        """Return the settings of the detectors."""
        return {"detectors": self._section(study).model_dump(exclude={"timed"})}

    def summary(self, tables: Mapping[str, Sequence[Any]]) -> Table:
        """Return the AUROC of each detector at each precision, best first at the reference."""
        rows = tables["detectors"]
        first = rows[0]
        precisions = list(dict.fromkeys(row.precision for row in rows))
        table = Table(
            title="AUROC and 95% intervals of each detector, and the paired difference from the\n"
            f"probe of H-Neurons at fp16: {first.n} samples in {first.units} units.",
            box=SIMPLE_HEAD,
            padding=(0, 1),
        )
        table.add_column("detector")
        for column in (*precisions, "H-Neurons −\ndetector", "passes"):
            table.add_column(column, no_wrap=True)
        by_key = {(row.precision, row.detector): row for row in rows}
        ranked = sorted(
            (row for row in rows if row.precision == precisions[0]),
            key=lambda row: -row.auroc.value,
        )
        for row in ranked:
            cells = [estimate_cell(by_key[p, row.detector].auroc) for p in precisions]
            difference = estimate_cell(row.probe_minus, signed=True)
            table.add_row(row.detector, *cells, difference, str(row.passes))
        return table

    def _section(self, study: Study) -> DetectorsSection:
        return DetectorsSection.of(study.sections.get(self.name, {}), f"the section [{self.name}]")

    def _readings(self, m: Materials, outputs: Outputs, precision: str) -> Readings:
        graph, section = Graph(m), self._section(m.study)
        samples = graph.read_samples(outputs)
        crossfit = graph.read_probes(outputs, REFERENCE)
        require_origin(crossfit.neurons, samples, graph.read_traces(outputs, REFERENCE))
        traces = graph.read_traces(outputs, precision)
        for of_fold in crossfit.folds:
            of_fold.probe.require_present(traces.info.unmatched, precision)
        return Readings(
            samples=samples,
            rows=Rows(samples),
            cett=traces.features(crossfit.neurons.cett, crossfit.neurons.tokens),
            crossfit=crossfit,
            confidence=confidence.read(outputs[confidence.node(m, precision)]),
            responses=resampling.read(outputs[resampling.node(m, precision, section)], samples),
            verification=verification.read(outputs[verification.node(m, precision, section)]),
            hidden=hidden.read(outputs[hidden.node(m, precision)]),
            probes=probes.read(outputs[probes.node(m)]),
            head_width=head_width(text_config(m.path)),
        )
