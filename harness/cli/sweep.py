"""`hq sweep`: over-compliance while the H-Neurons are scaled, at each precision."""

from typing import TYPE_CHECKING, Annotated

import typer

from harness.cli.app import AsJson, Quiet, app, out, print_json
from harness.cli.study import (
    DEFAULT_STUDY,
    Concurrency,
    EndpointOption,
    Into,
    ModelOption,
    Name,
    Overrides,
    Precisions,
    Questions,
    Responses,
    Resume,
    Sampler,
    SamplerOption,
    execute,
    planned,
)
from hq.errors import HQError

if TYPE_CHECKING:
    from harness.studies.study import Study


@app.command()
def sweep(
    study: Name = DEFAULT_STUDY,
    model: ModelOption = None,
    precisions: Precisions = None,
    scenarios: Annotated[
        str | None,
        typer.Option(
            help="Comma-separated: facts,sycophancy,faitheval,falseqa,jailbreak,… Default: the "
            "study's own questions, sycophancy and faitheval."
        ),
    ] = None,
    judge: Annotated[
        str | None,
        typer.Option(
            help="Judge of the trials: rules (default), or llm, an endpoint set by the environment "
            "variables HQ_JUDGE_URL, HQ_JUDGE_MODEL and (optional) HQ_JUDGE_KEY."
        ),
    ] = None,
    alphas: Annotated[
        str | None,
        typer.Option(help="Comma-separated values of α, including 1. Default: 0,0.5,1,1.5,2,3."),
    ] = None,
    trials: Annotated[
        int | None,
        typer.Option(min=8, help="Largest number of trials per kind of each scenario (400)."),
    ] = None,
    draws: Annotated[
        int | None,
        typer.Option(min=2, help="Draws of matched neurons, scaled for comparison (20)."),
    ] = None,
    source: Annotated[
        list[str] | None,
        typer.Option(help="SCENARIO=FILE, a file or hub id; can be given several times."),
    ] = None,
    questions: Questions = None,
    responses: Responses = None,
    sampler: SamplerOption = None,
    endpoint: EndpointOption = None,
    concurrency: Concurrency = None,
    overrides: Overrides = None,
    into: Into = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the number of responses and the expected time.")
    ] = False,
    resume: Resume = True,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Measure over-compliance while the H-Neurons are scaled by α; same as hq run -e sweep.

    The study's neurons are identified first, if necessary. Trials on questions to which the model
    gave right and wrong answers when it was sampled come first; none is related to a sample. All
    responses are stored: another α, scenario or precision generates only new responses.
    """
    from harness.experiments.run import validate_sections

    by = Sampler(sampler, endpoint, concurrency)
    chosen = planned(study, model, precisions, questions, overrides, responses, by)
    given = {
        "scenarios": None if scenarios is None else scenarios.split(","),
        "alphas": None if alphas is None else alphas.split(","),
        "judge": judge,
        "trials": trials,
        "draws": draws,
        "sources": None if source is None else _sources(source),
    }
    changed = {key: value for key, value in given.items() if value is not None}
    section = chosen.sections.get("sweep", {})
    if scenarios is not None and source is None:  # only files of swept scenarios
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
    """Return the files of these scenarios, and of unknown ones, which are rejected later."""
    from harness.scenarios.base import SCENARIOS

    return {k: v for k, v in sources.items() if k in scenarios or k not in SCENARIOS}


def _sources(given: list[str]) -> dict[str, str]:
    """Return the file of each scenario. Raises HQError if a scenario has two."""
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
