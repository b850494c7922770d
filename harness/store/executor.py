"""Executors: where the jobs of a run are computed. The local one computes them in this process."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, Self

from harness.store.node import Node, Shard


@dataclass(frozen=True)
class Job:
    """A node to compute, or one shard of it.

    Args:
        node: The node.
        name: The name of the output in the store.
        shard: The part to compute; None for the whole node.
        shards: Names of the finished parts: all of them for the whole node, which merges them, and
            those of earlier rounds for a shard.
    """

    node: Node
    name: str
    shard: Shard | None = None
    shards: tuple[str, ...] = ()

    def __str__(self) -> str:
        if self.shard is None:
            return self.node.name
        return f"{self.node.name}, shard {self.shard.index + 1} of {self.shard.count}"


class Executor(Protocol):
    """Computes jobs whose inputs are finished; used as a context."""

    @property
    def slots(self) -> int:
        """The number of jobs that can run at once."""
        ...

    def submit(self, job: Job) -> None:
        """Start a job; a free slot is required."""
        ...

    def wait(self) -> Job:
        """Return a job that ended, after at least one did. Raises the error of a failed one."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...


class Local:
    """Computes one job after another in this process, when it is waited for."""

    slots = 1

    def __init__(self, compute: Callable[[Job], None]) -> None:
        self._compute = compute
        self._jobs: list[Job] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._jobs.clear()

    def submit(self, job: Job) -> None:
        """Keep a job until it is waited for."""
        self._jobs.append(job)

    def wait(self) -> Job:
        """Compute the job. Raises its error."""
        job = self._jobs.pop()
        self._compute(job)
        return job
