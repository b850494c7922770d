"""`hq survival`: which neurons a precision hurts, told from the FP16 model alone."""

from pathlib import Path
from typing import Annotated

import typer

from harness.cli.app import AsJson, Quiet, app, err, out, print_json
from harness.cli.study import (
    DEFAULT_STUDY,
    Model,
    Name,
    Precisions,
    Questions,
    Resume,
    planned,
    tables_folder,
)


@app.command()
def survival(
    study: Name = DEFAULT_STUDY,
    model: Model = None,
    precisions: Precisions = None,
    questions: Questions = None,
    into: Annotated[
        Path | None, typer.Option(help="Folder for the tables; default runs/NAME-survival.")
    ] = None,
    resume: Resume = True,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Tell from FP16 alone which neurons each precision hurts, and how well that can be told.

    Weights and activity at FP16 are set against the error of each neuron's contribution, and the
    change of its rank. Every prediction is for a layer and a precision that the fit has not seen.
    What the study lacks is computed first.
    """
    from harness.experiments.pipeline import Pipeline
    from harness.experiments.survival.survival import summary, surviving, write
    from harness.store.places import cache_folder
    from harness.store.progress import Progress
    from harness.store.store import Store

    plan = planned(study, model, precisions, questions)
    folder = tables_folder(into, f"{plan.name}-survival")
    store = Store(cache_folder() / "store", fresh=not resume)
    with Progress(quiet=quiet) as progress, Pipeline(plan, store, progress) as pipeline:
        found = surviving(pipeline)
        with progress.task("survival", len(found.variants), "precisions") as task:
            tables = found.tables(task)
        facts = write(folder, pipeline, tables)
    if as_json:
        rows = {name: [row.model_dump() for row in table] for name, table in tables.items()}
        print_json({"folder": str(folder), "tables": rows, "provenance": facts})
    else:
        out.print(summary(tables))
        err.print(f"All tables: {folder}/tables.md")
