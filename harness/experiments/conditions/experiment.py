"""Experiment conditions: which neurons meet the formal definition of an H-Neuron."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from harness.experiments.base import Experiment
from harness.experiments.conditions import nodes
from harness.experiments.conditions.rows import ConditionsAnalysis, scenarios
from harness.experiments.conditions.section import (
    ConditionsSection,
    other_scenario,
    section_of,
)
from harness.experiments.conditions.tables import TABLES
from harness.stages.graph import Graph
from harness.stages.identify import NEURONS_FILE, Rows
from harness.stages.materials import Materials
from harness.store.node import Node
from harness.store.runner import Outputs
from harness.studies.study import REFERENCE, Study
from harness.tables.schema import Row


class ConditionsExperiment(Experiment):
    """Single neurons in the scenario that selected them, and in a second one."""

    name = "conditions"
    measures = "which neurons meet the formal definition of an H-Neuron, which needs two scenarios"
    tables = TABLES
    committed = (NEURONS_FILE,)
    section = ConditionsSection

    def check(self, m: Materials) -> None:
        """Raises HQError if there is no second scenario, or if its questions cannot be used."""
        m.of(other_scenario).check_questions()

    def nodes(self, m: Materials) -> Sequence[Node]:
        """Declare the AUROCs of all neurons at each precision, and the neurons of the reference."""
        return [*(nodes.node(m, p) for p in m.study.precisions), Graph(m).identify(REFERENCE)]

    def rows(self, m: Materials, outputs: Outputs) -> dict[str, list[Row]]:
        """Return the rows of each table, by precision."""
        graph, other = Graph(m), Graph(m.of(other_scenario))
        samples, other_samples = graph.read_samples(outputs), other.read_samples(outputs)
        tables: dict[str, list[Row]] = {name: [] for name in self.tables}
        for precision in m.study.precisions:
            analysis = ConditionsAnalysis(
                probes=graph.read_probes(outputs, REFERENCE),
                rows=Rows(samples),
                traces=graph.read_traces(outputs, precision),
                other_rows=Rows(other_samples),
                other_traces=other.read_traces(outputs, precision),
                aurocs=nodes.read(outputs[nodes.node(m, precision)]),
                section=section_of(m),
            )
            for name, rows in analysis.tables().items():
                tables[name] += rows
        studies = ((m.study.name, samples), (other.m.study.name, other_samples))
        tables["scenarios"] += scenarios(studies)
        return tables

    def write(self, folder: Path, m: Materials, outputs: Outputs) -> None:
        """Write the neurons of the reference."""
        shutil.copyfile(Graph(m).neurons_file(outputs), folder / NEURONS_FILE)

    def definition(self, study: Study) -> dict[str, Any]:
        """Return the thresholds, and the questions of the second scenario."""
        section = ConditionsSection.of(study.sections.get(self.name, {}), "[conditions]")
        other = Study.load(section.other)
        parts = other.model_dump(mode="json", include={"scenario", "prompt", "sampling", "reserve"})
        parts["scenario"]["options"].pop("source", None)
        return {"conditions": section.model_dump(mode="json", exclude={"other"}) | {"other": parts}}

    def summary(self, tables: Mapping[str, Sequence[Any]]) -> Table:
        """Return how many neurons meet the conditions at the thresholds of the section."""
        first = tables["counts"][0]
        rows = [r for r in tables["counts"] if (r.tau, r.tau_cross) == (first.tau, first.tau_cross)]
        held_out = {row.precision: row for row in tables["held_out"]}
        second = next(row for row in tables["scenarios"] if row.role == "second")
        table = Table(
            title=f"{first.h_neurons} H-Neurons of {first.neurons:,} neurons.\n2: AUROC > "
            f"{first.tau:g}; 3: AUROC > {first.tau_cross:g} in {second.scenario} ({second.n} "
            f"samples, {second.units} units).",
            caption="held out: on folds that did not select the neuron. shown: by the lower\nends "
            "of 95% intervals. chance: labels flipped by unit, 95% of draws.\nThe table counts has "
            "other thresholds.",
            caption_style="",
            caption_justify="left",
            box=SIMPLE_HEAD,
            padding=(0, 1),
        )
        table.add_column("precision", overflow="fold")
        columns = ("2", "3", "1+2+3", "held\nout", "shown", "AUROC\nheld out")
        for column in (*columns, "all with\n2+3", "chance"):
            table.add_column(column, no_wrap=True)
        for row in rows:
            chance = row.both_chance
            table.add_row(
                row.precision,
                *map(str, (row.h_second, row.h_third, row.h_all, row.h_held_out, row.h_shown)),
                f"{held_out[row.precision].auroc_held_out.value:.3f}",
                f"{row.both:,}",
                f"{chance.value:,.0f}\n[dim]{chance.low:,.0f} {chance.high:,.0f}[/dim]",
            )
        return table
