"""`hq neurons show`: a NeuronSet, for people."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from harness.cli.app import AsJson, app, out, print_json
from hq.neurons.neuron_set import NeuronSet

neurons_app = typer.Typer(no_args_is_help=True, help="Look at NeuronSet files.")
app.add_typer(neurons_app, name="neurons")


@neurons_app.command()
def show(
    file: Annotated[Path, typer.Argument(help="A neurons.json.")], as_json: AsJson = False
) -> None:
    """Which neurons, with which weights, of which model, and how they were found."""
    found = NeuronSet.load(file)
    if as_json:
        print_json(json.loads(found.model_dump_json()))
        return
    model = found.model
    out.print(
        f"{len(found.positive)} H-Neurons among {len(found.neurons)} with a weight, of "
        f"{model.n_neurons:,} in {model.name} ({model.architecture}, {model.fingerprint})"
    )
    out.print(f"CETT `{found.cett}` over the {found.tokens} span, labels {found.labels}")
    for facts in (found.thresholds, found.provenance):
        out.print(", ".join(f"{name} = {value}" for name, value in facts.items()))
    table = Table("layer", "index", "weight", "mean CETT", "H-Neuron")
    for neuron in sorted(found.neurons, key=lambda n: -n.weight):
        mark = "yes" if neuron.weight > 0 else ""
        row = (neuron.layer, neuron.index, f"{neuron.weight:+.4f}", f"{neuron.mean:.2e}", mark)
        table.add_row(*map(str, row))
    out.print(table)
