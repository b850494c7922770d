"""Stage `information`: mutual information of every neuron, and its null distribution."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from harness.experiments.information.section import section_of
from harness.stages.graph import Graph
from harness.stages.identify import Rows, require_same_tokens
from harness.stages.samples import read_samples
from harness.stages.select import SAMPLES_FILE
from harness.store.environment import machine_class
from harness.store.node import Node, Stage, Work
from hq.stats.columns import column_blocks
from hq.stats.information import column_corrections, column_information
from hq.stats.permutation import flipped_labels, rank_p
from hq.tracing.traces import Traces

if TYPE_CHECKING:
    from harness.stages.materials import Materials

INFORMATION_FILE = "information.npy"
MAXIMA_FILE = "maxima.npy"


def node(m: "Materials", precision: str) -> Node:
    """Declare the information of all neurons at a precision."""
    graph, section = Graph(m), section_of(m)
    return Node(
        STAGE,
        {
            "machine": machine_class(),
            "measure": m.study.identify.cett,
            "span": m.study.identify.tokens,
            "quantile": section.quantile,
            "permutations": section.permutations,
            "seed": m.study.seed,
        },
        {
            "traces": graph.trace(precision).output(),
            "samples": graph.samples.output(SAMPLES_FILE),
        },
        about=precision,
        units=m.model.n_neurons,
        unit="neurons",
        disk=32 * m.model.n_neurons,
    )


class Information(NamedTuple):
    """Information of every neuron in bits, and the largest of each draw of flipped labels."""

    plug_in: Float[np.ndarray, " p"]
    corrected: Float[np.ndarray, " p"]
    chance: Float[np.ndarray, " p"]  # mean of the corrected information under flipped labels
    p: Float[np.ndarray, " p"]
    maxima: Float[np.ndarray, " draws"]  # plug-in


def make(work: "Work[Materials]") -> None:
    """Write the information of every neuron."""
    parameters = work.parameters
    traces = Traces.open(work.inputs["traces"])
    samples = read_samples(work.inputs["samples"] / SAMPLES_FILE)
    require_same_tokens(traces, samples)
    cett = traces.matrix(parameters["measure"], parameters["span"])
    with work.task(cett.shape[1], "neurons") as task:
        *values, maxima = information(
            cett,
            Rows(samples),
            parameters["quantile"],
            parameters["permutations"],
            parameters["seed"],
            task.advance,
        )
    np.save(work.folder / INFORMATION_FILE, np.array(values))
    np.save(work.folder / MAXIMA_FILE, maxima)


def information(
    cett: Float[np.ndarray, "n p"],
    rows: Rows,
    quantile: float,
    permutations: int,
    seed: int,
    advance: Callable[[int], object],
) -> Information:
    """Compute the information of every neuron, and its null distribution."""
    flips = flipped_labels(rows.y, rows.units, permutations, seed)
    values = np.empty((4, cett.shape[1]))
    maxima = np.zeros(permutations)
    for block in column_blocks(cett.shape[1]):
        high = high_activation(np.asarray(cett[:, block]), quantile).T
        plug_in = column_information(high, rows.y[None])[0]
        null = column_information(high, flips)
        values[:, block] = (
            plug_in,
            plug_in + column_corrections(high, rows.y[None])[0],
            (null + column_corrections(high, flips)).mean(axis=0),
            rank_p(plug_in, null),
        )
        maxima = np.maximum(maxima, null.max(axis=1))
        advance(block.stop - block.start)
    return _information(values, maxima)


def high_activation(cett: Float[np.ndarray, "n p"], quantile: float) -> Bool[np.ndarray, "n p"]:
    """Return where a neuron's CETT is above this quantile of its values.

    ⌈quantile·n⌉ values are not above it, if all values differ.
    """
    at = max(int(np.ceil(quantile * len(cett))) - 1, 0)
    threshold = np.partition(cett, at, axis=0)[at]
    above: Bool[np.ndarray, "n p"] = cett > threshold
    return above


def read(folder: Path) -> Information:
    """Read the output of a finished node."""
    values = np.load(folder / INFORMATION_FILE, allow_pickle=False)
    return _information(values, np.load(folder / MAXIMA_FILE, allow_pickle=False))


def _information(
    values: Float[np.ndarray, "4 p"], maxima: Float[np.ndarray, " draws"]
) -> Information:
    plug_in, corrected, chance, p = values
    return Information(plug_in, corrected, chance, p, maxima)


STAGE = Stage("information", make, packages=("numpy",))
