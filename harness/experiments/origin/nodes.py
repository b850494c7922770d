"""Stage `changes`: how far tuning, or a precision, moves the weights of each neuron of the base."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from harness.experiments.origin.pair import require_same_neurons
from harness.experiments.origin.section import base_model
from harness.stages import mapping
from harness.store.node import Node, Stage, Work
from harness.store.progress import Task
from hq.errors import HQError
from hq.models.alignment import MISSING, map_layer
from hq.models.checkpoint import file_digests
from hq.models.ffn_weights import FFN, of_checkpoint
from hq.probe.origin import ChangeScale, model_changes

if TYPE_CHECKING:
    from harness.stages.materials import Materials

CHANGES_FILE = "changes.npy"
TUNED = "tuned"
_Layer = tuple[FFN, FFN, Int[Tensor, " d_ff"] | None]


def tuning(m: "Materials") -> Node:
    """Declare the changes from the base to the tuned model, which run first."""
    base = m.of(base_model)
    checkpoints = {"base": base, TUNED: m}
    return Node(
        STAGE,
        {
            name: {
                "model": each.model.fingerprint,
                "files": file_digests(each.path, ("config.json",)),
            }
            for name, each in checkpoints.items()
        },
        about=TUNED,
        units=m.model.n_layers,
        unit="layers",
        disk=24 * m.model.n_neurons,
        first=True,
    )


def quantization(m: "Materials", precision: str) -> Node:
    """Declare the changes from the base to the base at a precision."""
    base = m.of(base_model)
    return Node(
        STAGE,
        base.models.parameters(precision),
        mapping.model_inputs(base, precision),
        precision,
        base.model_scope,
        units=m.model.n_layers,
        unit="layers",
        disk=24 * m.model.n_neurons,
        memory=base.resident(precision),
        materials=base,
    )


def make(work: "Work[Materials]") -> None:
    """Write changes.npy, [part, p]. Raises HQError if neurons cannot be compared."""
    m = work.materials
    with work.task(m.model.n_layers, "layers") as task:
        layers = _tuned(m) if work.node.precision is None else _quantized(work)
        changes = model_changes(_counted(layers, task))
    if work.node.precision is None:
        ChangeScale.of(changes)  # raises HQError if tuning changed no FFN
    np.save(work.folder / CHANGES_FILE, changes)


def read(folder: Path) -> Float[np.ndarray, "part p"]:
    """Read the changes of a finished node."""
    changes: Float[np.ndarray, "part p"] = np.load(folder / CHANGES_FILE, allow_pickle=False)
    return changes


def _counted(layers: Iterator[_Layer], task: Task) -> Iterator[_Layer]:
    for layer in layers:
        yield layer
        task.advance(1)


def _tuned(m: "Materials") -> Iterator[_Layer]:
    layers = zip(of_checkpoint(m.of(base_model).path), of_checkpoint(m.path), strict=True)
    for number, (source, variant) in enumerate(layers):
        require_same_neurons(map_layer(number, source, variant))
        yield source, variant, None


def _quantized(work: "Work[Materials]") -> Iterator[_Layer]:
    """Yield the layers at a precision, by the map of neurons; a missing one has its own index."""
    folder, precision = work.inputs["map"], str(work.node.precision)
    rotated = [row.layer for row in mapping.rows(folder) if "rotated" in row.note]
    if rotated:
        raise HQError(
            f"At {precision} layer {rotated[0]} is in a rotated residual stream, so its weights "
            "cannot be compared with the base's: leave this precision out."
        )
    found = mapping.read(folder)
    variants = mapping.backend(work).ffns()
    sources = of_checkpoint(work.materials.path)
    orders = found.by_layer(found.permutation)
    for source, variant, indices in zip(sources, variants, orders, strict=True):
        own = np.arange(len(indices))
        yield source, variant, torch.as_tensor(np.where(indices == MISSING, own, indices))


STAGE = Stage("changes", make, sources=("hq.backends.opening",))
