"""The way of `hq survival`: from a study's traces to which neurons its precisions hurt."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from harness.experiments.detect.outcome import origin, statistics
from harness.experiments.pipeline import Pipeline
from harness.experiments.survival.rows import Surviving
from harness.stages.identify import NEURONS_FILE, Rows
from harness.store.store import inputs_of
from harness.studies.study import REFERENCE
from harness.tables.files import write_tables
from harness.tables.schema import Row
from hq.models.ffn_weights import of_checkpoint
from hq.stats.bootstrap import Estimate


def surviving(pipeline: Pipeline) -> Surviving:
    """The neurons of a study at its precisions. HQError for fewer than two beside FP16."""
    study = pipeline.study
    others = [precision for precision in study.precisions if precision != REFERENCE]
    Surviving.require(others)
    pipeline.check()
    return Surviving(
        rows=Rows(pipeline.samples),
        neurons=pipeline.neurons(REFERENCE),
        ffns=of_checkpoint(pipeline.path, folded=False),
        reference=pipeline.traces(REFERENCE),
        variants={precision: pipeline.traces(precision) for precision in others},
        seed=study.seed,
        replicates=study.compare.replicates,
    )


def write(
    folder: Path, pipeline: Pipeline, tables: Mapping[str, Sequence[Row]]
) -> dict[str, object]:
    """Writes tables, neurons and provenance, which it gives."""
    study, facts = pipeline.study, origin(pipeline)
    traces = {p: inputs_of(pipeline.traces_folder(p)) for p in study.precisions}
    # A row depends on all other precisions: it cannot stand beside rows of another choice of them.
    facts["definition"]["learnt_from"] = list(study.precisions)
    facts |= {
        "kind": "survival",
        "study": f"{study.name}-survival",
        "stages": {"trace": traces, "compare": statistics()},
    }
    write_tables(folder, tables, facts)
    shutil.copyfile(pipeline.neurons_folder(REFERENCE) / NEURONS_FILE, folder / NEURONS_FILE)
    return facts


def summary(tables: Mapping[str, Sequence[Any]]) -> Table:
    """How well each precision's worst neurons are told, beside the rule without a fit."""
    rows = tables["survival"]
    first = rows[0]
    table = Table(
        title="Which neurons are hurt, told from FP16 alone: AUROC and 95% intervals over "
        f"{first.layers} layers.\nLearnt from other layers at other precisions.",
        box=SIMPLE_HEAD,
        padding=(0, 1),
    )
    columns = ("hurt by", "predicted", "smallest\nfirst", "gain", "hurt in\nthe probe")
    for column in ("precision", *columns):
        table.add_column(column, no_wrap=True)
    for row in rows:
        table.add_row(
            row.precision,
            row.target,
            _lines(row.auroc),
            _lines(row.auroc_small),
            _lines(row.gain, "+"),
            f"{row.probe_hurt} of {row.probe}",
        )
    return table


def _lines(estimate: Estimate, sign: str = "") -> str:
    low, high = (f"{end:{sign}.2f}".replace("0.", ".") for end in (estimate.low, estimate.high))
    return f"{estimate.value:{sign}.3f}\n[dim]{low} {high}[/dim]"
