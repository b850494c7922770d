"""Stages and nodes: what one step computes, and one such step with all that its output depends on.

A node's key is a digest of its stage's name and version, the versions of the packages that compute
it, its parameters, and the content digests of its inputs. The store keeps outputs under these keys,
so a node is computed once, and computed again as soon as anything in its key changes.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from harness.store.store import digest

if TYPE_CHECKING:
    from harness.store.progress import Progress, Task
    from harness.store.store import Store

M = TypeVar("M")
_NODE = "In node: "


@dataclass(frozen=True)
class Log:
    """A file that grows: one record per line, kept across runs under what the records depend on.

    Raise `version` whenever a change of the code can change a record. `sources` are as in `Stage`.
    """

    name: str
    version: int = 1
    sources: tuple[str, ...] = ()


@dataclass(frozen=True)
class Stage:
    """One kind of step, from files to files.

    Args:
        name: of the stage; folders in the store begin with it.
        make: writes the output of a node into a folder. It may use the materials of the study, but
            whatever changes the output has to be in the node's parameters or inputs.
        version: part of the key of every node. Raise it whenever a change of the code can change
            the output.
        packages: distributions whose versions are part of the key.
        sources: modules where the computation starts, beside the one that defines the stage;
            `harness.experiments.lock` digests them and all that they import.
        volatile: files that differ from run to run, such as speeds: not part of content digests.
        verify: raises HQError if a finished output forbids what follows.
    """

    name: str
    make: Callable[["Work[Any]"], None]
    version: int = 1
    packages: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()
    volatile: frozenset[str] = frozenset()
    verify: Callable[["Node", Path], None] | None = None


@dataclass(frozen=True)
class Output:
    """What a node takes from another: all of its output, or only some files of it."""

    node: "Node"
    files: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Node:
    """One step of a study, declared before anything runs.

    Args:
        parameters: JSON values that the output depends on.
        inputs: outputs of other nodes, by the name that `make` knows them under.
        precision: which model has to be loaded; None if no model is.
        about: what distinguishes this node from others of its stage and precision.
        units: how much work there is, at most, for estimates of time; `unit` names it.
        disk: bytes that the output takes, at most; `memory`: bytes that computing it takes.
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

    @cached_property
    def name(self) -> str:
        """Stage, precision, and what distinguishes it: unique in a study."""
        return " ".join(part for part in (self.stage.name, self.precision, self.about) if part)

    @cached_property
    def identity(self) -> str:
        """A digest of the declaration: equal for two nodes that were declared alike."""
        inputs = {k: [o.node.identity, sorted(o.files)] for k, o in self.inputs.items()}
        return digest([self.stage.name, self.stage.version, dict(self.parameters), inputs])

    def output(self, *files: str) -> Output:
        """All of the output, or these files, as an input of another node."""
        return Output(self, files)


@dataclass(frozen=True)
class Work(Generic[M]):
    """What `Stage.make` is given: a node, the folder for its output, and what it may use."""

    node: Node
    folder: Path
    inputs: Mapping[str, Path]
    digests: Mapping[str, str]  # content digest of each input
    materials: M
    store: "Store"
    progress: "Progress"

    @property
    def parameters(self) -> Mapping[str, Any]:
        """Those of the node."""
        return self.node.parameters

    def task(
        self, total: int, unit: str, name: str | None = None
    ) -> "AbstractContextManager[Task]":
        """A progress bar of `total` units, called after the node unless named."""
        return self.progress.task(name or self.node.name, total, unit)


def ordered(wanted: Sequence[Node]) -> list[Node]:
    """All nodes that `wanted` depend on, and these, each once and after its inputs."""
    seen: set[str] = set()

    def walk(node: Node) -> Iterator[Node]:
        if node.identity in seen:
            return
        seen.add(node.identity)
        for source in node.inputs.values():
            yield from walk(source.node)
        yield node

    return [reached for node in wanted for reached in walk(node)]


def note_node(error: BaseException, node: Node) -> None:
    """Notes in an error which node it comes from."""
    error.add_note(f"{_NODE}{node.name}")


def failed_node(error: BaseException) -> str:
    """The name of the node that an error came from; empty if it came from none."""
    notes = [n for n in getattr(error, "__notes__", ()) if n.startswith(_NODE)]
    return notes[0].removeprefix(_NODE) if notes else ""
