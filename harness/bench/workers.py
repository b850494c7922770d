"""Bench `workers`: how a run scales with its worker processes, measured and simulated."""

import json
import tempfile
import time
from collections import Counter
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from harness.bench.base import BenchRow
from harness.bench.simulated_cluster import Costs, critical, makespan, simulate
from harness.store.cluster import RayExecutor
from harness.store.node import Node, Shard, Sharding, Stage, Work
from harness.store.opening import open_store
from harness.store.progress import Progress
from harness.store.runner import Runner
from hq.errors import HQError

_WORKERS = (1, 2, 4)
_TIMES_FILE = "times.json"
_PATIENCE_S = 120.0  # until all workers have started
_INSTALL = "ray is not installed: pip install 'hq[scale]'"


def bench_workers(
    pieces: int = 48, seconds: float = 0.25, gpus: int = 64, costs: Costs | None = None
) -> list[BenchRow]:
    """Measure the efficiency of worker processes, and simulate it on GPUs. Takes about a minute.

    Measured: two nodes of `pieces` pieces, each of which sleeps, are divided among the workers, and
    one more node reads both. A sleep uses no core, so 4 workers can be measured on 2 cores. The
    time begins when all workers have started, which has a row of its own.

    Simulated: the runner schedules a study of a 70B model at four precisions on a virtual clock,
    with assumed `costs`: it quantizes the GPTQ checkpoint, or is given it. Efficiency is the time
    of one worker over that of all, per worker; `limit` says which jobs determine the end.
    """
    rows: list[BenchRow] = []
    if find_spec("ray") is None:
        rows.append(BenchRow(name="efficiency_2", value=None, unit="ratio", note=_INSTALL))
    else:
        took = {workers: _measured(workers, pieces, seconds) for workers in _WORKERS}
        for workers, (started, ended) in took.items():
            ideal = took[1][1] / workers
            goal = ">= 0.8" if workers > 1 else None
            note = f"{ended:.2f} s for {2 * pieces * seconds:.0f} s of sleep"
            efficiency = ideal / ended
            rows += [
                BenchRow(name=f"start_{workers}", value=started, unit="s"),
                BenchRow(
                    name=f"efficiency_{workers}",
                    value=efficiency,
                    unit="ratio",
                    goal=goal,
                    note=note,
                ),
            ]
    return rows + _simulated(gpus, costs or Costs())


def _simulated(gpus: int, costs: Costs) -> list[BenchRow]:
    """Return the rows of a run that quantizes a checkpoint, and of one that is given it."""
    rows: list[BenchRow] = []
    for kind, assumed in (("", costs), ("_given", replace(costs, pack=0.0))):
        alone = makespan(simulate(1, assumed))
        for workers in (gpus // 16, gpus // 4, gpus):
            ran = simulate(workers, assumed)
            total = makespan(ran)
            note = f"{total / 3600:.2f} h, {alone / 3600:.1f} h on one GPU; costs are assumed"
            name, value = f"simulated_efficiency_{workers}{kind}", alone / total / workers
            rows.append(BenchRow(name=name, value=value, unit="ratio", note=note))
        by_stage: Counter[str] = Counter()
        for one in critical(ran):
            by_stage[one.job.node.stage.name] += round(100 * (one.end - one.start) / total)
        note = ", ".join(f"{stage} {share}%" for stage, share in by_stage.most_common() if share)
        name, value = f"simulated_limit_{gpus}{kind}", by_stage.most_common(1)[0][1]
        rows.append(BenchRow(name=name, value=value, unit="%", note=f"of the time: {note}"))
    return rows


def _measured(workers: int, pieces: int, seconds: float) -> tuple[float, float]:
    """Return the seconds until all workers had started, and from then to the end."""
    began = time.time()
    with tempfile.TemporaryDirectory() as scratch:
        declare = partial(_declare, workers, pieces, seconds, scratch)
        _, nodes = declare()
        url = str(Path(scratch) / "store")
        executor = RayExecutor(declare, url, workers)
        outputs = Runner(open_store(url), Progress(quiet=True), None, executor).run(nodes)
        *starts, last = (_times(outputs[node]) for node in nodes)
    started = max(starts)
    return started - began, last - started


def _declare(workers: int, pieces: int, seconds: float, scratch: str) -> tuple[None, list[Node]]:
    """Declare a node per worker, which waits for all of them, and then the sleeping ones."""
    about = {"workers": workers, "folder": scratch}
    starts = [Node(_START, about | {"number": i}, about=str(i), first=True) for i in range(workers)]
    settings = {"pieces": pieces, "seconds": seconds}
    sleeps = [Node(_SLEEP, settings | {"name": name}, about=name) for name in ("a", "b")]
    return None, [*starts, Node(_LAST, {}, {s.about: s.output() for s in sleeps})]


def _start(work: Work[Any]) -> None:
    folder = Path(work.parameters["folder"])
    (folder / f"started-{work.node.about}").touch()
    end = time.monotonic() + _PATIENCE_S
    while len(list(folder.glob("started-*"))) < work.parameters["workers"]:
        if time.monotonic() > end:
            raise HQError(f"Not all workers started within {_PATIENCE_S:.0f} s.")
        time.sleep(0.01)
    _stamp(work)


def _sleep(work: Work[Any]) -> None:
    time.sleep(work.parameters["pieces"] * work.parameters["seconds"])


def _sleep_shard(work: Work[Any], shard: Shard, _: object) -> None:
    numbers = [n for n in range(work.parameters["pieces"]) if shard.has(n)]
    time.sleep(len(numbers) * work.parameters["seconds"])


def _stamp(work: Work[Any], _: object = None) -> None:
    (work.folder / _TIMES_FILE).write_text(json.dumps(time.time()), encoding="utf-8")


def _times(folder: Path) -> float:
    return float(json.loads((folder / _TIMES_FILE).read_text(encoding="utf-8")))


_VOLATILE = frozenset({_TIMES_FILE})
_START = Stage("start", _start, volatile=_VOLATILE)
_SLEEP = Stage("sleep", _sleep, sharding=Sharding(_sleep_shard, _stamp), volatile=_VOLATILE)
_LAST = Stage("last", _stamp, volatile=_VOLATILE)
