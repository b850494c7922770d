"""Experiment survival: prediction from FP16 alone of the neurons that a precision degrades."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from harness.experiments.base import Experiment, estimate_cell
from harness.experiments.survival.rows import SurvivalAnalysis
from harness.experiments.survival.tables import TABLES
from harness.stages.graph import Graph
from harness.stages.identify import NEURONS_FILE, Rows
from harness.stages.materials import Materials
from harness.store.node import Node
from harness.store.runner import Outputs
from harness.studies.study import REFERENCE, Study
from harness.tables.schema import Row
from hq.models.ffn_weights import of_checkpoint


class SurvivalExperiment(Experiment):
    """Predicts which neurons each precision degrades, with a fit at the other precisions."""

    name = "survival"
    measures = "which neurons a precision changes most, and how well FP16 alone predicts them"
    tables = TABLES
    committed = (NEURONS_FILE,)

    def check(self, m: Materials) -> None:
        """Raises HQError if there are fewer than two precisions besides the reference."""
        SurvivalAnalysis.require(_others(m.study))

    def nodes(self, m: Materials) -> Sequence[Node]:
        """Declare the traces of every precision, and the neurons of the reference."""
        graph = Graph(m)
        return [*(graph.trace(p) for p in m.study.precisions), graph.identify(REFERENCE)]

    def rows(self, m: Materials, outputs: Outputs) -> dict[str, list[Row]]:
        """Return the rows of both tables."""
        graph = Graph(m)
        return SurvivalAnalysis(
            rows=Rows(graph.read_samples(outputs)),
            neurons=graph.read_neurons(outputs, REFERENCE),
            ffns=of_checkpoint(m.path, folded=False),
            reference=graph.read_traces(outputs, REFERENCE),
            variants={p: graph.read_traces(outputs, p) for p in _others(m.study)},
        ).tables()

    def write(self, folder: Path, m: Materials, outputs: Outputs) -> None:
        """Write the neurons of the reference."""
        shutil.copyfile(Graph(m).neurons_file(outputs), folder / NEURONS_FILE)

    def definition(self, study: Study) -> dict[str, Any]:
        """Return the precisions: each row depends on all of them."""
        return {"learnt_from": list(study.precisions)}

    def summary(self, tables: Mapping[str, Sequence[Any]]) -> Table:
        """Return the AUROC of the prediction, compared with a rule without a fit."""
        rows = tables["survival"]
        first = rows[0]
        table = Table(
            title="Which neurons change most, predicted from FP16 alone: AUROC and 95% intervals "
            f"over {first.layers} layers.\nThe fit sees other layers at other precisions.",
            box=SIMPLE_HEAD,
            padding=(0, 1),
        )
        columns = ("measure", "predicted", "smallest\nfirst", "gain", "degraded\nin the probe")
        for column in ("precision", *columns):
            table.add_column(column, no_wrap=True)
        for row in rows:
            table.add_row(
                row.precision,
                row.target,
                estimate_cell(row.auroc),
                estimate_cell(row.auroc_small),
                estimate_cell(row.gain, signed=True),
                f"{row.probe_hurt} of {row.probe}",
            )
        return table


def _others(study: Study) -> list[str]:
    return [precision for precision in study.precisions if precision != REFERENCE]
