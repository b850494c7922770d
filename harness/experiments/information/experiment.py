"""Experiment information: mutual information of single neurons and hallucination."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from harness.experiments.base import Experiment
from harness.experiments.information import nodes
from harness.experiments.information.rows import InformationAnalysis
from harness.experiments.information.section import InformationSection, section_of
from harness.experiments.information.tables import TABLES
from harness.stages.graph import Graph
from harness.stages.identify import NEURONS_FILE, Rows
from harness.stages.materials import Materials
from harness.store.node import Node
from harness.store.runner import Outputs
from harness.studies.study import REFERENCE, Study
from harness.tables.schema import Row
from hq.stats.intervals import Estimate


class InformationExperiment(Experiment):
    """I(H;Y) of H-Neurons against I(R;Y) of regular neurons."""

    name = "information"
    measures = "mutual information of H-Neurons and of regular neurons with hallucination"
    tables = TABLES
    committed = (NEURONS_FILE,)
    section = InformationSection

    def nodes(self, m: Materials) -> Sequence[Node]:
        """Declare the information of all neurons at each precision, and the reference's neurons."""
        graph = Graph(m)
        return [
            *(nodes.node(m, precision) for precision in m.study.precisions),
            graph.trace(REFERENCE),
            graph.identify(REFERENCE),
        ]

    def rows(self, m: Materials, outputs: Outputs) -> dict[str, list[Row]]:
        """Return the rows of each table, by precision."""
        graph = Graph(m)
        tables: dict[str, list[Row]] = {name: [] for name in self.tables}
        for precision in m.study.precisions:
            analysis = InformationAnalysis(
                probes=graph.read_probes(outputs, REFERENCE),
                rows=Rows(graph.read_samples(outputs)),
                reference=graph.read_traces(outputs, REFERENCE),
                traces=graph.read_traces(outputs, precision),
                information=nodes.read(outputs[nodes.node(m, precision)]),
                section=section_of(m),
                seed=m.study.seed,
            )
            for name, rows in analysis.tables().items():
                tables[name] += rows
        return tables

    def write(self, folder: Path, m: Materials, outputs: Outputs) -> None:
        """Write the neurons of the reference."""
        shutil.copyfile(Graph(m).neurons_file(outputs), folder / NEURONS_FILE)

    def definition(self, study: Study) -> dict[str, Any]:
        """Return the section."""
        section = InformationSection.of(study.sections.get(self.name, {}), "[information]")
        return {self.name: section.model_dump(mode="json")}

    def summary(self, tables: Mapping[str, Sequence[Any]]) -> Table:
        """Return the information of H-Neurons and of their controls at each precision."""
        rows = tables["information"]
        first = rows[0]
        table = Table(
            title="Mutual information with hallucination, in thousandths of a bit:\n"
            f"mean over {first.h_neurons} H-Neurons or as many regular ones.\n{first.n} samples in "
            f"{first.units} units.",
            caption="held out: neurons of each fold's probe, on the fold that\n"
            "did not select them. Intervals of matched neurons contain 95%\nof draws.",
            caption_style="",
            caption_justify="left",
            box=SIMPLE_HEAD,
            padding=(0, 1),
        )
        table.add_column("precision", overflow="fold")
        columns = ("H-Neurons", "matched", "held out", "matched\nheld out")
        for column in (*columns, "p below .05\n(Holm)"):
            table.add_column(column, no_wrap=True)
        for row in rows:
            values = (row.information, row.matched, row.held_out, row.held_out_matched)
            table.add_row(
                row.precision,
                *map(_millibits, values),
                f"{row.significant} of {row.h_neurons}",
            )
        return table


def _millibits(of: Estimate) -> str:
    scaled = {field: 1000 * getattr(of, field) for field in ("value", "low", "high")}
    value, low, high = (f"{scaled[field]:.1f}" for field in ("value", "low", "high"))
    return f"{value}\n[dim]{low} {high}[/dim]"
