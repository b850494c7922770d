"""Stages and nodes: kinds of steps, and single steps with everything their output depends on.

A node's key is a digest of its stage's name and version, the versions of the packages that compute
it, its parameters, and the content digests of its inputs. The store names outputs by these keys, so
a node is computed once, and computed again if anything in its key changes.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from harness.store.store import digest
from hq.errors import HQError

if TYPE_CHECKING:
    from harness.store.progress import Progress, Task
    from harness.store.store import Store

M = TypeVar("M")
_NODE = "In node: "


@dataclass(frozen=True)
class GrowingLog:
    """A log that several nodes and runs append to, with a key of what its records depend on.

    Raise `version` when a change of the code can change a record. `sources` are those of `Stage`.
    """

    name: str
    version: int = 1
    sources: tuple[str, ...] = ()


@dataclass(frozen=True)
class Shard:
    """One of `count` parts into which the work of a node is divided, in a round of such parts."""

    index: int
    count: int
    round: int = 0

    def __str__(self) -> str:
        return f"{self.round}-{self.index}-{self.count}"

    def has(self, number: int) -> bool:
        """Return whether a numbered piece of work belongs to this part."""
        return number % self.count == self.index


@dataclass(frozen=True)
class Sharding:
    """How the work of a node is divided among workers; the bytes of its output do not change.

    Args:
        make: Writes the output of one part; it may read the parts of earlier rounds.
        merge: Writes the output of the node from those of all parts, without a model.
        more: Whether another round follows the finished parts; None if one round is enough.
    """

    make: Callable[["Work[Any]", Shard, Sequence[Path]], None]
    merge: Callable[["Work[Any]", Sequence[Path]], None]
    more: Callable[["Work[Any]", Sequence[Path]], bool] | None = None


@dataclass(frozen=True)
class Stage:
    """One kind of step, from files to files.

    Args:
        name: The name, with which folders in the store begin.
        make: Writes the output of a node into a folder. It may read the materials of the study, but
            everything that can change the output must be in the node's parameters or inputs.
        version: Part of the key of every node. Raise it when a change of the code can change the
            output.
        packages: Distributions with versions that are part of the key.
        sources: Modules in which the computation starts, in addition to the module that defines
            the stage; `harness.experiments.lock` digests them and all modules that they import.
        volatile: Files that differ between runs, such as speeds; they have no content digest.
        verify: Raises HQError if later nodes must not use a finished output.
        sharding: How several workers share the work of a node; None if it cannot be divided.
        streams: Whether it can run with one layer of the model in memory.
    """

    name: str
    make: Callable[["Work[Any]"], None]
    version: int = 1
    packages: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()
    volatile: frozenset[str] = frozenset()
    verify: Callable[["Node", Path], None] | None = None
    sharding: Sharding | None = None
    streams: bool = False


@dataclass(frozen=True)
class Output:
    """An input of a node: the output of another node, or only some of its files."""

    node: "Node"
    files: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Node:
    """One step of a study, declared before anything runs.

    Args:
        parameters: JSON values that the output depends on.
        inputs: Outputs of other nodes, by the names that `make` uses.
        precision: The precision at which the model is loaded; None if no model is loaded.
        about: What distinguishes this node from others of its stage and precision.
        units: The largest amount of work, for estimates of time; `unit` is the name of one unit.
        disk: The largest size of the output in bytes.
        memory: Bytes of memory that the computation takes.
        first: Whether it runs before other nodes, because its output may forbid everything else.
        materials: What `make` may read, if it is not the materials of the run.
        whole: Whether one worker computes it, although the stage could be divided.
    """

    stage: Stage
    parameters: Mapping[str, Any]
    inputs: Mapping[str, Output] = field(default_factory=dict)
    precision: str | None = None
    about: str = ""
    units: int = 1
    unit: str = "steps"
    disk: int = 0
    memory: int = 0
    first: bool = False
    materials: Any = None
    whole: bool = False

    @cached_property
    def name(self) -> str:
        """Stage, precision and `about`; unique in an experiment."""
        return " ".join(part for part in (self.stage.name, self.precision, self.about) if part)

    @cached_property
    def identity(self) -> str:
        """A digest of the declaration: two equal declarations have the same identity."""
        inputs = {
            name: [output.node.identity, sorted(output.files)]
            for name, output in self.inputs.items()
        }
        return digest([self.stage.name, self.stage.version, dict(self.parameters), inputs])

    def output(self, *files: str) -> Output:
        """Return the output, or only these files of it, as an input of another node."""
        return Output(self, files)


@dataclass(frozen=True)
class Work(Generic[M]):
    """The argument of `Stage.make`: a node, the folder for its output, and what it may use."""

    node: Node
    folder: Path
    inputs: Mapping[str, Path]
    digests: Mapping[str, str]  # content digest of each input
    materials: M
    store: "Store"
    progress: "Progress"

    @property
    def parameters(self) -> Mapping[str, Any]:
        """The parameters of the node."""
        return self.node.parameters

    def task(
        self, total: int, unit: str, name: str | None = None
    ) -> "AbstractContextManager[Task]":
        """Start a progress bar of `total` units, with the name of the node by default."""
        return self.progress.task(name or self.node.name, total, unit)


def ordered(wanted: Sequence[Node]) -> list[Node]:
    """Return `wanted` and all nodes that they depend on, each once and after its inputs.

    Raises HQError if two different nodes have the same name.
    """
    seen: set[str] = set()
    names: dict[str, str] = {}

    def walk(node: Node) -> Iterator[Node]:
        if names.setdefault(node.name, node.identity) != node.identity:
            raise HQError(
                f"Two different nodes are called {node.name!r}: the experiment has to tell them "
                "apart by `about`."
            )
        if node.identity in seen:
            return
        seen.add(node.identity)
        for source in node.inputs.values():
            yield from walk(source.node)
        yield node

    return [reached for node in wanted for reached in walk(node)]


def note_node(error: BaseException, node: Node) -> None:
    """Add to an error the name of the node in which it was raised."""
    error.add_note(f"{_NODE}{node.name}")


def failed_node(error: BaseException) -> str:
    """Return the name of the node in which an error was raised; empty if there is none."""
    notes = [n for n in getattr(error, "__notes__", ()) if n.startswith(_NODE)]
    return notes[0].removeprefix(_NODE) if notes else ""
