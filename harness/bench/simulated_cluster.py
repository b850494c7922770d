"""The schedule of a run on many workers, with a virtual clock: the runner is the real one."""

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Self

from harness.store.executor import Job
from harness.store.node import Node, Sharding, Stage
from harness.store.progress import Progress
from harness.store.runner import Runner
from harness.store.store import Store

PRECISIONS = ("fp16", "int8", "nf4", "gptq-4")


@dataclass(frozen=True)
class Costs:
    """Assumed costs in seconds; the defaults are rough ones of a 70B model, and no measurement.

    Args:
        load: Loading the model at each precision: 140, 70, 40 and 40 GB at 1 GB/s per worker.
        question: Sampling the responses to one question.
        text: Tracing one text, or its entropy, at FP16; other precisions take `slower` times that.
        layer: Mapping the neurons of one layer.
        pack: Making the packed checkpoint.
        identify: Identifying neurons at one precision, on CPUs.
        select: Choosing the samples.
        job: Starting a job and storing its output.
        chunks: Rounds of sampled questions until the quota is reached, of 1,024 each.
        texts: Number of samples.
        layers: Number of layers.
        slower: Time of a forward pass relative to FP16.
    """

    load: Mapping[str, float] = field(
        default_factory=lambda: {"fp16": 140.0, "int8": 70.0, "nf4": 40.0, "gptq-4": 40.0}
    )
    question: float = 4.0
    text: float = 0.5
    layer: float = 3.0
    pack: float = 7200.0
    identify: float = 900.0
    select: float = 10.0
    job: float = 2.0
    chunks: int = 5
    texts: int = 2000
    layers: int = 80
    slower: float = 1.5


class Ran(NamedTuple):
    """One job of a simulated run; times in seconds of the virtual clock."""

    job: Job
    start: float
    end: float


class SimulatedWorkers:
    """Workers with a virtual clock. Each loads the model for every job, as Ray's GPU tasks do.

    With one worker the model stays loaded between jobs, as in a run without Ray.
    """

    def __init__(self, workers: int, costs: Costs, store: "SimulatedStore") -> None:
        self.slots = workers
        self.ran: list[Ran] = []
        self._costs, self._store = costs, store
        self._now = 0.0
        self._queue: list[tuple[float, int, Ran]] = []
        self._loaded: str | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._queue.clear()

    def submit(self, job: Job) -> None:
        """Start a job now."""
        seconds = self._costs.job + _work_of(job, self._costs)
        precision = job.node.precision if _loads(job) else None
        if precision is not None and (self.slots > 1 or precision != self._loaded):
            seconds += self._costs.load[precision]
            self._loaded = precision
        ran = Ran(job, self._now, self._now + seconds)
        heapq.heappush(self._queue, (ran.end, len(self.ran), ran))
        self.ran.append(ran)

    def wait(self) -> Job:
        """Advance the clock to the end of the next job."""
        self._now, _, ran = heapq.heappop(self._queue)
        self._store.simulated[ran.job.name] = {"outputs": {}, "seconds": ran.end - ran.start}
        return ran.job


class SimulatedStore(Store):
    """A store of records without files."""

    def __init__(self) -> None:
        super().__init__(Path("simulated"))
        self.simulated: dict[str, dict[str, Any]] = {}

    def record(self, name: str) -> dict[str, Any] | None:
        """Return the record of a job that ended."""
        return self.simulated.get(name)

    def finished(self, name: str) -> Path | None:
        """Return a path that names the output; nothing is there."""
        return self.root / name if name in self.simulated else None

    def discard(self, name: str) -> None:
        """Forget an output."""
        del self.simulated[name]


def simulate(workers: int, costs: Costs) -> list[Ran]:
    """Return the jobs of a study at four precisions on simulated workers, in order of start."""
    store = SimulatedStore()
    executor = SimulatedWorkers(workers, costs, store)
    Runner(store, Progress(quiet=True), None, executor).run(_nodes(costs))
    return executor.ran


def makespan(ran: Sequence[Ran]) -> float:
    """Return the seconds until the last job ended."""
    return max(one.end for one in ran)


def critical(ran: Sequence[Ran]) -> list[Ran]:
    """Return the jobs that determined the end: each started when the one before it ended."""
    chain = [max(ran, key=lambda one: one.end)]
    while chain[0].start > 0:
        chain.insert(0, next(one for one in ran if one.end == chain[0].start))
    return chain


def _nodes(costs: Costs) -> list[Node]:
    """Declare the graph of `detect`: which nodes wait for which, and which are divided."""
    rounds = Sharding(
        _nothing, _nothing, lambda _, shards: len(set(map(_round, shards))) < costs.chunks
    )
    stages = {name: Stage(name, _nothing) for name in ("map", "pack", "select", "uncertainty")}
    stages |= {"identify": Stage("identify", _nothing)}
    stages |= {"sample": Stage("sample", _nothing, sharding=rounds)}
    stages |= {"trace": Stage("trace", _nothing, sharding=Sharding(_nothing, _nothing))}

    def node(name: str, precision: str | None, *inputs: Node, first: bool = False) -> Node:
        named = {one.name: one.output() for one in inputs}
        about = {} if precision is None else {"precision": precision}
        return Node(stages[name], about, named, precision, first=first)

    packed = node("pack", "gptq-4")
    maps = {
        p: node("map", p, *([packed] if p == "gptq-4" else []), first=p == "fp16")
        for p in PRECISIONS
    }
    chosen = node("select", None, node("sample", "fp16", maps["fp16"]))
    # The divergence from FP16 is computed with the logits of FP16.
    reference = node("uncertainty", "fp16", maps["fp16"], chosen)
    wanted: list[Node] = [reference]
    for p in PRECISIONS:
        wanted.append(node("identify", p, node("trace", p, maps[p], chosen), chosen))
        if p != "fp16":
            wanted.append(node("uncertainty", p, maps[p], chosen, reference))
    return wanted


def _work_of(job: Job, costs: Costs) -> float:
    """Return the seconds of a job, without loading the model and storing the output."""
    stage, slower = job.node.stage.name, 1.0 if job.node.precision == "fp16" else costs.slower
    share = 1 / job.shard.count if job.shard else 1.0
    if job.shard is None and job.shards:
        return 0.0  # merges
    rounds = 1 if job.shard else costs.chunks
    return {
        "map": costs.layers * costs.layer,
        "pack": costs.pack,
        "sample": rounds * 1024 * costs.question * share,
        "select": costs.select,
        "trace": costs.texts * costs.text * slower * share,
        "uncertainty": costs.texts * costs.text * slower,
        "identify": costs.identify,
    }[stage]


def _loads(job: Job) -> bool:
    return job.node.stage.name not in ("identify", "select") and not (
        job.shard is None and job.shards
    )


def _round(shard: Path) -> str:
    return shard.name.rpartition("shard-")[2].partition("-")[0]


def _nothing(*_: Any) -> None:
    """Compute nothing: jobs only take time."""
