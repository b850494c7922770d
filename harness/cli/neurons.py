"""`hq neurons show`: the content of a NeuronSet file."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from harness.cli.app import AsJson, app, out, print_json
from hq.neurons.neuron_set import NeuronSet

neurons_app = typer.Typer(no_args_is_help=True, help="Show NeuronSet files.")
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
    table = Table("layer", "index", "weight", "mean CETT", "H-Neuron")
    for neuron in sorted(neurons.neurons, key=lambda n: -n.weight):
        mark = "yes" if neuron.weight > 0 else ""
        row = (neuron.layer, neuron.index, f"{neuron.weight:+.4f}", f"{neuron.mean:.2e}", mark)
        table.add_row(*map(str, row))
    out.print(table)
