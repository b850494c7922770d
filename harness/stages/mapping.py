"""Stage `map`: whether a precision's neurons are the checkpoint's, told from the loaded weights."""

import csv
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from safetensors.numpy import load_file, save_file

from harness.store.progress import Task
from harness.store.store import Stage
from harness.tables.schema import AlignmentRow
from hq.backends.base import Backend
from hq.backends.permuted import PermutedBackend
from hq.errors import HQError
from hq.models.alignment import ALIGNED, MISSING, LayerMap, map_model
from hq.models.ffn_weights import FFN
from hq.neurons.neuron_set import NeuronSet

STAGE = Stage("map", sources=("hq.backends.opening",))
LAYERS_FILE = "layers.csv"
_ARRAYS_FILE = "neurons.safetensors"
_NAMED = 3  # layers that a refusal names


class NeuronMap(NamedTuple):
    """Where a precision has each neuron of the source."""

    permutation: Int[np.ndarray, "layer d_ff"]  # MISSING for a neuron that is nowhere
    matched: Bool[np.ndarray, "layer d_ff"]
    factors: Float[np.ndarray, "layer d_ff"]  # this precision's h over the source's

    @property
    def identical(self) -> bool:
        """Whether every neuron matches at its own index."""
        indices = np.arange(self.permutation.shape[1])
        return bool(self.matched.all() and (self.permutation == indices).all())


_KEYS = {"permutation": "places", "matched": "found", "factors": "factors"}  # in the file


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


def build(folder: Path, source: Sequence[FFN], variant: Sequence[FFN], task: Task) -> None:
    """Writes layers.csv, and each neuron's place and factor. HQError for other layers' number."""
    if len(source) != len(variant):
        raise HQError(f"It has {len(variant)} layers, not {len(source)}: it is another model.")
    maps: list[LayerMap] = []
    for found in map_model(source, variant):
        maps.append(found)
        task.advance(1)
    with (folder / LAYERS_FILE).open("w", newline="", encoding="utf-8") as file:
        lines = csv.writer(file, lineterminator="\n")
        lines.writerow(LayerRow._fields)
        lines.writerows(map(_row, maps))
    arrays = {
        key: np.stack([getattr(m, field).numpy() for m in maps]) for field, key in _KEYS.items()
    }
    save_file(arrays, folder / _ARRAYS_FILE)


def _row(one: LayerMap) -> LayerRow:
    low, high = _quantiles(one.permutation.numpy(), one.factors.numpy())
    return LayerRow(
        layer=one.layer,
        relation=str(one.relation),
        bits=round(one.bits, 3),
        error=round(one.error, 6),
        found=round(float(one.matched.float().mean()), 6),
        h_low=round(low, 6),
        h_high=round(high, 6),
        note=one.note,
    )


def _quantiles(
    permutation: Int[np.ndarray, "*layer d_ff"], factors: Float[np.ndarray, "*layer d_ff"]
) -> tuple[float, float]:
    """5% and 95% of the factors of neurons that are not missing."""
    low, high = np.quantile(factors[permutation != MISSING], [0.05, 0.95])
    return float(low), float(high)


def read(folder: Path) -> NeuronMap:
    """What a finished stage holds."""
    arrays = load_file(folder / _ARRAYS_FILE)
    return NeuronMap(**{field: arrays[key] for field, key in _KEYS.items()})


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
        absent = np.flatnonzero(~read(folder).matched)
        neurons.require_present(frozenset(absent.tolist()), precision)


def mapped(folder: Path, backend: Backend) -> Backend:
    """The backend, its neurons where the source has them."""
    neurons = read(folder)
    if neurons.identical:
        return backend
    return PermutedBackend(backend, neurons.permutation, neurons.matched)


def summary(folder: Path, precision: str, probe: Sequence[tuple[int, int]]) -> AlignmentRow:
    """The table's row."""
    layers, neurons = rows(folder), read(folder)
    kinds = Counter(row.relation for row in layers)
    errors = np.array([row.error for row in layers])
    low, high = _quantiles(neurons.permutation, neurons.factors)
    return AlignmentRow(
        precision=precision,
        layers=", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items())),
        bits=min(row.bits for row in layers),
        error=float(np.median(errors)),
        error_worst=float(errors.max()),
        worst=int(errors.argmax()),
        found=float(neurons.matched.mean()),
        probe=len(probe),
        probe_found=sum(bool(neurons.matched[layer, index]) for layer, index in probe),
        h_low=low,
        h_high=high,
    )
