"""`hq finetune`: train a model to use its H-Neurons less, and measure what changed."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from harness.cli.app import AsJson, Quiet, app
from harness.cli.study import (
    DEFAULT_STUDY,
    Concurrency,
    EndpointOption,
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
def finetune(
    study: Name = DEFAULT_STUDY,
    model: ModelOption = None,
    precisions: Precisions = None,
    questions: Questions = None,
    responses: Responses = None,
    sampler: SamplerOption = None,
    endpoint: EndpointOption = None,
    concurrency: Concurrency = None,
    overrides: Overrides = None,
    into: Annotated[
        Path | None,
        typer.Option(
            help="Folder for the tables, the adapter and the merged model; default: "
            "runs/NAME-finetune."
        ),
    ] = None,
    resume: Resume = True,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Train a LoRA that penalises the H-Neurons, with controls; same as hq run -e finetune.

    The study's neurons are identified first, if necessary. Three LoRAs are trained on the same
    texts: with a penalty on the H-Neurons, on matched neurons, and on none. Then every scenario,
    the probe, re-identified neurons and the capability are measured before and after, at each
    precision. Settings are the section [finetune] of the study: --set finetune.steps=50.

    After a kill, the same command continues from the last checkpoint, and ends with the same
    adapter. The folder then contains adapter/ (PEFT), adapter.gguf (llama.cpp), model/ (merged)
    and README.md (model card). Needs hq[finetune].
    """
    by = Sampler(sampler, endpoint, concurrency)
    chosen = planned(study, model, precisions, questions, overrides, responses, by)
    _require_own_folder(chosen, into or Path("runs") / f"{chosen.name}-finetune")
    execute(chosen, "finetune", into, resume, quiet, as_json)


def _require_own_folder(study: "Study", folder: Path) -> None:
    """Raises HQError if the folder has the results of another run; precisions may be added."""
    from harness.experiments import EXPERIMENTS
    from harness.experiments.run import definition_of
    from harness.tables.provenance import PROVENANCE_FILE, read_provenance

    if not (folder / PROVENANCE_FILE).is_file():
        return
    found = read_provenance(folder)
    kind = EXPERIMENTS["finetune"]
    wanted = definition_of(study) | kind.definition(study)
    present = found.get("definition", {})
    differs = [k for k in wanted if k != "precisions" and wanted[k] != present.get(k)]
    if found.get("kind") != kind.name or differs:
        what = f"of other settings ({', '.join(differs)})" if differs else "of another kind"
        raise HQError(
            f"{folder} has the results of a run {what}: name another folder with --into, or remove "
            "it."
        )
