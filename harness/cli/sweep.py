"""`hq sweep`: what scaling the H-Neurons does to over-compliance, at each precision."""

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
from hq.errors import HQError


@app.command()
def sweep(
    study: Name = DEFAULT_STUDY,
    model: Model = None,
    precisions: Precisions = None,
    scenarios: Annotated[
        str | None,
        typer.Option(help="Comma-separated: falseqa,faitheval,sycophancy,jailbreak,nonexist,…"),
    ] = None,
    alphas: Annotated[
        str | None, typer.Option(help="Comma-separated, 1 among them: 0,0.5,1,2.")
    ] = None,
    trials: Annotated[
        int | None, typer.Option(min=8, help="Trials of each kind in a scenario.")
    ] = None,
    draws: Annotated[
        int | None, typer.Option(min=2, help="Draws of matched neurons, scaled for comparison.")
    ] = None,
    source: Annotated[
        list[str] | None,
        typer.Option(help="SCENARIO=FILE, for each scenario that is to read a file or hub id."),
    ] = None,
    questions: Questions = None,
    into: Annotated[
        Path | None, typer.Option(help="Folder for the tables; default runs/NAME-sweep.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say how many responses it takes, and how long.")
    ] = False,
    resume: Resume = True,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Scale the H-Neurons by α, and count how often the model over-complies.

    The study's neurons are found first, if they were not yet. Every response is kept: another α,
    scenario or precision asks only what was not asked before.
    """
    from harness.experiments.pipeline import Pipeline
    from harness.experiments.sweep.forecast import forecast
    from harness.experiments.sweep.outcome import summary, write
    from harness.experiments.sweep.steering import Steering
    from harness.scenarios import SCENARIOS
    from harness.store.places import cache_folder
    from harness.store.progress import Progress
    from harness.store.store import Store
    from harness.studies.study import SweepSection

    plan = planned(study, model, precisions, questions)
    given = {
        "scenarios": None if scenarios is None else scenarios.split(","),
        "alphas": None if alphas is None else alphas.split(","),
        "trials": trials,
        "draws": draws,
        "sources": None if source is None else _sources(source),
    }
    changed = {key: value for key, value in given.items() if value is not None}
    if scenarios is not None and source is None:  # the study's files of the scenarios left out
        kept = {*scenarios.split(","), *(set(plan.sweep.sources) - set(SCENARIOS))}
        changed["sources"] = {k: v for k, v in plan.sweep.sources.items() if k in kept}
    section = SweepSection.of(plan.sweep.model_dump(exclude_unset=True) | changed, "the options")
    plan = plan.changed(sweep=section)
    folder = tables_folder(into, f"{plan.name}-sweep")
    store = Store(cache_folder() / "store", fresh=not resume)
    with Progress(quiet=quiet) as progress, Pipeline(plan, store, progress) as pipeline:
        if dry_run:
            expected = forecast(pipeline)
            if as_json:
                print_json(expected.model_dump())
            else:
                out.print(str(expected), highlight=False)
            return
        steering = Steering(pipeline)
        tables = steering.tables()
        facts = write(folder, steering, tables)
    if as_json:
        rows = {name: [row.model_dump() for row in table] for name, table in tables.items()}
        print_json({"folder": str(folder), "tables": rows, "provenance": facts})
    else:
        out.print(summary(tables))
        err.print(f"All tables: {folder}/tables.md")


def _sources(given: list[str]) -> dict[str, str]:
    """The file of each scenario. Raises HQError for one that is named twice."""
    sources: dict[str, str] = {}
    for name, path in map(_pair, given):
        if name in sources:
            raise HQError(f"--source names {name} twice: give it one file.")
        sources[name] = path
    return sources


def _pair(text: str) -> tuple[str, str]:
    name, equals, path = text.partition("=")
    if not equals or not path:
        raise HQError(f"--source {text} names no file: write SCENARIO=FILE, as falseqa=rows.jsonl.")
    return name, path
