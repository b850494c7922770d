"""What a finished study leaves its reader: a folder of files, and a summary on the screen."""

import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl
from rich.box import SIMPLE_HEAD
from rich.table import Table

from harness.experiments.pipeline import Pipeline
from harness.scenarios.rows import SetAside
from harness.stages import mapping, sample
from harness.stages.identify import NEURONS_FILE, PATH_FILE
from harness.stages.samples import write_samples
from harness.store.environment import FIT, QUESTIONS, machine_class, versions
from harness.store.store import inputs_of
from harness.studies.study import REFERENCE
from harness.tables.files import write_tables
from harness.tables.schema import Row
from hq import __version__
from hq.models.checkpoint import architecture_at
from hq.stats.bootstrap import Estimate
from hq.storage.atomic import write_whole

_GIVEN = "given"
SET_ASIDE_FILE = "rows_set_aside.csv"


def write(folder: Path, pipeline: Pipeline, tables: Mapping[str, Sequence[Row]]) -> dict[str, Any]:
    """Writes tables, provenance, samples, neurons and speeds; gives the provenance.

    Speeds stand in a file of their own, as no two runs have the same: all others are repeatable to
    the byte on one machine.
    """
    study = pipeline.study
    facts = origin(pipeline) | {
        "kind": "study",
        "study": study.name,
        "sampling": _sampling(pipeline),
        "stages": built_from(pipeline),
    }
    write_tables(folder, tables, facts)
    write_samples(folder / "samples.jsonl", pipeline.samples)
    _write_set_aside(folder / SET_ASIDE_FILE, pipeline.questions.set_aside)
    for name in (NEURONS_FILE, PATH_FILE):
        shutil.copyfile(pipeline.neurons_folder(REFERENCE) / name, folder / name)
    maps = {p: pipeline.variants.mapping(p) for p in study.precisions}
    mapping.write_layers(folder / mapping.LAYERS_FILE, maps)
    speeds = [(p, pipeline.uncertainty(p).tokens_per_second) for p in study.precisions]
    lines = [f"{precision},{speed:.1f}\n" for precision, speed in speeds]
    write_whole(folder / "speed.csv", "precision,prompt_tokens_per_second\n" + "".join(lines))
    return facts


def _write_set_aside(path: Path, rows: Sequence[SetAside]) -> None:
    """The rows of the question file that could not be used; no file where there is none."""
    if rows:
        pl.DataFrame(rows, schema=list(SetAside._fields), orient="row").write_csv(path)
    else:
        path.unlink(missing_ok=True)  # of an earlier run


def origin(pipeline: Pipeline) -> dict[str, Any]:
    """What the provenance of any run begins with: the model, and the study less its [sweep]."""
    definition = pipeline.study.model_dump(mode="json", exclude={"model", "sweep"})
    # Of paths, which are nobody else's, only that there are some: what they hold is hashed below.
    definition["scenario"]["options"].pop("source", None)
    definition["checkpoints"] = dict.fromkeys(definition["checkpoints"], _GIVEN)
    for section in ("compare", "pack"):
        definition[section]["text"] = definition[section]["text"] and _GIVEN
    model = pipeline.model.model_dump()
    model["kin"] = model.pop("norm_digest")  # the key that committed provenance has
    facts = {
        "fingerprint": pipeline.model.fingerprint,
        "model": model,
        "definition": definition,
    }
    architecture = architecture_at(pipeline.path)
    return facts | ({"architecture": architecture.described} if architecture.detected else {})


def statistics() -> dict[str, object]:
    """What tables are computed by here."""
    return {"hq": __version__, "packages": versions(*FIT), "machine": machine_class()}


def _sampling(pipeline: Pipeline) -> dict[str, int | float]:
    """How many questions were asked, what became of them, and how many tokens that took."""
    records = sample.read_records(pipeline.responses).values()
    labels = Counter(record.hallucinated for record in records)
    generated = sum(record.generated for record in records)
    left = len(pipeline.questions.set_aside)
    set_aside: dict[str, int | float] = {"rows_set_aside": left} if left else {}
    return set_aside | {
        "questions": len(pipeline.prompted),
        "asked": len(records),
        "consistently_right": labels[False],
        "consistently_hallucinated": labels[True],
        "set_aside": labels[None],
        "kept_pairs": len(pipeline.samples) // 2,
        "tokens_generated": generated,
        # Responses that were given up, and questions never asked, would come on top.
        "tokens_without_sharing_at_least": sum(record.naive for record in records),
    }


def built_from(pipeline: Pipeline) -> dict[str, object]:
    """All that each stage's artefact was hashed by when it was built, a precision where it has one.

    What is not kept, the questions and the tables' statistics, is of the packages installed now.
    """
    precisions = pipeline.study.precisions
    folders = {
        "map": pipeline.variants.mapping,
        "trace": pipeline.traces_folder,
        "identify": pipeline.neurons_folder,
        "uncertainty": pipeline.uncertainty_folder,
    }
    return {
        "questions": versions(*QUESTIONS.get(pipeline.study.scenario.name, ())),
        "sample": inputs_of(pipeline.responses),
        **{name: {p: inputs_of(of(p)) for p in precisions} for name, of in folders.items()},
        "compare": statistics(),
    }


def summary(tables: Mapping[str, Sequence[Any]]) -> Table:
    """The columns that answer the question, controls beside them; 80 characters wide."""
    rows = tables["detection"]
    controls = {(row.precision, row.control): row.auroc for row in tables["controls"]}
    first = rows[0]
    table = Table(
        title=f"{first.neurons} neurons found on FP16, {first.h_neurons} of them H-Neurons.\n"
        f"AUROC and 95% intervals at each precision, on {first.n} test questions.",
        box=SIMPLE_HEAD,
        padding=(0, 1),
    )
    columns = ("AUROC", "change", "matched\nrandom", "entropy", "found\nafresh", "in\ncommon")
    for column in ("precision", *columns):
        table.add_column(column, no_wrap=True)
    for row in rows:
        table.add_row(
            row.precision,
            _lines(row.auroc),
            _lines(row.auroc_change, signed=True),
            _lines(controls[row.precision, "matched"]),
            _lines(controls[row.precision, "entropy"]),
            _lines(row.auroc_again),
            f"{row.common} of {row.neurons_again}",
        )
    return table


def _lines(estimate: Estimate, signed: bool = False) -> str:
    sign = "+" if signed else ""
    low, high = (f"{end:{sign}.2f}".replace("0.", ".") for end in (estimate.low, estimate.high))
    return f"{estimate.value:{sign}.3f}\n[dim]{low} {high}[/dim]"
