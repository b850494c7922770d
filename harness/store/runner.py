"""Runner of declared nodes: inputs first, one loaded model at a time, finished outputs reused."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from harness.store.environment import versions
from harness.store.node import Node, Output, Work, note_node, ordered
from harness.store.progress import Progress
from harness.store.store import Store, digest, read_record

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
        """Add the folder of a finished node."""
        self._folders[node.identity] = folder

    def digest(self, output: Output) -> str:
        """Return the content digest of an output, or of some of its files."""
        files: Mapping[str, str] = read_record(self[output.node])["outputs"]
        return digest([files[name] for name in output.files] if output.files else dict(files))

    def record(self, node: Node) -> dict[str, Any]:
        """Return everything a node was computed from, and the content digest of its output."""
        record = read_record(self[node])
        record.pop("seconds")
        return record | {"outputs": digest(record["outputs"])}


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

    def __init__(self, store: Store, progress: Progress, materials: Any) -> None:
        self._store = store
        self._progress = progress
        self._materials = materials
        self._outputs = Outputs()
        self._keys: dict[str, dict[str, Any]] = {}

    def run(self, wanted: Sequence[Node]) -> Outputs:
        """Compute the missing ones of `wanted` and of all nodes that they depend on.

        Among nodes with finished inputs, those marked `first` come first, then those at the
        precision of the loaded model, so that each model is loaded once. Raises HQError, naming the
        node, if one cannot be computed.
        """
        pending = [node for node in ordered(wanted) if node not in self._outputs]
        loaded: str | None = None
        while pending:
            ready = [n for n in pending if self._is_ready(n)]
            finished = next((n for n in ready if self._finished(n)), None)
            same_model = next((n for n in ready if n.precision in (None, loaded)), None)
            early = next((n for n in ready if n.first), None)
            node = finished or early or same_model or ready[0]
            self._outputs.add(node, self._build(node))
            if finished is None:
                loaded = node.precision or loaded
            pending.remove(node)
        return self._outputs

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
        folder = self._finished(node) if self._is_ready(node) else None
        if folder is None:
            return False
        _verify(node, folder)
        self._outputs.add(node, folder)
        return True

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
                    self._materials if node.materials is None else node.materials,
                    self._store,
                    self._progress,
                )
            )

        record = key | {"node": node.name, "units": node.units}
        try:
            folder = self._store.build(self._folder_name(node), record, make, node.stage.volatile)
        except Exception as error:
            note_node(error, node)
            raise
        _verify(node, folder)
        return folder

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


def _verify(node: Node, folder: Path) -> None:
    """Raises HQError, naming the node, if later nodes must not use its finished output."""
    if node.stage.verify is None:
        return
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
