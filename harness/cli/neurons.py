"""`hq neurons`: the content of a NeuronSet file, and the test of the formal definition."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from harness.cli.app import AsJson, Quiet, app, out, print_json
from harness.cli.study import (
    DEFAULT_STUDY,
    Into,
    ModelOption,
    Name,
    Overrides,
    Precisions,
    Questions,
    Resume,
    execute,
    planned,
)
from hq.neurons.neuron_set import NeuronSet

neurons_app = typer.Typer(
    no_args_is_help=True, help="Show NeuronSet files; test neurons against the formal definition."
)
app.add_typer(neurons_app, name="neurons")


@neurons_app.command("show")
def neurons_show(
    file: Annotated[
        Path, typer.Argument(help="A neurons.json, as `hq study run` or `hq identify` writes it.")
    ],
    as_json: AsJson = False,
) -> None:
    """Show a set's neurons with their weights, its model, and how the neurons were identified.

    Example: `hq neurons show runs/smollm2-knowledge/neurons.json`.
    """
    neurons = NeuronSet.load(file)
    if as_json:
        print_json(json.loads(neurons.model_dump_json()))
        return
    model = neurons.model
    out.print(
        f"{len(neurons.positive)} H-Neurons among {len(neurons.neurons)} with a weight, of "
        f"{model.n_neurons:,} in {model.name} ({model.architecture}, {model.fingerprint})"
    )
    out.print(f"CETT `{neurons.cett}` over the {neurons.tokens} span, labels {neurons.labels}")
    for values in (neurons.thresholds, neurons.provenance):
        out.print(", ".join(f"{name} = {value}" for name, value in values.items()))
    experts = model.space.has_experts
    routed = ("expert", "responses routed") if experts else ("", "")
    columns = ("layer", routed[0], "index", "weight", "mean CETT", routed[1], "H-Neuron")
    table = Table(*filter(None, columns))
    for neuron in sorted(neurons.neurons, key=lambda n: -n.weight):
        expert = ("—" if neuron.expert is None else str(neuron.expert),) if experts else ()
        share = ("—" if neuron.routed is None else f"{neuron.routed:.1%}",) if experts else ()
        weights = f"{neuron.weight:+.4f}", f"{neuron.mean:.2e}"
        mark = "yes" if neuron.weight > 0 else ""
        table.add_row(str(neuron.layer), *expert, str(neuron.index), *weights, *share, mark)
    out.print(table)


@neurons_app.command("test")
def neurons_test(
    study: Name = DEFAULT_STUDY,
    model: ModelOption = None,
    precisions: Precisions = None,
    questions: Questions = None,
    overrides: Overrides = None,
    into: Into = None,
    resume: Resume = True,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Test which neurons meet the formal definition; same as hq run -e conditions.

    An H-Neuron has a positive weight, an AUROC of its CETT above tau on the study's samples, and
    one above tau_cross in a second scenario: the study `other` of the section [conditions].

    Example: `hq neurons test --precisions fp16,nf4 --set conditions.other=smollm2-facts`.
    """
    chosen = planned(study, model, precisions, questions, overrides)
    execute(chosen, "conditions", into, resume, quiet, as_json)
