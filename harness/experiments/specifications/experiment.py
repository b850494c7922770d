"""Experiment specifications: how far the study's answer depends on choices of the analysis."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from harness.experiments.base import Experiment
from harness.experiments.specifications.nodes import SpecificationNodes
from harness.experiments.specifications.rows import SpecificationAnalysis, largest
from harness.experiments.specifications.section import SpecificationsSection
from harness.experiments.specifications.tables import TABLES
from harness.stages.identify import NEURONS_FILE, Rows
from harness.stages.materials import Materials
from harness.stages.samples import samples_digest
from harness.store.node import Node
from harness.store.runner import Outputs
from harness.studies.study import REFERENCE, Study
from harness.tables.schema import Row
from hq.errors import HQError


class SpecificationsExperiment(Experiment):
    """AUROC and its change under other features, labels, rules, folds and samples."""

    name = "specifications"
    measures = "how far AUROC, its change and the neurons depend on choices of the analysis"
    tables = TABLES
    committed = (NEURONS_FILE,)
    section = SpecificationsSection

    def check(self, m: Materials) -> None:
        """Raises HQError if a number of neurons exceeds the model's."""
        nodes, p = m.of(SpecificationNodes), m.model.n_neurons
        if nodes.section.sizes[-1] >= p:
            raise HQError(
                f"specifications.sizes asks for {nodes.section.sizes[-1]} neurons, and the model "
                f"has {p}: give smaller numbers."
            )

    def nodes(self, m: Materials) -> Sequence[Node]:
        """Declare the fits, the estimates at each precision, and the agreement of halves."""
        nodes = m.of(SpecificationNodes)
        return [*(nodes.estimates(p) for p in m.study.precisions), nodes.agreement()]

    def rows(self, m: Materials, outputs: Outputs) -> dict[str, list[Row]]:
        """Return the rows of each table."""
        return _analysis(m, outputs).tables()

    def write(self, folder: Path, m: Materials, outputs: Outputs) -> None:
        """Write the study's own set, with the digest of its samples."""
        nodes = m.of(SpecificationNodes)
        neurons = next(iter(nodes.read_sets(outputs).values())).neurons
        digest = samples_digest(nodes.graph.read_samples(outputs))
        provenance = neurons.provenance | {"samples": digest}
        neurons.model_copy(update={"provenance": provenance}).save(folder / NEURONS_FILE)

    def definition(self, study: Study) -> dict[str, Any]:
        """Return the section."""
        values = study.sections.get(self.name, {})
        section = SpecificationsSection.of(values, "the section [specifications]")
        return {self.name: section.model_dump(mode="json")}

    def summary(self, tables: Mapping[str, Sequence[Any]]) -> Table:
        """Return the medians and ranges of the settings, and the choice that changes most."""
        own = tables["specifications"][0]
        table = Table(
            title=f"AUROC and its change from FP16 with other choices, median and range.\nThe "
            f"study's own: {own.cett} CETT, {own.tokens} tokens, {own.labels}, {own.rule}.",
            caption=_caption(tables),
            caption_style="",
            caption_justify="left",
            box=SIMPLE_HEAD,
            padding=(0, 1),
        )
        table.add_column("precision", overflow="fold")
        for column in ("choices", "n", "own\nAUROC", "AUROC", "own\nchange", "change"):
            table.add_column(column, no_wrap=True)
        table.add_column("same\nverdict")
        for row in tables["curve"]:
            table.add_row(
                row.precision,
                row.scope,
                str(row.specifications),
                f"{row.auroc:.3f}",
                _range_cell(row.auroc_median, row.auroc_least, row.auroc_most),
                "" if row.change is None else f"{row.change:+.3f}",
                _range_cell(row.change_median, row.change_least, row.change_most, "+"),
                "" if row.same_verdict is None else f"{row.same_verdict:.0%}",
            )
        return table


def _analysis(m: Materials, outputs: Outputs) -> SpecificationAnalysis:
    nodes = m.of(SpecificationNodes)
    return SpecificationAnalysis(
        rows=Rows(nodes.graph.read_samples(outputs)),
        sets=nodes.read_sets(outputs),
        partitions=nodes.read_partitions(outputs),
        estimates={p: nodes.read_estimates(outputs, p) for p in m.study.precisions},
        scores={p: nodes.read_scores(outputs, p) for p in m.study.precisions},
        agreement=nodes.read_agreement(outputs),
        failures=nodes.read_failures(outputs),
    )


def _range_cell(
    median: float | None, least: float | None, most: float | None, sign: str = ""
) -> str:
    """A median for a cell of the summary, and the range on a second line; empty without one."""
    if median is None or least is None or most is None:
        return ""
    low, high = (f"{end:{sign}.2f}".replace("0.", ".") for end in (least, most))
    return f"{median:{sign}.3f}\n[dim]{low} {high}[/dim]"


def _caption(tables: Mapping[str, Sequence[Any]]) -> str:
    """The choices that change the AUROC and its change most, and the agreement of halves."""
    split, lines = tables["split_half"][0], []
    for precision in dict.fromkeys(row.precision for row in tables["influence"]):
        rows = [row for row in tables["influence"] if row.precision == precision]
        column = "auroc" if precision == REFERENCE else "change"
        most = largest(rows, column)
        low, high = getattr(most, f"{column}_low"), getattr(most, f"{column}_high")
        name = "AUROC" if column == "auroc" else "the change"
        lines.append(f"{precision}: {most.choice} moves {name} most ({low}; {high})")
    return "\n".join(
        [
            *lines,
            f"Probes of two halves: Jaccard {split.jaccard.value:.2f} (by chance "
            f"{split.jaccard_chance:.2f}), scores correlate by {split.correlation.value:.2f}",
        ]
    )
