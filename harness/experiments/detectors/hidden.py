"""Stage `hidden`: hidden states of the answers at every layer, for the probes that read them."""

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import Float

from harness.experiments.detectors.parts import Parts
from harness.stages import mapping
from harness.stages.graph import Graph
from harness.stages.samples import read_tokens
from harness.stages.select import TOKENS_FILE
from harness.store.node import Node, Stage, Work
from hq.models.checkpoint import text_config

if TYPE_CHECKING:
    from harness.stages.materials import Materials

_FIELDS = ("residual_mean", "residual_last", "heads_last")


class Hidden(NamedTuple):
    """The output of the stage, read from disk as it is used."""

    residual_mean: Float[np.ndarray, "sample layer d_model"]  # over the answer's tokens
    residual_last: Float[np.ndarray, "sample layer d_model"]  # at its last token
    heads_last: Float[np.ndarray, "sample layer heads_width"]  # all heads of a layer side by side


def node(m: "Materials", precision: str) -> Node:
    """Declare the hidden states of the samples' answers."""
    graph = Graph(m)
    n = graph.trace(precision).units
    return Node(
        STAGE,
        m.models.parameters(precision),
        mapping.model_inputs(m, precision) | {"tokens": graph.samples.output(TOKENS_FILE)},
        precision,
        units=n,
        unit="texts",
        disk=2 * len(_FIELDS) * 4 * n * m.model.n_layers * text_config(m.path).hidden_size,
        memory=m.resident(precision),
    )


def make(work: "Work[Materials]") -> None:
    """Write one array per kind of state, after the batches of a killed run."""
    exchanges = read_tokens(work.inputs["tokens"] / TOKENS_FILE)
    parts = Parts(work.folder)
    with work.task(len(exchanges), "texts") as task:
        task.advance(sum(len(parts.read(number)["rows"]) for number in parts.done))
        for states in mapping.backend(work).hidden_states(exchanges, skip=parts.done):
            parts.write(
                states.number,
                states.rows,
                residual_mean=states.mean["residual"],
                residual_last=states.last["residual"],
                heads_last=states.last["heads"],
            )
            task.advance(len(states.rows))
    for name in _FIELDS:
        shape = parts.read(min(parts.done))[name].shape[1:]
        joined = np.empty((len(exchanges), *shape), dtype=np.float32)
        for number in parts.done:
            part = parts.read(number)
            joined[part["rows"]] = part[name]
        np.save(work.folder / f"{name}.npy", joined)
    parts.remove()


def read(folder: Path) -> Hidden:
    """Open the output of a finished node."""
    return Hidden(*(np.load(folder / f"{name}.npy", mmap_mode="r") for name in _FIELDS))


STAGE = Stage("hidden", make, sources=("hq.backends.opening",))
