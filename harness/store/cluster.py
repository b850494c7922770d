"""Executor of jobs on the worker processes of Ray, on this machine or on a cluster.

A job is a node's identity, not its content: each worker declares the nodes again from the study,
and reads inputs from the store. Ray sends tasks by pickle, and whoever reaches a cluster can run
code on it, so a cluster must be one that its users trust.
"""

import os
import pickle
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple, Self

from harness.store.environment import threads, use_threads
from harness.store.executor import Job
from harness.store.node import Node, Shard, note_node, ordered
from harness.store.opening import open_store
from harness.store.progress import Progress
from harness.store.runner import Runner
from hq.errors import HQError

RETRIES = 3  # how often a job is started again after its worker was lost
_OBJECT_STORE = 200 * 2**20  # bytes; results of jobs are names
_MISSING = "Workers need the package ray: pip install 'hq[scale]'."

Declare = Callable[[], tuple[Any, Sequence[Node]]]
"""Returns the materials of a run and its nodes; it is pickled, and called once per worker."""


@dataclass(frozen=True)
class Setting:
    """What every worker of a run needs: how nodes are declared, the store, and its threads."""

    declare: bytes  # a pickled Declare, unpickled after the number of threads is set
    store: str | None
    threads: int


class Task(NamedTuple):
    """A job, as it is sent to a worker."""

    identity: str  # of the node
    name: str
    shard: Shard | None
    shards: tuple[str, ...]


class RayExecutor:
    """Computes jobs as Ray tasks, each with the CPU, GPU and memory that its node needs.

    Args:
        declare: Declares the nodes in each worker.
        store: The folder or URL of the store; None for the folder below this machine's cache.
        workers: The number of worker processes on this machine; None to use a cluster.
        address: The address of a running cluster, as of `ray start`.
        gpus: Returns the number of GPUs that a node needs.
    """

    def __init__(
        self,
        declare: Declare,
        store: str | None,
        workers: int | None = None,
        address: str | None = None,
        gpus: Callable[[Node], int] = lambda _: 0,
    ) -> None:
        self._setting = Setting(pickle.dumps(declare), store, threads())
        self._workers = workers
        self._address = address
        self._gpus = gpus
        self._running: dict[Any, Job] = {}

    def __enter__(self) -> Self:
        self._ray = _ray()
        local = {"num_cpus": self._workers, "object_store_memory": _OBJECT_STORE}
        where = local if self._address is None else {"address": self._address}
        # Workers on this machine begin with this number of threads; Ray's default is one.
        chosen = "OMP_NUM_THREADS" in os.environ
        os.environ.setdefault("OMP_NUM_THREADS", str(self._setting.threads))
        try:
            self._ray.init(
                **where,
                include_dashboard=False if self._address is None else None,
                logging_level="ERROR",
                log_to_driver=False,
            )
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise HQError(
                f"Ray cannot be used at {self._address or 'this machine'}: {error}"
            ) from error
        finally:
            if not chosen:
                del os.environ["OMP_NUM_THREADS"]
        self._task = self._ray.remote(compute)
        self._handle = self._ray.put(self._setting)
        return self

    def __exit__(self, *_: object) -> None:
        for reference in self._running:
            self._ray.cancel(reference, force=True)
        self._running.clear()
        self._ray.shutdown()

    @property
    def slots(self) -> int:
        """The number of GPUs of the cluster, or of CPUs if it has none, as it is now."""
        if self._workers is not None:
            return self._workers
        resources = self._ray.cluster_resources()
        return max(int(resources.get("GPU") or resources.get("CPU", 1)), 1)

    def submit(self, job: Job) -> None:
        """Start a job. Raises HQError if no machine of the cluster has what its node needs."""
        needed = {"CPU": 1, "GPU": self._gpus(job.node), "memory": job.node.memory}
        self._require(job.node, needed)
        options = self._task.options(
            name=str(job),
            num_cpus=needed["CPU"],
            num_gpus=needed["GPU"],
            memory=needed["memory"],
            max_retries=RETRIES,
        )
        task = Task(job.node.identity, job.name, job.shard, job.shards)
        self._running[options.remote(self._handle, task)] = job

    def wait(self) -> Job:
        """Return a job that ended. Raises its error; HQError if its worker was lost too often."""
        (ended,), _ = self._ray.wait(list(self._running), num_returns=1)
        job = self._running.pop(ended)
        try:
            self._ray.get(ended)
        except self._ray.exceptions.RayTaskError as error:
            raise error.cause from None
        except self._ray.exceptions.RayError as error:
            lost = HQError(
                f"{job} lost its worker {RETRIES + 1} times ({type(error).__name__}): it may need "
                f"more than {job.node.memory / 2**30:.1f} GiB of memory; finished nodes are kept, "
                "and the same command continues."
            )
            note_node(lost, job.node)
            raise lost from error
        return job

    def _require(self, node: Node, needed: dict[str, int]) -> None:
        machines = [m["Resources"] for m in self._ray.nodes() if m["Alive"]]
        if not any(all(m.get(k, 0) >= n for k, n in needed.items()) for m in machines):
            raise HQError(
                f"No machine of the cluster has what {node.name} needs: {needed['GPU']} GPUs and "
                f"{needed['memory'] / 2**30:.1f} GiB of memory: add one that has."
            )


def compute(setting: Setting, task: Task) -> None:
    """Compute a job in a worker, whose inputs are in the store. Raises HQError."""
    runner, nodes = _opened(setting)
    node = nodes.get(task.identity)
    if node is None or runner.adopt(node) != task.name.partition(".")[0]:
        raise HQError(
            f"The worker on {platform.node()} declares other nodes for this study: give it the same"
            " versions of hq and its packages, and the same files at the same paths."
        )
    runner.compute(Job(node, task.name, task.shard, task.shards))


@cache
def _opened(setting: Setting) -> tuple[Runner, dict[str, Node]]:
    """Open the study once per worker process, which keeps the loaded model between jobs."""
    use_threads(setting.threads)
    declare: Declare = pickle.loads(setting.declare)  # noqa: S301 - from the driver, see above
    materials, nodes = declare()  # freed at the end of the process
    store = open_store(setting.store)
    runner = Runner(store, Progress(quiet=True).__enter__(), materials)
    return runner, {node.identity: node for node in ordered(nodes)}


def _ray() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as error:
        raise HQError(_MISSING) from error
    return ray
