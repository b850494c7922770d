"""`hq lora`: suppression as an adapter that other runtimes load."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from harness.cli.app import app, err
from hq.errors import HQError

if TYPE_CHECKING:
    from hq.neurons.neuron_set import NeuronSet


@app.command()
def lora(
    neurons: Annotated[Path, typer.Option(help="A neurons.json of the same model.")],
    into: Annotated[
        Path,
        typer.Option(help="What to write: FILE.gguf for a GGUF model, a folder for a checkpoint."),
    ],
    model: Annotated[
        str, typer.Option(help="A GGUF file, a dense checkpoint, a hub id, or `smollm2`.")
    ] = "smollm2",
    alpha: Annotated[
        float, typer.Option(min=0, help="α₀, which scales the H-Neurons at the adapter's scale 1.")
    ] = 0.0,
) -> None:
    """The H-Neurons scaled by α, as a LoRA for runtimes that know nothing of hq.

    hq lora --neurons neurons.json --model model.gguf --into adapter.gguf

    llama-server -m model.gguf --lora adapter.gguf

    The adapter's scale s moves α(s) = 1 + s(α₀ - 1): at 0 the model is itself,
    at 1 it has α₀. With α₀ = 0, s = 1 - α. llama-server takes it at
    /lora-adapters, or with a request.

    A GGUF file gets a GGUF adapter with the file's own quantized rows in it: make
    it for the very file that it runs with. A dense checkpoint gets a PEFT folder,
    for transformers and vLLM.
    """
    from harness.models.sources import gguf_or_none

    if into.exists():
        raise HQError(f"{into} is there already: name another, or remove it.")
    gguf = gguf_or_none(model)
    if (into.suffix.lower() == ".gguf") != (gguf is not None):
        wanted = "a folder, for a PEFT adapter" if gguf is None else "FILE.gguf, for a GGUF adapter"
        raise HQError(f"{into} does not fit the model {model}: let --into be {wanted}.")
    if gguf is None:
        found = _of_checkpoint(model, neurons, alpha, into)
    else:
        found = _of_gguf(gguf, neurons, alpha, into)
    err.print(
        f"{into}: {len(found.positive)} H-Neurons in {len(found.layers)} layers; {_law(alpha)}"
    )


def _of_gguf(model: Path, neurons: Path, alpha: float, into: Path) -> "NeuronSet":
    from hq.gguf.file import GGUFFile
    from hq.neurons.neuron_set import NeuronSet
    from hq.suppress.lora.gguf import write

    base = GGUFFile(model)
    _require_unbaked(model)
    found = NeuronSet.load(neurons, base.identity)
    write(base, _factors(found, neurons, alpha), into)
    return found


def _of_checkpoint(model: str, neurons: Path, alpha: float, into: Path) -> "NeuronSet":
    from hq.models.checkpoint import checkpoint_identity, resolve
    from hq.neurons.neuron_set import NeuronSet
    from hq.suppress.lora.peft import require_dense, write

    path = resolve(model)
    _require_unbaked(path)
    require_dense(path)  # a quantized one has another fingerprint, which explains nothing
    found = NeuronSet.load(neurons, checkpoint_identity(path))
    write(path, found.model, _factors(found, neurons, alpha), into)
    return found


def _require_unbaked(path: Path) -> None:
    """HQError for a model into which α was baked: the adapter's would come on top."""
    from hq.suppress.bake.baking import open_target

    if open_target(path).record is not None:
        raise HQError(f"{path} has α baked in already: `hq bake --undo` it first.")


def _factors(found: "NeuronSet", source: Path, alpha: float) -> dict[tuple[int, int], float]:
    """α for each H-Neuron. HQError for a set without one."""
    if not found.positive:
        raise HQError(f"{source} has no H-Neuron: no weight is above zero.")
    return {(neuron.layer, neuron.index): alpha for neuron in found.positive}


def _law(alpha: float) -> str:
    """What a scale makes of α."""
    return "at scale s, α = 1 - s" if alpha == 0 else f"at scale s, α = 1 {alpha - 1:+g}·s"
