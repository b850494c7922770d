"""Stage `aurocs`: the AUROC of every neuron in two scenarios, and counts under flipped labels."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from harness.experiments.conditions.section import other_scenario, section_of
from harness.stages.graph import Graph
from harness.stages.identify import Rows, require_same_tokens
from harness.stages.samples import read_samples
from harness.stages.select import SAMPLES_FILE
from harness.store.environment import machine_class
from harness.store.node import Node, Stage, Work
from hq.stats.columns import (
    ColumnEstimates,
    column_blocks,
    column_ranks,
    estimate_column_aurocs,
    ranked_aurocs,
)
from hq.stats.permutation import flipped_labels
from hq.tracing.traces import Traces

if TYPE_CHECKING:
    from harness.stages.materials import Materials

AUROCS_FILE = "aurocs.npy"
CHANCE_FILE = "chance.npy"
ROLES = ("selection", "second")
Thresholds = list[tuple[float, float]]


def node(m: "Materials", precision: str) -> Node:
    """Declare the AUROCs of all neurons in both scenarios at a precision."""
    graphs = dict(zip(ROLES, (Graph(m), Graph(m.of(other_scenario))), strict=True))
    section = section_of(m)
    traces = {role: graph.trace(precision) for role, graph in graphs.items()}
    return Node(
        STAGE,
        {
            "machine": machine_class(),
            "measure": m.study.identify.cett,
            "span": m.study.identify.tokens,
            "thresholds": section.thresholds,
            "permutations": section.permutations,
            "seed": m.study.seed,
        },
        {f"{role} traces": traces[role].output() for role in ROLES}
        | {f"{role} samples": graphs[role].samples.output(SAMPLES_FILE) for role in ROLES},
        about=precision,
        units=m.model.n_neurons,
        unit="neurons",
        disk=24 * m.model.n_neurons,
    )


def make(work: "Work[Materials]") -> None:
    """Write AUROCs with intervals, and the counts under flipped labels."""
    parameters = work.parameters
    thresholds = [(float(tau), float(cross)) for tau, cross in parameters["thresholds"]]
    selection, second = (_scenario(work, role) for role in ROLES)
    with work.task(selection.cett.shape[1], "neurons") as task:
        computed = aurocs(
            selection,
            second,
            thresholds,
            parameters["permutations"],
            parameters["seed"],
            task.advance,
        )
    np.save(work.folder / AUROCS_FILE, np.array([computed.selection, computed.second]))
    np.save(work.folder / CHANCE_FILE, computed.chance)


class Scenario(NamedTuple):
    """The samples of a scenario, and CETT of every neuron on them."""

    rows: Rows
    cett: Float[np.ndarray, "n p"]


class Aurocs(NamedTuple):
    """AUROCs of every neuron in two scenarios, and counts under flipped labels."""

    selection: ColumnEstimates
    second: ColumnEstimates
    chance: Int[np.ndarray, "3 threshold draws"]  # in the order of `counted`


def aurocs(
    selection: Scenario,
    second: Scenario,
    thresholds: Thresholds,
    permutations: int,
    seed: int,
    advance: Callable[[int], object],
) -> Aurocs:
    """Compute AUROCs in both scenarios; labels are flipped in each on its own."""
    scenarios = (selection, second)
    flips = [
        flipped_labels(scenario.rows.y, scenario.rows.units, permutations, seed + number)
        for number, scenario in enumerate(scenarios)
    ]
    p = selection.cett.shape[1]
    values = np.empty((2, 3, p))
    counts = np.zeros((3, len(thresholds), permutations), dtype=np.int64)
    for block in column_blocks(p):
        by_chance = []
        for number, (rows, matrix) in enumerate(scenarios):
            cett = np.asarray(matrix[:, block])
            values[number, :, block] = estimate_column_aurocs(cett, rows.y, rows.units)
            by_chance.append(ranked_aurocs(column_ranks(cett), flips[number]))
        counts += counted(by_chance[0], by_chance[1], thresholds)
        advance(block.stop - block.start)
    return Aurocs(ColumnEstimates(*values[0]), ColumnEstimates(*values[1]), counts)


def counted(
    areas: Float[np.ndarray, "*draws p"],
    areas_cross: Float[np.ndarray, "*draws p"],
    thresholds: Thresholds,
) -> Int[np.ndarray, "3 threshold *draws"]:
    """Count the neurons above the first threshold, above the second, and above both."""
    counts = []
    for tau, tau_cross in thresholds:
        second, third = areas > tau, areas_cross > tau_cross
        counts.append([passed.sum(axis=-1) for passed in (second, third, second & third)])
    return np.moveaxis(np.array(counts, dtype=np.int64), 0, 1)


def read(folder: Path) -> Aurocs:
    """Read the output of a finished node."""
    selection, second = np.load(folder / AUROCS_FILE, allow_pickle=False)
    chance = np.load(folder / CHANCE_FILE, allow_pickle=False)
    return Aurocs(ColumnEstimates(*selection), ColumnEstimates(*second), chance)


def _scenario(work: "Work[Materials]", role: str) -> Scenario:
    traces = Traces.open(work.inputs[f"{role} traces"])
    samples = read_samples(work.inputs[f"{role} samples"] / SAMPLES_FILE)
    require_same_tokens(traces, samples)
    matrix = traces.matrix(work.parameters["measure"], work.parameters["span"])
    return Scenario(Rows(samples), matrix)


STAGE = Stage("aurocs", make, packages=("numpy", "scipy"))
