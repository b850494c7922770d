"""`hq lora`: write suppression as an adapter that other runtimes load."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from harness.cli.app import app, err
from hq.errors import HQError

if TYPE_CHECKING:
    from hq.neurons.factors import Factors
    from hq.neurons.neuron_set import NeuronSet


@app.command()
def lora(
    neurons: Annotated[Path, typer.Option(help="A neurons.json of the same model.")],
    into: Annotated[
        Path,
        typer.Option(help="The path to write: FILE.gguf for a GGUF model, a folder otherwise."),
    ],
    model: Annotated[
        str, typer.Option(help="A GGUF file, a dense checkpoint, a hub id, or `smollm2`.")
    ] = "smollm2",
    alpha: Annotated[
        float, typer.Option(min=0, help="α₀, the factor of the H-Neurons at adapter scale 1.")
    ] = 0.0,
) -> None:
    """Write a LoRA that scales the H-Neurons, for runtimes without hq.

    hq lora --neurons neurons.json --model model.gguf --into adapter.gguf

    llama-server -m model.gguf --lora adapter.gguf

    The adapter's scale s sets α(s) = 1 + s(α₀ - 1): the model is unchanged at
    s = 0, and α is α₀ at s = 1. With α₀ = 0, s = 1 - α. llama-server sets s at
    /lora-adapters, or per request.

    For a GGUF file it is a GGUF adapter, which contains quantized rows of that
    file, so use it with the same file. For a dense checkpoint it is a PEFT folder,
    for transformers and vLLM.
    """
    from harness.models.sources import gguf_or_none

    if into.exists():
        raise HQError(f"{into} exists already: name another path, or remove it.")
    gguf = gguf_or_none(model)
    if (into.suffix.lower() == ".gguf") != (gguf is not None):
        wanted = "a folder, for a PEFT adapter" if gguf is None else "FILE.gguf, for a GGUF adapter"
        raise HQError(f"{into} does not fit the model {model}: let --into be {wanted}.")
    if gguf is None:
        neuron_set = _write_for_checkpoint(model, neurons, alpha, into)
    else:
        neuron_set = _write_for_gguf(gguf, neurons, alpha, into)
    count, layers = len(neuron_set.positive), len(neuron_set.layers)
    err.print(f"{into}: {count} H-Neurons in {layers} layers; {_alpha_of_scale(alpha)}")


def _write_for_gguf(model: Path, neurons: Path, alpha: float, into: Path) -> "NeuronSet":
    from hq.gguf.file import GGUFFile
    from hq.neurons.neuron_set import NeuronSet
    from hq.suppress.lora.gguf import write_gguf_adapter

    base = GGUFFile(model)
    _require_unbaked(model)
    neuron_set = NeuronSet.load(neurons, base.identity)
    write_gguf_adapter(base, _factors(neuron_set, neurons, alpha), into)
    return neuron_set


def _write_for_checkpoint(model: str, neurons: Path, alpha: float, into: Path) -> "NeuronSet":
    from hq.models.checkpoint import checkpoint_identity, resolve
    from hq.neurons.neuron_set import NeuronSet
    from hq.suppress.lora.peft import require_dense_base, write_peft_adapter

    path = resolve(model)
    _require_unbaked(path)
    require_dense_base(path)  # before fingerprints are compared, which would give another error
    neuron_set = NeuronSet.load(neurons, checkpoint_identity(path))
    write_peft_adapter(path, neuron_set.model, _factors(neuron_set, neurons, alpha), into)
    return neuron_set


def _require_unbaked(path: Path) -> None:
    """Raises HQError for a baked model, as the adapter would scale its neurons a second time."""
    from hq.suppress.bake.baking import open_target

    if open_target(path).record is not None:
        raise HQError(f"{path} has α baked in already: restore it with `hq bake --undo` first.")


def _factors(neuron_set: "NeuronSet", path: Path, alpha: float) -> "Factors":
    """α for each H-Neuron. Raises HQError for a set without H-Neurons."""
    if not neuron_set.positive:
        raise HQError(f"{path} has no H-Neuron: no weight is above zero.")
    return {neuron.position: alpha for neuron in neuron_set.positive}


def _alpha_of_scale(alpha: float) -> str:
    """α as a function of the adapter's scale s."""
    return "at scale s, α = 1 - s" if alpha == 0 else f"at scale s, α = 1 {alpha - 1:+g}·s"
