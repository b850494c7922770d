"""`hq responses export`: the responses of a study as a file, for `hq run --responses`."""

from pathlib import Path
from typing import Annotated

import typer

from harness.cli.app import Quiet, app, err
from harness.cli.study import (
    DEFAULT_STUDY,
    Concurrency,
    EndpointOption,
    ModelOption,
    Name,
    Overrides,
    Questions,
    Sampler,
    SamplerOption,
    planned,
)
from hq.errors import HQError

responses_app = typer.Typer(no_args_is_help=True, help="Record the responses of a study.")
app.add_typer(responses_app, name="responses")


@responses_app.command("export")
def export_command(
    into: Annotated[
        Path, typer.Option(help="The file to write, as responses.jsonl.gz; it is replaced.")
    ],
    study: Name = DEFAULT_STUDY,
    model: ModelOption = None,
    questions: Questions = None,
    sampler: SamplerOption = None,
    endpoint: EndpointOption = None,
    concurrency: Concurrency = None,
    overrides: Overrides = None,
    quiet: Quiet = False,
) -> None:
    """Write the responses of a study to a file, from which `hq run --responses` reads them.

    Missing responses are sampled first; a finished run has all of them. The file has the text and
    the token ids of every response with its verdict, but no prompt and no question.

    Example: `hq responses export smollm2-knowledge --into responses.jsonl.gz`, then
    `hq run smollm2-knowledge --responses responses.jsonl.gz`.
    """
    from harness.stages import recorded, responses
    from harness.stages.materials import Materials
    from harness.store.opening import open_store
    from harness.store.progress import Progress
    from harness.store.runner import Runner

    by = Sampler(sampler, endpoint, concurrency)
    chosen = planned(study, model, None, questions, overrides, None, by)
    if chosen.responses:
        raise HQError(
            f"The study {chosen.name} reads its responses from {chosen.responses}: copy that file, "
            "or remove `responses` from the study."
        )
    if into.is_dir():
        raise HQError(f"{into} is a folder: name the file to write.")
    store = open_store()
    with Progress(quiet=quiet) as progress, Materials(chosen) as m:
        m.check()
        node = responses.sampled(m)
        folder = Runner(store, progress, m).run([node])[node]
        count = recorded.export(m, folder, into)
    size = into.stat().st_size / 1000
    err.print(f"Responses to {count:,} questions: {into} ({size:,.0f} kB)", highlight=False)
