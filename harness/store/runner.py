"""Runs declared nodes: inputs first, one loaded model at a time, finished outputs reused."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from harness.store.environment import versions
from harness.store.node import Node, Output, Work, note_node, ordered
from harness.store.progress import Progress
from harness.store.store import Store, digest, record_of

State = Literal["there", "missing", "stale", "waits"]


class Outputs:
    """The folders of finished nodes."""

    def __init__(self) -> None:
        self._folders: dict[str, Path] = {}

    def __getitem__(self, node: Node) -> Path:
        return self._folders[node.identity]

    def __contains__(self, node: Node) -> bool:
        return node.identity in self._folders

    def add(self, node: Node, folder: Path) -> None:
        """Notes where a node's output is."""
        self._folders[node.identity] = folder

    def digest(self, output: Output) -> str:
        """The content digest of an output, or of some of its files."""
        files: Mapping[str, str] = record_of(self[output.node])["outputs"]
        return digest([files[name] for name in output.files] if output.files else dict(files))

    def record(self, node: Node) -> dict[str, Any]:
        """What a node was made from, and the content digest of all that it made."""
        record = record_of(self[node])
        record.pop("seconds")
        return record | {"outputs": digest(record["outputs"])}


@dataclass(frozen=True, slots=True)
class Planned:
    """What a run would do about one node."""

    node: Node
    state: State
    why: str = ""
    seconds: float | None = None  # of computing it, by earlier nodes of the stage; None: not known

    @property
    def needed(self) -> bool:
        """Whether it would be computed."""
        return self.state != "there"


class Runner:
    """Runs the nodes of one study in a store."""

    def __init__(self, store: Store, progress: Progress, materials: Any) -> None:
        self._store = store
        self._progress = progress
        self._materials = materials
        self._outputs = Outputs()
        self._keys: dict[str, dict[str, Any]] = {}

    def run(self, wanted: Sequence[Node]) -> Outputs:
        """Computes what is missing of `wanted` and of all that they depend on.

        Of the nodes whose inputs are finished, those at the precision that ran last come first, so
        that each model is loaded once. Raises HQError, naming the node, if one cannot be computed.
        """
        pending = [node for node in ordered(wanted) if node not in self._outputs]
        resident: str | None = None
        while pending:
            ready = [n for n in pending if self._is_ready(n)]
            finished = next((n for n in ready if self._finished(n)), None)
            same = next((n for n in ready if n.precision in (None, resident)), None)
            node = finished or same or ready[0]
            self._outputs.add(node, self._build(node))
            if finished is None:
                resident = node.precision or resident
            pending.remove(node)
        return self._outputs

    def plan(self, wanted: Sequence[Node]) -> list[Planned]:
        """What `run` would do, node by node. Nothing is computed."""
        return [self._planned(node) for node in ordered(wanted)]

    def _planned(self, node: Node) -> Planned:
        seconds = self._expected(node)
        waiting = [o.node.name for o in node.inputs.values() if o.node not in self._outputs]
        if waiting:
            return Planned(node, "waits", f"for {', '.join(dict.fromkeys(waiting))}", seconds)
        folder = self._finished(node)
        if folder is not None:
            self._outputs.add(node, folder)
            return Planned(node, "there")
        change = self._change(node)
        return (
            Planned(node, "stale", change, seconds)
            if change
            else Planned(node, "missing", "", seconds)
        )

    def _is_ready(self, node: Node) -> bool:
        return all(output.node in self._outputs for output in node.inputs.values())

    def _key(self, node: Node) -> dict[str, Any]:
        """All that a node's output depends on, once its inputs are finished."""
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

    def _finished(self, node: Node) -> Path | None:
        return self._store.finished(self._folder_name(node))

    def _build(self, node: Node) -> Path:
        key = self._key(node)

        def make(folder: Path) -> None:
            node.stage.make(
                Work(
                    node,
                    folder,
                    {name: self._outputs[o.node] for name, o in node.inputs.items()},
                    key["inputs"],
                    self._materials,
                    self._store,
                    self._progress,
                )
            )

        record = key | {"node": node.name, "units": node.units}
        try:
            folder = self._store.build(self._folder_name(node), record, make, node.stage.volatile)
            if node.stage.verify is not None:
                node.stage.verify(node, folder)
        except Exception as error:
            note_node(error, node)
            raise
        return folder

    def _expected(self, node: Node) -> float | None:
        """Seconds by the last node of the same stage and precision, in proportion to its units."""
        for record in self._store.records(node.stage.name):
            words = record["node"].split(" ")
            if node.precision is None or node.precision in words:
                seconds: float = record["seconds"]
                return seconds * node.units / max(int(record["units"]), 1)
        return None

    def _change(self, node: Node) -> str:
        """How a finished node of this name, with other inputs, differs; empty if there is none."""
        key = self._key(node)
        changes = (
            list(_differences(key, {name: record[name] for name in key}))
            for record in self._store.records(node.stage.name)
            if record["node"] == node.name
        )
        nearest = min(changes, key=len, default=[])
        more = f" and {len(nearest) - 1} more" if len(nearest) > 1 else ""
        return f"{nearest[0]}{more}" if nearest else ""


def _differences(now: Any, before: Any, where: str = "") -> Iterator[str]:
    """Which values differ, innermost first."""
    if isinstance(now, dict) and isinstance(before, dict):
        for key in sorted(now.keys() | before.keys()):
            yield from _differences(now.get(key), before.get(key), f"{where}.{key}".lstrip("."))
    elif _plain(now) != _plain(before):
        yield f"{where} was {_short(before)}, is {_short(now)}"


def _plain(value: object) -> object:
    """As JSON has it: tuples are lists."""
    return list(map(_plain, value)) if isinstance(value, list | tuple) else value


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:37]}…"
