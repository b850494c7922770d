"""Experiment distributions: density of H-Neurons per layer, and distributions of their CETT."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from harness.experiments.base import Experiment, estimate_cell
from harness.experiments.distributions.density import density, placement
from harness.experiments.distributions.effects import EffectAnalysis
from harness.experiments.distributions.tables import TABLES
from harness.stages.graph import Graph
from harness.stages.identify import NEURONS_FILE, Rows
from harness.stages.materials import Materials
from harness.store.node import Node
from harness.store.runner import Outputs
from harness.studies.study import REFERENCE
from harness.tables.schema import Row


class DistributionsExperiment(Experiment):
    """Layers of H-Neurons, and their CETT on right and hallucinated answers."""

    name = "distributions"
    measures = "density of H-Neurons per layer, and CETT of right and hallucinated answers"
    tables = TABLES
    committed = (NEURONS_FILE,)

    def nodes(self, m: Materials) -> Sequence[Node]:
        """Declare the traces and the neurons of every precision."""
        graph = Graph(m)
        return [node for p in m.study.precisions for node in (graph.trace(p), graph.identify(p))]

    def rows(self, m: Materials, outputs: Outputs) -> dict[str, list[Row]]:
        """Return the rows of each table, by precision."""
        graph, seed = Graph(m), m.study.seed
        samples = Rows(graph.read_samples(outputs))
        tables: dict[str, list[Row]] = {name: [] for name in self.tables}
        for precision in m.study.precisions:
            identified = graph.read_neurons(outputs, precision)
            tables["density"] += density(identified, precision)
            tables["placement"].append(placement(identified, precision, seed))
            analysis = EffectAnalysis(
                probes=graph.read_probes(outputs, REFERENCE),
                rows=samples,
                reference=graph.read_traces(outputs, REFERENCE),
                traces=graph.read_traces(outputs, precision),
                draws=m.study.compare.draws,
                seed=seed,
            )
            for name, rows in analysis.tables().items():
                tables[name] += rows
        return tables

    def write(self, folder: Path, m: Materials, outputs: Outputs) -> None:
        """Write the neurons of the reference."""
        shutil.copyfile(Graph(m).neurons_file(outputs), folder / NEURONS_FILE)

    def summary(self, tables: Mapping[str, Sequence[Any]]) -> Table:
        """Return placement and Cliff's delta at each precision."""
        sets = {(row.precision, row.neurons): row for row in tables["sets"]}
        first = tables["sets"][0]
        table = Table(
            title=f"Cliff's delta of CETT, hallucinated against right answers: mean |delta| of "
            f"{first.size}\nH-Neurons or as many regular ones, {first.n} samples in {first.units} "
            "units.",
            caption="held out: signed delta of each fold's neurons, on the fold that did not\n"
            "select them. p: chi-squared over layers against random placement, of the\nneurons "
            "identified at the precision. `hq picture` draws the tables.",
            caption_style="",
            caption_justify="left",
            box=SIMPLE_HEAD,
            padding=(0, 1),
        )
        table.add_column("precision", overflow="fold")
        columns = ("H-Neurons", "matched", "random", "held\nout")
        for column in (*columns, "H-Neurons\nin layers", "p"):
            table.add_column(column, no_wrap=True)
        for row in tables["placement"]:
            h, matched, random = (sets[row.precision, name] for name in ("h", "matched", "random"))
            table.add_row(
                row.precision,
                *(estimate_cell(of.magnitude) for of in (h, matched, random)),
                estimate_cell(h.held_out, signed=True),
                f"{row.h_neurons}\nin {row.layers}",
                f"{row.p:.2g}",
            )
        return table
