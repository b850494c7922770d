"""`hq study run`: the whole way, from questions to tables."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from harness.cli.app import AsJson, Quiet, app, err, out, print_json
from hq.errors import HQError

if TYPE_CHECKING:
    from harness.studies.study import Study

study_app = typer.Typer(no_args_is_help=True, help="Run a study: model × precisions × scenario.")
app.add_typer(study_app, name="study")

DEFAULT_STUDY = "smollm2-facts"

Name = Annotated[str, typer.Argument(help="A TOML file, or the name of a packaged study.")]
Model = Annotated[str | None, typer.Option(help="A checkpoint folder, GGUF file or hub id.")]
Precisions = Annotated[
    str | None,
    typer.Option(help="Comma-separated, in place of the study's: fp16,nf4,gguf-q4_k_m."),
]
Questions = Annotated[
    Path | None, typer.Option(help="The question file of the study's scenario, where it reads one.")
]
Resume = Annotated[
    bool, typer.Option("--resume/--fresh", help="Go on with finished stages, or redo all.")
]


def planned(
    name: str, model: str | None, precisions: str | None, questions: Path | None
) -> "Study":
    """The study of that name with the options that commands share."""
    from harness.studies.study import Study

    plan = Study.load(name).changed(
        model=model, precisions=None if precisions is None else tuple(precisions.split(","))
    )
    return plan if questions is None else plan.reading(str(questions))


def tables_folder(into: Path | None, name: str) -> Path:
    """Where the tables go, runs/NAME by default. Raises HQError where that is a file."""
    folder = into or Path("runs") / name
    if folder.is_file():
        raise HQError(f"{folder} is a file: name a folder for the tables.")
    return folder


@study_app.command("run")
def run(
    study: Name = DEFAULT_STUDY,
    model: Model = None,
    precisions: Precisions = None,
    sampler: Annotated[
        str | None, typer.Option(help="What draws the responses: torch, or llamacpp at Q8_0.")
    ] = None,
    questions: Questions = None,
    into: Annotated[
        Path | None, typer.Option(help="Folder for the tables; default runs/NAME.")
    ] = None,
    resume: Resume = True,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Find H-Neurons on FP16 and read them at each precision.

    A killed run goes on where it was: every stage's output is kept under the hash of its inputs,
    and only what a change touches is computed again.
    """
    from harness.experiments.detect.outcome import summary, write
    from harness.experiments.pipeline import Pipeline
    from harness.store.places import cache_folder
    from harness.store.progress import Progress
    from harness.store.store import Store
    from harness.studies.study import SamplingSection

    plan = planned(study, model, precisions, questions)
    if sampler is not None:
        values = plan.sampling.model_dump() | {"sampler": sampler}
        plan = plan.changed(sampling=SamplingSection.of(values, "the options"))
    folder = tables_folder(into, plan.name)
    store = Store(cache_folder() / "store", fresh=not resume)
    with Progress(quiet=quiet) as progress, Pipeline(plan, store, progress) as pipeline:
        tables = pipeline.tables()
        facts = write(folder, pipeline, tables)
    if as_json:
        rows = {name: [row.model_dump() for row in table] for name, table in tables.items()}
        print_json({"folder": str(folder), "tables": rows, "provenance": facts})
    else:
        out.print(summary(tables))
        err.print(f"All tables: {folder}/tables.md")
