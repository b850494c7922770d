"""`hq origin`: whether the H-Neurons of a tuned model are in its base model."""

import json
from typing import Annotated

import typer

from harness.cli.app import AsJson, Quiet, app
from harness.cli.study import (
    DEFAULT_STUDY,
    Into,
    Name,
    Overrides,
    Precisions,
    Questions,
    Responses,
    Resume,
    execute,
    planned,
)


@app.command()
def origin(
    study: Name = DEFAULT_STUDY,
    model: Annotated[
        str | None,
        typer.Option(help="The tuned model: a checkpoint folder, GGUF file or hub id."),
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(help="The model that it was tuned from, likewise; default: base in [origin]."),
    ] = None,
    precisions: Precisions = None,
    questions: Questions = None,
    responses: Responses = None,
    overrides: Overrides = None,
    into: Into = None,
    resume: Resume = True,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Compare a tuned model with its base model; same as hq run -e origin.

    The tuned model's NeuronSet scores the base model's own responses at each precision. Then the
    weights of each neuron are compared between base and tuned (rank of the change: small rank =
    large change), and between the base and its precisions. `--responses` are the tuned model's; the
    base is always sampled.

    Example: `hq origin --model path/to/tuned --base smollm2 --precisions fp16,nf4`.
    """
    given = [] if base is None else [f"origin.base={json.dumps(base)}"]
    chosen = planned(study, model, precisions, questions, [*(overrides or []), *given], responses)
    execute(chosen, "origin", into, resume, quiet, as_json)
