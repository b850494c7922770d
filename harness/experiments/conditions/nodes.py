"""Stage `aurocs`: the AUROC of every neuron in two scenarios, and counts under flipped labels."""

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
    scenarios = [
        _scenario(work, role, parameters["seed"] + number) for number, role in enumerate(ROLES)
    ]
    p = scenarios[0].cett.shape[1]
    aurocs = np.empty((2, 3, p))
    counts = np.zeros((3, len(thresholds), parameters["permutations"]), dtype=np.int64)
    with work.task(p, "neurons") as task:
        for block in column_blocks(p):
            flipped = []
            for number, scenario in enumerate(scenarios):
                cett = np.asarray(scenario.cett[:, block])
                aurocs[number, :, block] = estimate_column_aurocs(
                    cett, scenario.rows.y, scenario.rows.units
                )
                flipped.append(ranked_aurocs(column_ranks(cett), scenario.flips))
            counts += counted(*flipped, thresholds)
            task.advance(block.stop - block.start)
    np.save(work.folder / AUROCS_FILE, aurocs)
    np.save(work.folder / CHANCE_FILE, counts)


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


class Aurocs(NamedTuple):
    """The output of a node."""

    selection: ColumnEstimates
    second: ColumnEstimates
    chance: Int[np.ndarray, "3 threshold draws"]  # counts, in the order of `counted`


def read(folder: Path) -> Aurocs:
    """Read the output of a finished node."""
    selection, second = np.load(folder / AUROCS_FILE, allow_pickle=False)
    chance = np.load(folder / CHANCE_FILE, allow_pickle=False)
    return Aurocs(ColumnEstimates(*selection), ColumnEstimates(*second), chance)


class _Scenario(NamedTuple):
    rows: Rows
    cett: Float[np.ndarray, "n p"]
    flips: Int[np.ndarray, "draws n"]


def _scenario(work: "Work[Materials]", role: str, seed: int) -> _Scenario:
    parameters = work.parameters
    traces = Traces.open(work.inputs[f"{role} traces"])
    samples = read_samples(work.inputs[f"{role} samples"] / SAMPLES_FILE)
    require_same_tokens(traces, samples)
    rows = Rows(samples)
    flips = flipped_labels(rows.y, rows.units, parameters["permutations"], seed)
    return _Scenario(rows, traces.matrix(parameters["measure"], parameters["span"]), flips)


STAGE = Stage("aurocs", make, packages=("numpy", "scipy"))
