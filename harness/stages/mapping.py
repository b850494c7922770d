"""Stage `map`: which neuron of the checkpoint each neuron of a precision is, from its weights."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TextIO

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped
from safetensors.numpy import load_file, save_file

from harness.stages import checkpoint, gguf, pack, streaming
from harness.store.node import Node, Output, Stage, Work
from harness.store.progress import Task
from harness.store.runner import Outputs
from harness.studies.study import REFERENCE
from hq.backends.base import Backend
from hq.backends.permuted import PermutedBackend
from hq.errors import HQError
from hq.models.alignment import ALIGNED, MISSING, LayerMap, map_model
from hq.models.ffn_weights import FFN, of_checkpoint
from hq.neurons.neuron_set import NeuronSet
from hq.neurons.space import NeuronBlock, NeuronSpace
from hq.precisions import BACKEND_OF
from hq.precisions.gguf import GGUF_SOURCE, file_precision
from hq.precisions.packed import recipe_of

if TYPE_CHECKING:
    from harness.stages.materials import Materials

LAYERS_FILE = "layers.csv"
_ARRAYS_FILE = "neurons.safetensors"
_NAMED = 3  # layers that a message lists


class NeuronMap(NamedTuple):
    """The index of each neuron of the source at a precision."""

    permutation: Int[np.ndarray, " p"]  # index of each source neuron in its block, or MISSING
    matched: Bool[np.ndarray, " p"]
    factors: Float[np.ndarray, " p"]  # h at this precision ÷ h of the source
    widths: Int[np.ndarray, " block"]

    @property
    def identical(self) -> bool:
        """Whether every neuron matches at its own index."""
        indices = np.concatenate([np.arange(width) for width in self.widths])
        return bool(self.matched.all() and (self.permutation == indices).all())

    def by_layer(self, values: Shaped[np.ndarray, " p"]) -> list[Shaped[np.ndarray, " d_ff"]]:
        """Split values of all neurons into one array per layer, or per expert of each layer."""
        return np.split(values, np.cumsum(self.widths)[:-1])


_KEYS = {"permutation": "places", "matched": "found", "factors": "factors"}  # keys in the file


class LayerRow(NamedTuple):
    """One line of layers.csv: a layer, or one expert of it."""

    layer: int
    relation: str
    bits: float  # of a stored weight, scales included
    error: float
    found: float  # share of neurons
    h_low: float  # 5% and 95% of the factors
    h_high: float
    note: str
    expert: int | None = None  # a column of mixtures of experts only

    @property
    def name(self) -> str:
        """The layer and the expert, for messages."""
        return f"{self.layer}" + ("" if self.expert is None else f", expert {self.expert}")


def node(m: "Materials", precision: str, making: int = 0) -> Node:
    """Declare the map of the checkpoint's neurons to those of a precision, or of a making of it.

    A map depends on weights only, so precisions that run one file in several ways share it. Maps of
    the checkpoint and of given files run first, as they may reject the study.
    """
    precision = file_precision(precision)
    given = m.models.given(precision) is not None
    return Node(
        STAGE,
        m.models.parameters(precision),
        files(m, precision, making),
        precision,
        pack.about(making, m.model_scope),
        units=len(m.model.space.blocks),
        unit="layers",
        disk=13 * m.model.n_neurons,
        memory=streaming.memory(m, precision),
        first=given or precision in (REFERENCE, GGUF_SOURCE),
        materials=m,
    )


def files(m: "Materials", precision: str, making: int = 0) -> dict[str, Output]:
    """Return what hq makes for a precision, as inputs: a checkpoint, GGUF or packed file."""
    if m.models.given(precision) is not None:
        return {}
    made = checkpoint.inputs(m)
    if recipe_of(precision):
        return made | {"file": pack.node(m, precision, making).output()}
    if BACKEND_OF[precision] == "torch":
        return made
    return made | {"file": gguf.node(m, precision).output()}


def model_inputs(m: "Materials", precision: str, making: int = 0) -> dict[str, Output]:
    """Return the inputs of every node that runs the model at a precision, or a making of it."""
    return {"map": node(m, precision, making).output(), **files(m, precision, making)}


def backend(work: "Work[Materials]") -> Backend:
    """Load the model at the node's precision, with the neuron indices of the checkpoint."""
    streams = work.node.stage.streams
    return at(work.materials, work.inputs, str(work.node.precision), streams)


def opened(m: "Materials", outputs: Outputs, precision: str) -> Backend:
    """Load the same model outside of a node; its `model_inputs` must be finished."""
    inputs = {name: outputs[o.node] for name, o in model_inputs(m, precision).items()}
    return at(m, inputs, precision)


def at(
    m: "Materials", inputs: Mapping[str, Path], precision: str, streams: bool = False
) -> Backend:
    """Load the model at a precision from the folders of `model_inputs`, as `Models.open`."""
    return mapped(inputs["map"], _open(m, inputs, precision, streams))


def mapped(folder: Path, backend: Backend) -> Backend:
    """Return a backend with the neuron indices of the checkpoint, by the map in `folder`."""
    neurons = read(folder)
    if neurons.identical:
        return backend
    indices, matched = map(neurons.by_layer, (neurons.permutation, neurons.matched))
    return PermutedBackend(backend, indices, matched)


def _open(m: "Materials", inputs: Mapping[str, Path], precision: str, streams: bool) -> Backend:
    folder = inputs.get("file")
    if folder is None:
        return m.models.open(precision, checkpoint.made(inputs), streams)
    return m.models.open(precision, folder / (pack.FOLDER if recipe_of(precision) else gguf.FILE))


def make(work: "Work[Materials]") -> None:
    """Write layers.csv, and each neuron's index and factor.

    Raises HQError if the numbers of layers differ.
    """
    m, precision = work.materials, str(work.node.precision)
    with work.task(len(m.model.space.blocks), "layers") as task:
        variant = _open(m, work.inputs, precision, work.node.stage.streams).ffns()
        source = checkpoint.made(work.inputs) or m.path
        build(work.folder, m.model.space, of_checkpoint(source), variant, task)


def build(
    folder: Path, space: NeuronSpace, source: Sequence[FFN], variant: Sequence[FFN], task: Task
) -> None:
    """Write the files of the stage; FFNs are those of the blocks of the source's space.

    Raises HQError if the numbers of blocks differ.
    """
    if len(source) != len(variant):
        raise HQError(f"It has {len(variant)} layers, not {len(source)}: it is another model.")
    maps: list[LayerMap] = []
    for layer_map in map_model(source, variant):
        maps.append(layer_map)
        task.advance(1)
    _write(folder, space, maps)


def verify(node: Node, folder: Path) -> None:
    """Raises HQError if neurons of a precision do not correspond to the checkpoint's."""
    require(folder, str(node.precision))


def _write(folder: Path, space: NeuronSpace, maps: Sequence[LayerMap]) -> None:
    with (folder / LAYERS_FILE).open("w", newline="", encoding="utf-8") as file:
        _write_rows(file, (), {(): list(map(_row, space.blocks, maps))})
    arrays = {
        key: np.concatenate([getattr(m, field).numpy() for m in maps])
        for field, key in _KEYS.items()
    }
    widths = np.array([len(m.permutation) for m in maps])
    save_file(arrays | {"widths": widths}, folder / _ARRAYS_FILE)


def _write_rows(
    file: TextIO, keys: Sequence[str], rows: Mapping[tuple[str, ...], Sequence[LayerRow]]
) -> None:
    """Write rows by the values of their key columns; without experts there is no such column."""
    has_experts = any(row.expert is not None for own in rows.values() for row in own)
    layer, *others = (name for name in LayerRow._fields if name != "expert")
    columns = (layer, "expert", *others) if has_experts else (layer, *others)
    lines = csv.writer(file, lineterminator="\n")
    lines.writerow((*keys, *columns))
    for values, own in rows.items():
        lines.writerows((*values, *(getattr(row, name) for name in columns)) for row in own)


def _row(block: NeuronBlock, one: LayerMap) -> LayerRow:
    low, high = quantiles(one.permutation.numpy(), one.factors.numpy())
    return LayerRow(
        layer=block.layer,
        expert=block.expert,
        relation=str(one.relation),
        bits=round(one.bits, 3),
        error=round(one.error, 6),
        found=round(float(one.matched.float().mean()), 6),
        h_low=round(low, 6),
        h_high=round(high, 6),
        note=one.note,
    )


def quantiles(
    permutation: Int[np.ndarray, "*layer d_ff"], factors: Float[np.ndarray, "*layer d_ff"]
) -> tuple[float, float]:
    """Return the 5% and 95% quantiles of the factors, without missing neurons."""
    low, high = np.quantile(factors[permutation != MISSING], [0.05, 0.95])
    return float(low), float(high)


def read(folder: Path) -> NeuronMap:
    """Read the map of a finished node."""
    arrays = load_file(folder / _ARRAYS_FILE)
    fields = {field: arrays[key] for field, key in _KEYS.items()}
    return NeuronMap(**fields, widths=arrays["widths"])


def rows(folder: Path) -> list[LayerRow]:
    """Read one row per layer, or per expert of each layer."""
    with (folder / LAYERS_FILE).open(newline="", encoding="utf-8") as file:
        lines = csv.DictReader(file)
        kinds = LayerRow.__annotations__ | {"expert": lambda text: int(text) if text else None}
        return [LayerRow(**{k: kinds[k](v) for k, v in line.items()}) for line in lines]


def write_layers(into: Path, folders: Mapping[str, Path]) -> None:
    """Write the rows of several precisions to one file."""
    with into.open("w", newline="", encoding="utf-8") as file:
        _write_rows(file, ("precision",), {(name,): rows(f) for name, f in folders.items()})


def require(folder: Path, precision: str, neurons: NeuronSet | None = None) -> None:
    """Raises HQError, naming the layers, if a layer's neurons do not correspond to the source's.

    With `neurons`, every neuron of the set must match; others may be missing, as after pruning.
    """
    unaligned = [row for row in rows(folder) if row.relation not in ALIGNED]
    if unaligned:
        listed = ", ".join(f"{row.name} ({row.note})" for row in unaligned[:_NAMED])
        more = f" and {len(unaligned) - _NAMED} more" if len(unaligned) > _NAMED else ""
        raise HQError(
            f"At {precision} neurons are not those of the source in {len(unaligned)} layers: "
            f"{unaligned[0].relation}; layers {listed}{more}. Neuron indices of the source have no "
            "meaning there: identify neurons on that checkpoint itself."
        )
    if neurons is not None:
        absent = np.flatnonzero(~read(folder).matched)
        neurons.require_present(frozenset(absent.tolist()), precision)


STAGE = Stage("map", make, version=2, sources=("hq.backends.opening",), verify=verify, streams=True)
