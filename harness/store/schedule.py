"""The order of a run: which nodes wait for inputs, which jobs may start, and which run."""

from collections.abc import Sequence

from harness.store.executor import Job
from harness.store.node import Node


class Schedule:
    """Which nodes wait, which jobs can start, and which run."""

    def __init__(self, nodes: Sequence[Node]) -> None:
        self._waiting = {node.identity: node for node in nodes}
        self._order = {node.identity: number for number, node in enumerate(nodes)}
        self._ready: list[Job] = []
        self._running: list[Job] = []
        self._rounds: dict[str, tuple[int, tuple[str, ...]]] = {}  # jobs left, names of shards
        self._precision: str | None = None  # of the job that was started last

    def __len__(self) -> int:
        return len(self._order)

    @property
    def running(self) -> int:
        """The number of jobs that run."""
        return len(self._running)

    def waiting(self) -> list[Node]:
        """Return the nodes of which no job was added, inputs first."""
        return list(self._waiting.values())

    def drop(self, node: Node) -> None:
        """Remove a node that was found finished."""
        del self._waiting[node.identity]

    def add(self, jobs: Sequence[Job]) -> None:
        """Add the jobs of one node: itself, or a round of its shards."""
        node = jobs[0].node
        self._waiting.pop(node.identity, None)
        names = jobs[0].shards + tuple(job.name for job in jobs if job.shard)
        self._rounds[node.identity] = (len(jobs), names)
        self._ready += jobs
        self._ready.sort(key=lambda job: self._order[job.node.identity])

    def next(self) -> Job | None:
        """Start the next job and return it; None if there is none that may start."""
        early = [job for job in self._ready if job.node.first]
        if not early and any(job.node.first for job in self._running):
            return None
        chosen = early or [j for j in self._ready if j.node.precision in (None, self._precision)]
        job = next(iter(chosen or self._ready), None)
        if job is not None:
            self._ready.remove(job)
            self._running.append(job)
            self._precision = job.node.precision or self._precision
        return job

    def ended(self, job: Job) -> tuple[str, ...] | None:
        """End a job; return the names of all shards of its node after the last one of a round."""
        self._running.remove(job)
        left, names = self._rounds[job.node.identity]
        self._rounds[job.node.identity] = (left - 1, names)
        return names if job.shard and left == 1 else None
