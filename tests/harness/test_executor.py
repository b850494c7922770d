"""The runner with several slots: parts of nodes, their order, and a simulated cluster."""

from dataclasses import replace

import pytest

from harness.bench.simulated_cluster import Costs, critical, makespan, simulate
from harness.store.executor import Local
from harness.store.progress import Progress
from harness.store.runner import Runner
from harness.store.store import Store
from tests.harness import worker_nodes

QUIET = Progress(quiet=True)


class Slots(Local):
    """Three slots; the job that was submitted last ends first."""

    slots = 3

    def __init__(self, store, jobs):
        super().__init__(self.do)
        self.runner, self.jobs, self.most = Runner(store, QUIET, None), jobs, 0

    def do(self, job):
        self.runner.adopt(job.node)
        self.runner.compute(job)

    def submit(self, job):
        super().submit(job)
        self.jobs.append(str(job))
        self.most = max(self.most, len(self._jobs))


@pytest.fixture
def notes(tmp_path):
    folder = tmp_path / "notes"
    folder.mkdir()
    return folder


def test_a_divided_node_has_the_same_bytes_and_leaves_no_parts(tmp_path, notes):
    _, (wanted,) = worker_nodes.declare(notes)
    squares = wanted.inputs["squares"].node
    whole = Runner(Store(tmp_path / "one"), QUIET, None).run([wanted])
    jobs = []
    store = Store(tmp_path / "three")
    executor = Slots(store, jobs)
    divided = Runner(store, QUIET, None, executor).run([wanted])
    assert executor.most == 3
    assert jobs == [*(f"squares, shard {i} of 3" for i in (1, 2, 3)), "squares", "total"]
    assert sorted(worker_nodes.did(notes)) == sorted([*map(str, range(8)), "total", "total"])
    for node in (squares, wanted):
        assert divided.record(node) == whole.record(node)
        assert divided[node].name == whole[node].name
    assert [p.name for p in divided[squares].iterdir() if p.name != "node.json"] == ["out"]
    assert not [
        path for path in (tmp_path / "three").iterdir() if path.is_dir() and "shard" in path.name
    ]
    again = []
    Runner(store, QUIET, None, Slots(store, again)).run([wanted])
    assert again == []


def test_finished_parts_are_found_after_a_failed_run(tmp_path, notes):
    _, (wanted,) = worker_nodes.declare(notes)
    squares = wanted.inputs["squares"].node

    def broken(work, shards):
        raise RuntimeError("stopped")

    stage = replace(squares.stage, sharding=replace(squares.stage.sharding, merge=broken))
    store = Store(tmp_path / "store")
    with pytest.raises(RuntimeError, match="stopped"):
        Runner(store, QUIET, None, Slots(store, [])).run([replace(squares, stage=stage)])
    assert len(worker_nodes.did(notes)) == 8
    Runner(store, QUIET, None, Slots(store, [])).run([squares])
    assert len(worker_nodes.did(notes)) == 8  # only the merge was missing


def test_a_fresh_run_computes_each_part_once(tmp_path, notes):
    _, (wanted,) = worker_nodes.declare(notes)
    store = Store(tmp_path / "store")
    Runner(store, QUIET, None, Slots(store, [])).run([wanted])
    fresh = Store(tmp_path / "store", fresh=True)
    Runner(fresh, QUIET, None, Slots(store, [])).run([wanted])
    assert len(worker_nodes.did(notes)) == 2 * 9


def test_the_simulation_keeps_the_work_and_names_what_limits_it():
    costs = Costs(
        job=0.0, load=dict.fromkeys(Costs().load, 0.0), pack=0.0, identify=0.0, select=0.0
    )
    alone, four, many = (simulate(n, costs) for n in (1, 4, 64))
    work = makespan(alone)
    # By hand: sampling, maps of 4 precisions, and traces and uncertainty at FP16 and 3 others.
    assert work == pytest.approx(5 * 1024 * 4 + 4 * 240 + 2 * 2000 * 0.5 * (1 + 3 * 1.5))
    for ran in (four, many):
        assert sum(one.end - one.start for one in ran) == pytest.approx(work)
        assert makespan(ran) >= work / len({one.job.name for one in ran})
        chain = critical(ran)
        assert sum(one.end - one.start for one in chain) == pytest.approx(makespan(ran))
    assert work / 4 <= makespan(four) < work / 3
    assert makespan(many) < makespan(four)
    assert critical(many)[-1].job.node.stage.name == "uncertainty"  # it is not divided
