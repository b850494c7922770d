"""Stage `map`: whether a precision's neurons are the checkpoint's, told from the loaded weights."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from safetensors.numpy import load_file, save_file

from harness.stages import gguf, pack
from harness.store.node import Node, Output, Stage, Work
from harness.store.progress import Task
from harness.store.runner import Outputs
from hq.backends.base import Backend
from hq.backends.permuted import PermutedBackend
from hq.errors import HQError
from hq.models.alignment import ALIGNED, MISSING, LayerMap, map_model
from hq.models.ffn_weights import FFN, of_checkpoint
from hq.neurons.neuron_set import NeuronSet
from hq.precisions import BACKEND_OF
from hq.precisions.packed import recipe_of

if TYPE_CHECKING:
    from harness.stages.materials import Materials

LAYERS_FILE = "layers.csv"
_ARRAYS_FILE = "neurons.safetensors"
_NAMED = 3  # layers that a refusal names


class NeuronMap(NamedTuple):
    """Where a precision has each neuron of the source."""

    places: Int[np.ndarray, "layer d_ff"]  # MISSING for a neuron that is nowhere
    found: Bool[np.ndarray, "layer d_ff"]
    factors: Float[np.ndarray, "layer d_ff"]  # this precision's h over the source's

    @property
    def identical(self) -> bool:
        """Whether every neuron is found at its own place."""
        return bool(self.found.all() and (self.places == np.arange(self.places.shape[1])).all())


class LayerRow(NamedTuple):
    """One line of layers.csv."""

    layer: int
    relation: str
    bits: float  # of a stored weight, scales included
    error: float
    found: float  # share of neurons
    h_low: float  # 5% and 95% of the factors
    h_high: float
    note: str


def node(m: "Materials", precision: str) -> Node:
    """Where a precision has the checkpoint's neurons."""
    return Node(
        STAGE,
        m.models.parameters(precision),
        files(m, precision),
        precision,
        units=m.model.n_layers,
        unit="layers",
        disk=13 * m.model.n_neurons,
        memory=m.resident(precision),
    )


def files(m: "Materials", precision: str) -> dict[str, Output]:
    """The GGUF file or packed checkpoint that hq makes for a precision, as an input."""
    if m.models.given(precision) is not None:
        return {}
    if recipe_of(precision):
        return {"file": pack.node(m, precision).output()}
    return {} if BACKEND_OF[precision] == "torch" else {"file": gguf.node(m, precision).output()}


def model_inputs(m: "Materials", precision: str) -> dict[str, Output]:
    """What any node that runs the model at a precision takes."""
    return {"map": node(m, precision).output(), **files(m, precision)}


def backend(work: "Work[Materials]") -> Backend:
    """The model at the node's precision, with its neurons at the indices of the checkpoint."""
    return at(work.materials, work.inputs, str(work.node.precision))


def opened(m: "Materials", outputs: Outputs, precision: str) -> Backend:
    """The same outside of a node, once `model_inputs` are finished."""
    inputs = {name: outputs[o.node] for name, o in model_inputs(m, precision).items()}
    return at(m, inputs, precision)


def at(m: "Materials", inputs: Mapping[str, Path], precision: str) -> Backend:
    """The model at a precision, from the folders of `model_inputs`."""
    return mapped(inputs["map"], _open(m, inputs, precision))


def mapped(folder: Path, backend: Backend) -> Backend:
    """A backend with its neurons at the indices of the checkpoint, by the map in `folder`."""
    neurons = read(folder)
    if neurons.identical:
        return backend
    return PermutedBackend(backend, neurons.places, neurons.found)


def _open(m: "Materials", inputs: Mapping[str, Path], precision: str) -> Backend:
    folder = inputs.get("file")
    if folder is None:
        return m.models.open(precision)
    return m.models.open(precision, folder / (pack.FOLDER if recipe_of(precision) else gguf.FILE))


def make(work: "Work[Materials]") -> None:
    """Write layers.csv, and each neuron's index and factor.

    Raises HQError if the numbers of layers differ.
    """
    m, precision = work.materials, str(work.node.precision)
    with work.task(m.model.n_layers, "layers") as task:
        variant = _open(m, work.inputs, precision).ffns()
        build(work.folder, of_checkpoint(m.path), variant, task)


def build(folder: Path, source: Sequence[FFN], variant: Sequence[FFN], task: Task) -> None:
    """Write the files of the stage. Raises HQError if the numbers of layers differ."""
    if len(source) != len(variant):
        raise HQError(f"It has {len(variant)} layers, not {len(source)}: it is another model.")
    maps: list[LayerMap] = []
    for layer_map in map_model(source, variant):
        maps.append(layer_map)
        task.advance(1)
    _write(folder, maps)


def verify(node: Node, folder: Path) -> None:
    """Raises HQError if neurons of a precision are not the checkpoint's."""
    require(folder, str(node.precision))


def _write(folder: Path, maps: Sequence[LayerMap]) -> None:
    with (folder / LAYERS_FILE).open("w", newline="", encoding="utf-8") as file:
        lines = csv.writer(file, lineterminator="\n")
        lines.writerow(LayerRow._fields)
        lines.writerows(map(_row, maps))
    arrays = {
        name: np.stack([getattr(m, name).numpy() for m in maps]) for name in NeuronMap._fields
    }
    save_file(arrays, folder / _ARRAYS_FILE)


def _row(one: LayerMap) -> LayerRow:
    low, high = quantiles(one.places.numpy(), one.factors.numpy())
    return LayerRow(
        layer=one.layer,
        relation=str(one.relation),
        bits=round(one.bits, 3),
        error=round(one.error, 6),
        found=round(float(one.found.float().mean()), 6),
        h_low=round(low, 6),
        h_high=round(high, 6),
        note=one.note,
    )


def quantiles(
    places: Int[np.ndarray, "*layer d_ff"], factors: Float[np.ndarray, "*layer d_ff"]
) -> tuple[float, float]:
    """5% and 95% of the factors of neurons that have a place."""
    low, high = np.quantile(factors[places != MISSING], [0.05, 0.95])
    return float(low), float(high)


def read(folder: Path) -> NeuronMap:
    """What a finished stage holds."""
    return NeuronMap(**load_file(folder / _ARRAYS_FILE))


def rows(folder: Path) -> list[LayerRow]:
    """A line a layer."""
    with (folder / LAYERS_FILE).open(newline="", encoding="utf-8") as file:
        lines = csv.DictReader(file)
        kinds = LayerRow.__annotations__
        return [LayerRow(**{k: kinds[k](v) for k, v in line.items()}) for line in lines]


def write_layers(into: Path, folders: Mapping[str, Path]) -> None:
    """The lines of several precisions in one file."""
    with into.open("w", newline="", encoding="utf-8") as file:
        lines = csv.writer(file, lineterminator="\n")
        lines.writerow(("precision", *LayerRow._fields))
        for precision, folder in folders.items():
            lines.writerows((precision, *row) for row in rows(folder))


def require(folder: Path, precision: str, neurons: NeuronSet | None = None) -> None:
    """Raises HQError where some layer's neurons are not the source's, naming the layers.

    With `neurons`, each of that set has to be found too: elsewhere, a few may have been pruned.
    """
    refused = [row for row in rows(folder) if row.relation not in ALIGNED]
    if refused:
        named = ", ".join(f"{row.layer} ({row.note})" for row in refused[:_NAMED])
        more = f" and {len(refused) - _NAMED} more" if len(refused) > _NAMED else ""
        raise HQError(
            f"At {precision} neurons are not those of the source in {len(refused)} layers: "
            f"{refused[0].relation}; layers {named}{more}. Indices found on the source mean "
            "nothing there: identify neurons on that checkpoint itself."
        )
    if neurons is not None:
        absent = np.flatnonzero(~read(folder).found)
        neurons.require_present(frozenset(absent.tolist()), precision)


STAGE = Stage("map", make, sources=("hq.backends.opening",), verify=verify)
