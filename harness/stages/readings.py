"""Stage `step-tokens`: CETT, entropy and log-probability of every response token.

Of the CETT, the neurons of all cross-fitted probes are read.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from harness.stages import mapping
from harness.stages.graph import Graph
from harness.stages.identify import PROBES_FILE
from harness.stages.samples import read_tokens
from harness.stages.select import TOKENS_FILE
from harness.store.node import Node, Output, Stage, Work
from harness.studies.study import REFERENCE
from hq.neurons.neuron_set import NeuronSet
from hq.probe.cross_fit import CrossFit
from hq.storage.atomic import atomic_file

if TYPE_CHECKING:
    from harness.stages.materials import Materials

_READINGS_FILE = "tokens.npz"


def node(m: "Materials", precision: str, tokens: Output, n: int) -> Node:
    """Declare the readings of at most `n` responses, `tokens`, at a precision."""
    probes = Graph(m).identify(REFERENCE).output(PROBES_FILE)
    return Node(
        STAGE,
        m.models.parameters(precision),
        mapping.model_inputs(m, precision) | {"tokens": tokens, "probes": probes},
        precision,
        units=2 * n,
        unit="texts",
        memory=m.resident(precision),
    )


class Readings(NamedTuple):
    """The readings of all response tokens, answer after answer."""

    neurons: Int[np.ndarray, " k"]  # flat indices of the neurons of all probes, ascending
    cett: Float[np.ndarray, "token k"]
    entropy: Float[np.ndarray, " token"]  # of the prediction of each token, in nats
    log_prob: Float[np.ndarray, " token"]  # of each token
    starts: Int[np.ndarray, " answer"]  # index of the first token of each answer

    def decisions(self, neurons: NeuronSet) -> Float[np.ndarray, " token"]:
        """Return the decision value of each token by one of the probes."""
        columns = np.searchsorted(self.neurons, neurons.flat)
        return neurons.score_unchecked(self.cett[:, columns].astype(np.float64))

    def by_answer(self, values: Float[np.ndarray, " token"]) -> list[Float[np.ndarray, " token"]]:
        """Return the values of the tokens of each answer, in float64."""
        return [part.astype(np.float64) for part in np.split(values, self.starts[1:])]


def read_readings(folder: Path) -> Readings:
    """Read the output of a finished node."""
    with np.load(folder / _READINGS_FILE, allow_pickle=False) as arrays:
        return Readings(**{name: arrays[name] for name in Readings._fields})


def probe_neurons(probes: CrossFit) -> Int[np.ndarray, " k"]:
    """Return the flat indices of the neurons of all fits, ascending."""
    fits: list[NeuronSet] = [probes.neurons]
    for fold in probes.folds:
        fits += [fold.probe, *fold.calibration.values()]
    neurons: Int[np.ndarray, " k"] = np.unique(np.concatenate([fit.flat for fit in fits]))
    return neurons


def _make_readings(work: "Work[Materials]") -> None:
    """Write the readings, after the batches of a killed run."""
    exchanges = read_tokens(work.inputs["tokens"] / TOKENS_FILE)
    probes = CrossFit.load(work.inputs["probes"] / PROBES_FILE, work.materials.model)
    neurons, measure = probe_neurons(probes), probes.neurons.cett
    with work.task(2 * len(exchanges), "texts") as task:
        backend, done = mapping.backend(work), _parts(work.folder)
        for kind in _KINDS:
            task.advance(sum(len(part["rows"]) for part in done[kind].values()))
        cett = backend.read_tokens(exchanges, neurons, measure, frozenset(done["cett"]))
        for read in cett:
            _save(work.folder, "cett", read.number, rows=read.rows, cett=read.values)
            task.advance(len(read.rows))
        for made in backend.predictions(exchanges, None, frozenset(done["predictions"])):
            predictions = {"entropy": made.entropy, "log_prob": made.log_prob}
            _save(work.folder, "predictions", made.number, rows=made.rows, **predictions)
            task.advance(len(made.rows))
    lengths = np.array([len(exchange.response) for exchange in exchanges])
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    values: dict[str, Any] = {
        "cett": np.empty((lengths.sum(), len(neurons)), dtype=np.float32),
        "entropy": np.empty(lengths.sum(), dtype=np.float32),
        "log_prob": np.empty(lengths.sum(), dtype=np.float32),
    }
    for part in (part for of_kind in _parts(work.folder).values() for part in of_kind.values()):
        rows = part.pop("rows")
        tokens = np.concatenate([np.arange(starts[r], starts[r] + lengths[r]) for r in rows])
        for name, of_tokens in part.items():
            values[name][tokens] = of_tokens
    np.savez(work.folder / _READINGS_FILE, neurons=neurons, starts=starts, **values)
    for path in work.folder.glob("part-*.npz"):
        path.unlink()


_KINDS = ("cett", "predictions")


def _parts(folder: Path) -> dict[str, dict[int, dict[str, np.ndarray]]]:
    """Read the finished batches, by kind and number."""
    parts: dict[str, dict[int, dict[str, np.ndarray]]] = {kind: {} for kind in _KINDS}
    for path in folder.glob("part-*.npz"):
        _, kind, number = path.stem.split("-")
        with np.load(path, allow_pickle=False) as part:
            parts[kind][int(number)] = dict(part)
    return parts


def _save(folder: Path, kind: str, number: int, **arrays: Any) -> None:
    """Write a batch; a kill leaves none that is incomplete."""
    with (
        atomic_file(folder / f"part-{kind}-{number}.npz") as draft,
        open(draft, "wb") as file,
    ):
        np.savez(file, **arrays)


STAGE = Stage("step-tokens", _make_readings, sources=("hq.backends.opening",))
