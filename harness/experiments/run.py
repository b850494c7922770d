"""Runs of experiments: validation, nodes, rows, and the folder of results."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from harness.experiments.base import EXPERIMENTS, Experiment, Power
from harness.stages.materials import Materials
from harness.stages.streaming import Streaming, streaming
from harness.store.cluster import RayExecutor
from harness.store.environment import FIT, QUESTIONS, engine, machine_class, threads, versions
from harness.store.executor import Executor
from harness.store.node import Node, ordered
from harness.store.progress import Progress
from harness.store.runner import Outputs, Planned, Runner
from harness.store.store import Store
from harness.studies.study import Study
from harness.tables.files import write_tables
from harness.tables.provenance import Facts
from harness.tables.schema import Row
from hq import __version__
from hq.errors import HQError
from hq.models.checkpoint import architecture_at

_GIVEN = "given"  # in place of a path


@dataclass(frozen=True)
class Result:
    """The results of a run."""

    folder: Path
    tables: Mapping[str, Sequence[Row]]
    provenance: Mapping[str, Any]


def load_study(name: str) -> Study:
    """Load a study by name, and validate its sections of experiments.

    Raises HQError if a section belongs to no experiment, or has an unknown key or a wrong value.
    """
    study = Study.load(name)
    validate_sections(study)
    return study


def validate_sections(study: Study) -> None:
    """Raises HQError if a section belongs to no experiment, or the experiment rejects it."""
    for name in study.sections:
        experiment = EXPERIMENTS[name]
        if experiment.section is None:
            raise HQError(f"The experiment {name!r} has no section: leave [{name}] out.")
        experiment.section.of(study.sections[name], f"the section [{name}]")
    _ = EXPERIMENTS[study.experiment]


def run(
    study: Study,
    experiment: Experiment,
    store: Store,
    progress: Progress,
    folder: Path,
    require: Callable[[Facts], None] | None = None,
    executor: Executor | None = None,
) -> Result:
    """Run an experiment of a study, and write its tables to `folder`.

    Everything is validated before the first node; then `require` is called with what provenance
    will state about the study and its nodes, and may raise to prevent the run. `executor` computes
    the nodes, by default one after another in this process. Raises HQError if
    the study or its files are wrong, if the disk has too little space, or if a node cannot be
    computed.
    """
    with Materials(study) as m:
        nodes = _validated(m, experiment)
        if require is not None:
            require(declared(m, experiment, nodes))
        runner = Runner(store, progress, m, executor)
        require_space(store.root, runner.missing(nodes))
        outputs = runner.run(nodes)
        rows = experiment.rows(m, outputs)
        provenance = provenance_of(m, experiment, nodes, outputs)
        folder.mkdir(parents=True, exist_ok=True)
        experiment.write(folder, m, outputs)
        write_tables(folder, experiment.tables, rows, provenance)  # provenance.json comes last
    return Result(folder, rows, provenance)


def on_workers(
    study: Study,
    experiment: Experiment,
    store: str | None,
    workers: int | None = None,
    address: str | None = None,
) -> RayExecutor:
    """Return the executor of a run on worker processes of this machine, or of a Ray cluster."""
    if address is not None and store is None:
        raise HQError(
            "Machines of a cluster need a store that all of them reach: give --store, or set "
            "HQ_STORE to a shared folder or to a URL such as s3://bucket/hq."
        )

    def gpus(node: Node) -> int:
        if node.precision is None:
            return 0
        return int(engine(node.precision, study.device)["device"] == "cuda")

    declare = partial(_declare, study, experiment.name)
    return RayExecutor(declare, store, workers, address, gpus)


def _declare(study: Study, experiment: str) -> tuple[Materials, list[Node]]:
    """Declare the nodes of a run in a worker; the run itself has validated the study."""
    m = Materials(study)
    return m, list(EXPERIMENTS[experiment].nodes(m))


class PlannedRun(NamedTuple):
    """What `run` would do with each node, and the smallest effects that its tables could show."""

    steps: list[Planned]
    power: Power | None
    streaming: Streaming


def plan(study: Study, experiment: Experiment, store: Store) -> PlannedRun:
    """Return what `run` would do, without computing a node. Raises HQError as `run`."""
    with Materials(study) as m:
        nodes = _validated(m, experiment)
        runner = Runner(store, Progress(quiet=True), m)
        steps = runner.plan(nodes)
        return PlannedRun(steps, experiment.power(m, runner.outputs), streaming(m, steps))


def _validated(m: Materials, experiment: Experiment) -> list[Node]:
    experiment.check(m)
    m.check()
    return list(experiment.nodes(m))


def require_space(root: Path, missing: Sequence[Node]) -> None:
    """Raises HQError if the disk has less space than the missing outputs may take."""
    needed = sum(node.disk for node in missing)
    existing = next(path for path in (root, *root.parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if needed > free:
        raise HQError(
            f"The run writes up to {needed / 2**30:.1f} GiB to {root}, and {free / 2**30:.1f} GiB "
            "are free: free more, or set HQ_CACHE to a folder on another disk."
        )


def provenance_of(
    m: Materials, experiment: Experiment, nodes: Sequence[Node], outputs: Outputs
) -> dict[str, Any]:
    """Return everything the tables depend on: the model, the study, and all nodes."""
    architecture = architecture_at(m.path)
    detected = {"architecture": architecture.described} if architecture.detected else {}
    return {
        **_identity(m, experiment),
        "model": m.model.model_dump(mode="json"),
        "questions": versions(*QUESTIONS.get(m.study.scenario.name, ())),
        "statistics": {"hq": __version__, "packages": versions(*FIT), "machine": machine_class()},
        "threads": threads(),
        "nodes": {node.name: _node(node, outputs) for node in ordered(nodes)},
        **detected,
        **experiment.facts(m, outputs),
    }


def declared(m: Materials, experiment: Experiment, nodes: Sequence[Node]) -> Facts:
    """Return what provenance will state that is known before a node runs."""
    stages = {
        node.name: {"stage": node.stage.name, "version": node.stage.version}
        for node in ordered(nodes)
    }
    return {**_identity(m, experiment), "nodes": stages}


def _identity(m: Materials, experiment: Experiment) -> Facts:
    """Return the kind, the study with its definition, and the model's fingerprint."""
    return {
        "kind": experiment.name,
        "study": experiment.study_name(m.study),
        "fingerprint": m.model.fingerprint,
        "definition": definition_of(m.study) | experiment.definition(m.study),
    }


def _node(node: Node, outputs: Outputs) -> dict[str, Any]:
    record = outputs.record(node)
    for key in ("node", "units"):
        record.pop(key)
    return record | {"precision": node.precision or _precision_in(node)}


def _precision_in(node: Node) -> str | None:
    """The precision of a node without a model, by its inputs; its rows are merged by precision."""
    return next((o.node.precision for o in node.inputs.values() if o.node.precision), None)


def definition_of(study: Study) -> dict[str, Any]:
    """Return the study without its model, sections of experiments, file of responses and endpoint.

    Paths have no meaning on other machines, so it only contains whether they are given. Nodes have
    digests of the files, and the name of the model that an endpoint serves.
    """
    definition = study.model_dump(
        mode="json",
        exclude={"model", "experiment", "responses", "endpoint", "sections", "stream"},
    )
    definition["scenario"]["options"].pop("source", None)
    definition["checkpoints"] = dict.fromkeys(definition["checkpoints"], _GIVEN)
    for section in ("compare", "pack"):
        definition[section]["text"] = definition[section]["text"] and _GIVEN
    definition["pack"].pop("makings")  # more of them only add rows, as more precisions do
    return definition
