"""`hq study run`: the whole way, from questions to tables."""

import shutil
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from harness.cli.app import AsJson, Quiet, app, err, out, print_json
from harness.pipeline import Pipeline, sampling_summary
from harness.places import cache_folder
from harness.progress import Progress
from harness.samples import write_samples
from harness.schema import Row
from harness.stages.identify import NEURONS_FILE, PATH_FILE
from harness.store import Store
from harness.study import REFERENCE, ScenarioSection, Study
from harness.tables import provenance, write_tables
from hq.stats import Estimate

study_app = typer.Typer(no_args_is_help=True, help="Run a study: model × precisions × scenario.")
app.add_typer(study_app, name="study")

DEFAULT_STUDY = "smollm2-facts"
_SHOWN = ("precision", "n", "neurons", "auroc", "auroc_change", "auroc_again", "jaccard", "flips")


@study_app.command("run")
def run(
    study: Annotated[
        str, typer.Argument(help="A TOML file, or the name of a packaged study.")
    ] = DEFAULT_STUDY,
    model: Annotated[
        str | None, typer.Option(help="A checkpoint folder or hub id, in place of the study's.")
    ] = None,
    precisions: Annotated[
        str | None,
        typer.Option(help="Comma-separated, in place of the study's: fp16,int8,nf4,fp4."),
    ] = None,
    questions: Annotated[
        Path | None, typer.Option(help="The question file of a scenario that reads one.")
    ] = None,
    into: Annotated[
        Path | None, typer.Option(help="Folder for the tables; default runs/NAME.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume/--fresh", help="Go on with finished stages, or redo all.")
    ] = True,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Find H-Neurons on FP16 and read them at each precision.

    A killed run goes on where it was: every stage's output is kept under the hash of its inputs,
    and only what a change touches is computed again.
    """
    plan = Study.load(study).changed(
        model=model, precisions=tuple(precisions.split(",")) if precisions else None
    )
    if questions is not None:
        options = plan.scenario.options | {"path": str(questions)}
        plan = plan.changed(scenario=ScenarioSection(name=plan.scenario.name, options=options))
    folder = into or Path("runs") / plan.name
    store = Store(cache_folder() / "store", fresh=not resume)
    with Progress(quiet=quiet) as progress, Pipeline(plan, store, progress) as pipeline:
        tables = pipeline.tables()
        facts = _write(folder, pipeline, tables)
    if as_json:
        rows = {name: [row.model_dump() for row in table] for name, table in tables.items()}
        print_json({"folder": str(folder), "tables": rows, "provenance": facts})
    else:
        out.print(summary(tables))
        err.print(f"All tables: {folder}/tables.md")


def summary(tables: dict[str, list[Row]]) -> Table:
    """The few columns that answer the question, controls beside them."""
    table = Table(title="The FP16 probe at each precision (AUROC, 95% intervals)")
    for column in (*_SHOWN, "matched random", "entropy"):
        table.add_column(column.replace("_", " "), overflow="fold")
    controls = {
        (row.precision, row.control): row.auroc  # type: ignore[attr-defined]
        for row in tables["controls"]
    }
    for row in tables["detection"]:
        values = [getattr(row, name) for name in _SHOWN]
        values += [controls[row.precision, name] for name in ("matched", "entropy")]  # type: ignore[attr-defined]
        table.add_row(*map(_short, values))
    return table


def _short(value: object) -> str:
    if isinstance(value, Estimate):
        return f"{value.value:.3f}\n[dim]{value.low:.3f}…{value.high:.3f}[/dim]"
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _write(folder: Path, pipeline: Pipeline, tables: dict[str, list[Row]]) -> dict[str, object]:
    """Everything that a run leaves for its reader; speeds apart, as no two runs have the same."""
    study = pipeline.study
    facts = provenance(
        study=study.name,
        fingerprint=pipeline.model.fingerprint,
        model=pipeline.model.model_dump(),
        definition=study.model_dump(mode="json", exclude={"model"}),
        sampling=sampling_summary(pipeline),
    )
    write_tables(folder, tables, facts)
    write_samples(folder / "samples.jsonl", pipeline.samples)
    for name in (NEURONS_FILE, PATH_FILE):
        shutil.copyfile(pipeline.neurons_folder(REFERENCE) / name, folder / name)
    speeds = [(p, pipeline.uncertainty(p).tokens_per_second) for p in study.precisions]
    lines = [f"{precision},{speed:.1f}\n" for precision, speed in speeds]
    (folder / "speed.csv").write_text("precision,prompt_tokens_per_second\n" + "".join(lines))
    return facts
