"""`hq sweep`: what scaling the H-Neurons does to over-compliance, at each precision."""

from typing import TYPE_CHECKING, Annotated

import typer

from harness.cli.app import AsJson, Quiet, app, out, print_json
from harness.cli.study import (
    DEFAULT_STUDY,
    Into,
    Model,
    Name,
    Overrides,
    Precisions,
    Questions,
    Resume,
    execute,
    planned,
)
from hq.errors import HQError

if TYPE_CHECKING:
    from harness.studies.study import Study


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
    overrides: Overrides = None,
    into: Into = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say how many responses it takes, and how long.")
    ] = False,
    resume: Resume = True,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Scale the H-Neurons by α, and count how often the model over-complies: `hq run -e sweep`.

    The study's neurons are identified first if that was not done. Every response is kept: another
    α, scenario or precision asks only what was not asked before.
    """
    from harness.experiments.run import validate_sections

    chosen = planned(study, model, precisions, questions, overrides)
    given = {
        "scenarios": None if scenarios is None else scenarios.split(","),
        "alphas": None if alphas is None else alphas.split(","),
        "trials": trials,
        "draws": draws,
        "sources": None if source is None else _sources(source),
    }
    changed = {key: value for key, value in given.items() if value is not None}
    section = chosen.sections.get("sweep", {})
    if scenarios is not None and source is None:  # the study's files of the scenarios left out
        changed["sources"] = _kept_sources(section.get("sources", {}), scenarios.split(","))
    sections = chosen.sections | {"sweep": {**section, **changed}}
    chosen = chosen.changed(sections=sections)
    validate_sections(chosen)
    if dry_run:
        _forecast(chosen, as_json)
    else:
        execute(chosen, "sweep", into, resume, quiet, as_json)


def _forecast(study: "Study", as_json: bool) -> None:
    from harness.experiments.sweep.forecast import forecast
    from harness.experiments.sweep.plan import SweepPlan
    from harness.stages.materials import Materials

    with Materials(study) as m:
        m.of(SweepPlan).check()
        m.check()
        expected = forecast(m)
    if as_json:
        print_json(expected.model_dump())
    else:
        out.print(str(expected), highlight=False)


def _kept_sources(sources: dict[str, str], scenarios: list[str]) -> dict[str, str]:
    """The files of these scenarios, and of unknown ones, which are reported."""
    from harness.scenarios.base import SCENARIOS

    return {k: v for k, v in sources.items() if k in scenarios or k not in SCENARIOS}


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
