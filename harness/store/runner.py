"""Runner of declared nodes: inputs first, one model at a stretch, finished outputs reused.

An executor computes the nodes: by default one after another in this process. With more slots, nodes
whose inputs are finished run at once, and stages with a `sharding` are divided among the slots.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from harness.store.environment import versions
from harness.store.executor import Executor, Job, Local
from harness.store.node import Node, Shard, Sharding, Work, note_node, ordered
from harness.store.outputs import Outputs as Outputs
from harness.store.progress import Progress
from harness.store.schedule import Schedule
from harness.store.store import Store, digest
from hq.errors import HQError

_SHARD = ".shard-"  # in names of parts of an output

State = Literal["there", "missing", "stale", "waits"]


@dataclass(frozen=True, slots=True)
class Planned:
    """What a run would do with one node."""

    node: Node
    state: State
    why: str = ""
    seconds: float | None = None  # estimated from earlier nodes of the stage; None if unknown

    @property
    def needed(self) -> bool:
        """Whether a run would compute it."""
        return self.state != "there"


class Runner:
    """Runs the nodes of one study and keeps their outputs in a store."""

    def __init__(
        self,
        store: Store,
        progress: Progress,
        materials: Any,
        executor: Executor | None = None,
    ) -> None:
        self._store = store
        self._progress = progress
        self._materials = materials
        self._executor = executor or Local(self.compute)
        self._outputs = Outputs(store)
        self._keys: dict[str, dict[str, Any]] = {}

    def run(self, wanted: Sequence[Node]) -> Outputs:
        """Compute the missing ones of `wanted` and of all nodes that they depend on.

        Among nodes with finished inputs, those marked `first` come first, and nothing else starts
        while they run; then those at the precision of the last started job, so that each model is
        loaded once. Raises HQError, naming the node, if one cannot be computed.
        """
        schedule = Schedule([node for node in ordered(wanted) if node not in self._outputs])
        with self._executor as executor, self._counted(schedule) as advance:
            while True:
                for node in schedule.waiting():
                    if self._is_ready(node) and not self._reuse(node):
                        schedule.add(self._jobs(node, (), executor.slots))
                    elif node in self._outputs:
                        schedule.drop(node)
                        advance(1)
                while schedule.running < executor.slots and (job := schedule.next()):
                    executor.submit(job)
                if not schedule.running:
                    return self._outputs
                job = executor.wait()
                shards = schedule.ended(job)
                if shards:  # a round of them is finished
                    schedule.add(self._jobs(job.node, shards, executor.slots))
                elif job.shard is None:
                    self._finish(job)
                    advance(1)

    def compute(self, job: Job) -> None:
        """Compute a job whose inputs are finished, and put its output into the store."""
        node, sharding = job.node, job.node.stage.sharding
        earlier = job.shards
        key = self._key(node)
        record = key | {"node": str(job), "units": node.units}
        spent = sum(self._record(name)["seconds"] for name in earlier) if not job.shard else 0.0

        def make(folder: Path) -> None:
            inputs = {name: self._outputs[o.node] for name, o in node.inputs.items()}
            work = self._work(node, folder, inputs)
            if sharding is None or not (job.shard or earlier):
                node.stage.make(work)
            elif job.shard is None:
                sharding.merge(work, self._folders(earlier))
            else:
                sharding.make(work, job.shard, self._folders(earlier))

        try:
            self._store.build(job.name, record, make, node.stage.volatile, spent)
        except Exception as error:
            note_node(error, node)
            raise

    def adopt(self, node: Node) -> str:
        """Find the finished inputs of a node; return the name of its own output.

        Raises HQError if an input is not finished.
        """
        missing = [n for n in self.missing([node]) if n.identity != node.identity]
        if missing:
            raise HQError(
                f"The input {missing[0].name} of {node.name} is not in the store of this worker: "
                "give all workers the same store, and the same versions of hq and its packages."
            )
        return self._folder_name(node)

    def plan(self, wanted: Sequence[Node]) -> list[Planned]:
        """Return what `run` would do with each node, without computing anything.

        Raises HQError if later nodes must not use a finished output.
        """
        return [self._planned(node) for node in ordered(wanted)]

    @property
    def outputs(self) -> Outputs:
        """The folders of nodes that `run`, `plan` or `missing` finished or found finished."""
        return self._outputs

    def missing(self, wanted: Sequence[Node]) -> list[Node]:
        """Return the nodes without a finished output, as far as their inputs are finished.

        Raises HQError if later nodes must not use a finished output.
        """
        return [node for node in ordered(wanted) if not self._reuse(node)]

    def _reuse(self, node: Node) -> bool:
        """Add the output of a node if it is finished; return whether it is."""
        if node in self._outputs:
            return True
        record = self._store.record(self._folder_name(node)) if self._is_ready(node) else None
        if record is None:
            return False
        self._add(node, record)
        return True

    def _add(self, node: Node, record: dict[str, Any]) -> None:
        """Add a finished output. Raises HQError if later nodes must not use it."""
        name = self._folder_name(node)
        if node.stage.verify is not None:
            _verify(node, self._folders((name,))[0])
        self._outputs.add(node, name, record)

    def _planned(self, node: Node) -> Planned:
        if self._reuse(node):
            return Planned(node, "there")
        seconds = self._expected(node)
        waiting = [o.node.name for o in node.inputs.values() if o.node not in self._outputs]
        if waiting:
            return Planned(node, "waits", f"for {', '.join(dict.fromkeys(waiting))}", seconds)
        change = self._change(node)
        return (
            Planned(node, "stale", change, seconds)
            if change
            else Planned(node, "missing", "", seconds)
        )

    def _is_ready(self, node: Node) -> bool:
        return all(output.node in self._outputs for output in node.inputs.values())

    def _key(self, node: Node) -> dict[str, Any]:
        """Everything a node's output depends on; its inputs must be finished."""
        if node.identity not in self._keys:
            self._keys[node.identity] = self._new_key(node)
        return self._keys[node.identity]

    def _new_key(self, node: Node) -> dict[str, Any]:
        return {
            "stage": node.stage.name,
            "version": node.stage.version,
            "packages": versions(*node.stage.packages),
            "parameters": dict(node.parameters),
            "inputs": {name: self._outputs.digest(o) for name, o in sorted(node.inputs.items())},
        }

    def _folder_name(self, node: Node) -> str:
        return f"{node.stage.name}-{digest(self._key(node))}"

    def _record(self, name: str) -> dict[str, Any]:
        record = self._store.record(name)
        if record is None:
            raise HQError(
                f"The output {name} is not in the store {self._store} although it was computed: "
                "give all workers the same store, and remove nothing from it during a run."
            )
        return record

    def _folders(self, names: Sequence[str]) -> list[Path]:
        return [f for name in names if self._record(name) and (f := self._store.finished(name))]

    def _work(self, node: Node, folder: Path, inputs: Mapping[str, Path]) -> Work[Any]:
        materials = self._materials if node.materials is None else node.materials
        digests = self._key(node)["inputs"]
        return Work(node, folder, inputs, digests, materials, self._store, self._progress)

    def _jobs(self, node: Node, shards: tuple[str, ...], slots: int) -> list[Job]:
        """Return what to compute next for a node, of which these shards are finished."""
        name = self._folder_name(node)
        sharding = None if node.whole else node.stage.sharding
        if sharding is None or slots == 1 or not self._goes_on(node, sharding, shards):
            jobs = [Job(node, name, shards=shards)]
        else:
            turn = 1 + max(map(_round_of, shards), default=-1)
            parts = [Shard(index, slots, turn) for index in range(slots)]
            jobs = [Job(node, f"{name}{_SHARD}{part}", part, shards) for part in parts]
        for job in jobs:
            self._store.renew(job.name)
        return jobs

    def _goes_on(self, node: Node, sharding: Sharding, shards: tuple[str, ...]) -> bool:
        """Return whether a round of shards follows."""
        if sharding.more is None:
            return not shards
        work = self._work(node, self._store.root, {})
        return sharding.more(work, self._folders(shards))

    def _finish(self, job: Job) -> None:
        """Add the output of a computed node, and remove its shards."""
        self._add(job.node, self._record(job.name))
        for name in job.shards:
            self._store.discard(name)

    def _counted(self, schedule: Schedule) -> AbstractContextManager[Callable[[int], None]]:
        """Show the number of finished nodes, if the nodes themselves run elsewhere."""
        if self._executor.slots == 1:
            return nullcontext(lambda _: None)
        return _advancing(self._progress, len(schedule))

    def _expected(self, node: Node) -> float | None:
        """Estimate the seconds from the last node of the same stage and precision, by its units."""
        for record in self._store.records(node.stage.name):
            name_parts = record["node"].split(" ")
            if node.precision is None or node.precision in name_parts:
                seconds: float = record["seconds"]
                return seconds * node.units / max(int(record["units"]), 1)
        return None

    def _change(self, node: Node) -> str:
        """How the most similar finished node of this name differs; empty if there is none."""
        key = self._key(node)
        changes = (
            list(_differences(key, {name: record[name] for name in key}))
            for record in self._store.records(node.stage.name)
            if record["node"] == node.name
        )
        nearest = min(changes, key=len, default=[])
        more = f" and {len(nearest) - 1} more" if len(nearest) > 1 else ""
        return f"{nearest[0]}{more}" if nearest else ""


@contextmanager
def _advancing(progress: Progress, nodes: int) -> Iterator[Callable[[int], None]]:
    with progress.task("nodes", nodes, "nodes") as task:
        yield task.advance


def _round_of(shard: str) -> int:
    return int(shard.rpartition(_SHARD)[2].partition("-")[0])


def _verify(node: Node, folder: Path) -> None:
    """Raises HQError, naming the node, if later nodes must not use its finished output."""
    assert node.stage.verify is not None
    try:
        node.stage.verify(node, folder)
    except Exception as error:
        note_node(error, node)
        raise


def _differences(now: Any, before: Any, where: str = "") -> Iterator[str]:
    """Describe each value that differs, at any depth."""
    if isinstance(now, dict) and isinstance(before, dict):
        for key in sorted(now.keys() | before.keys()):
            yield from _differences(now.get(key), before.get(key), f"{where}.{key}".lstrip("."))
    elif _plain(now) != _plain(before):
        yield f"{where} was {_short(before)}, is {_short(now)}"


def _plain(value: object) -> object:
    """The value as JSON represents it, with lists in place of tuples."""
    return list(map(_plain, value)) if isinstance(value, list | tuple) else value


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:37]}…"
