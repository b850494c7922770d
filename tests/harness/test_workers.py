"""Ray's workers: equal bytes, lost workers, nodes and drivers, and a store on an S3 server."""

import json
import os
import secrets
import signal
import subprocess
import sys
import textwrap
import time

import psutil
import pytest

from harness.store.cluster import RayExecutor
from harness.store.opening import open_store
from harness.store.progress import Progress
from harness.store.runner import Runner
from hq.errors import HQError
from tests.harness import worker_nodes
from tests.harness.killing import needs_sigkill
from tests.test_project import ROOT

pytestmark = [
    pytest.mark.scale,
    # Ray leaves sockets and files of its processes to the garbage collector.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
QUIET = Progress(quiet=True)
SQUARES = " ".join(str(n**2) for n in range(8))


@pytest.fixture
def notes(tmp_path):
    folder = tmp_path / "notes"
    folder.mkdir()
    return folder


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A cache of its own, and modules of the tests that workers can import."""
    monkeypatch.setenv("HQ_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    return tmp_path


@pytest.fixture
def s3(monkeypatch):
    """The URL of a bucket on an S3-compatible server."""
    server_module = pytest.importorskip("moto.server")
    s3fs = pytest.importorskip("s3fs")
    server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    settings = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    bucket = f"bucket-{secrets.token_hex(4)}"  # servers in one process share their buckets
    s3fs.S3FileSystem(skip_instance_cache=True).mkdir(bucket)
    yield f"s3://{bucket}/hq"
    server.stop()


def run(notes, workers=2, store=None, address=None, **options):
    """The text of the node of squares, and the number of the total."""
    declare = worker_nodes.declaring(notes, **options)
    _, (wanted,) = declare()
    executor = RayExecutor(declare, store, None if address else workers, address)
    outputs = Runner(open_store(store), QUIET, None, executor).run([wanted])
    squares = wanted.inputs["squares"].node
    return [(outputs[n] / "out").read_text(encoding="utf-8") for n in (squares, wanted)]


def contents(folder):
    """The digests of all outputs in a store on this machine, without those that measure time."""
    records = [json.loads(p.read_text(encoding="utf-8")) for p in folder.glob("*/node.json")]
    return {record["node"]: record["outputs"] for record in records}


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_a_study_has_equal_bytes_with_any_number_of_workers(
    workers, hq, finished, tiny_study, tmp_path, monkeypatch
):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    ran = hq("run", tiny_study, "--workers", workers, "--quiet")
    assert ran.code == 0, ran.err
    assert contents(tmp_path / "cache" / "store") == contents(finished / "cache" / "store")
    tables = {p.name: p.read_bytes() for p in (finished / "runs" / "tiny").glob("*.csv")}
    assert len(tables) > 5
    for name in tables.keys() - {"speed.csv"}:
        assert (tmp_path / "runs" / "tiny" / name).read_bytes() == tables[name]
    assert not list((tmp_path / "cache" / "store").glob("*.shard-*/"))


@needs_sigkill
def test_a_study_on_s3_survives_a_worker_killed_in_a_trace(hq, s3, finished, tiny_study, tmp_path):
    command = [sys.executable, "-c", "from harness.cli import main; main()", "run", str(tiny_study)]
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    driver = subprocess.Popen([*command, "--workers", "2", "--store", s3, "--quiet"], env=env)
    killed = None
    while driver.poll() is None and killed is None:
        begun = list(tmp_path.glob("cache/stores/*/trace-*.shard-*.partial/batch-*.npz"))
        tracing = [p for p in psutil.Process(driver.pid).children(recursive=True) if is_tracing(p)]
        if begun and tracing:
            killed = tracing[0]
            os.kill(killed.pid, signal.SIGKILL)
        time.sleep(0.002)
    assert driver.wait(timeout=300) == 0
    assert killed is not None
    (copy,) = (tmp_path / "cache" / "stores").iterdir()
    assert contents(copy) == contents(finished / "cache" / "store")


def is_tracing(process):
    try:
        return process.cmdline()[:1] != [] and process.cmdline()[0].startswith("ray::trace")
    except psutil.Error:
        return False


@needs_sigkill
def test_a_worker_killed_in_a_shard_continues_it(here, notes):
    assert run(notes, kill=4) == [SQUARES, "140"]
    assert (notes / "killed").exists()
    # Pieces 0 and 2 of the same shard were finished and are not made again.
    assert sorted(worker_nodes.did(notes)) == sorted([*map(str, range(8)), "total"])


def test_a_killed_driver_leaves_no_worker_and_the_next_one_continues(here, notes, s3):
    program = f"""
        from pathlib import Path
        from tests.harness.test_workers import run
        run(Path({str(notes)!r}), store={s3!r}, seconds=1.0)
    """
    driver = subprocess.Popen([sys.executable, "-c", textwrap.dedent(program)])
    wait_until(lambda: worker_nodes.did(notes))
    started = psutil.Process(driver.pid).children(recursive=True)
    workers = [p for p in started if any("squares" in part for part in p.cmdline())]
    assert workers
    driver.kill()
    driver.wait()
    _, alive = psutil.wait_procs(workers, timeout=60)
    _, agents = psutil.wait_procs(started, timeout=1)
    for agent in agents:  # Ray's agents, which compute nothing, may outlive a killed driver
        agent.kill()
    assert alive == []
    assert run(notes, store=s3, seconds=1.0) == [SQUARES, "140"]
    did = worker_nodes.did(notes)
    assert set(did) == {*map(str, range(8)), "total"}
    assert len(did) <= 9 + 2  # at most one piece per worker was lost


def test_two_drivers_at_once_have_one_output(here, notes, s3):
    programs = [
        f"""
        import os
        from pathlib import Path
        os.environ["HQ_CACHE"] = {str(here / f"machine-{number}")!r}
        from tests.harness.test_workers import run
        print(run(Path({str(notes)!r}), store={s3!r}, seconds=0.3))
        """
        for number in range(2)
    ]
    drivers = [
        subprocess.Popen([sys.executable, "-c", textwrap.dedent(p)], stdout=subprocess.PIPE)
        for p in programs
    ]
    said = [
        driver.communicate(timeout=300)[0].decode().strip().splitlines()[-1] for driver in drivers
    ]
    assert said == [str([SQUARES, "140"])] * 2
    records = [list(open_store(s3).records(stage)) for stage in ("squares", "total")]
    assert [len(of_stage) for of_stage in records] == [1, 1]


def test_a_lost_machine_is_replaced_by_another(here, notes, s3):
    utils = pytest.importorskip("ray.cluster_utils")
    cluster = utils.Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    try:
        lost = cluster.add_node(num_cpus=2)
        program = f"""
            from pathlib import Path
            from tests.harness.test_workers import run
            print(run(Path({str(notes)!r}), store={s3!r}, address={cluster.address!r}, seconds=1.0))
        """
        driver = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(program)], stdout=subprocess.PIPE
        )
        wait_until(lambda: worker_nodes.did(notes))
        cluster.add_node(num_cpus=2)
        cluster.remove_node(lost, allow_graceful=False)
        said = driver.communicate(timeout=300)[0].decode().strip().splitlines()[-1]
        assert said == str([SQUARES, "140"])
    finally:
        cluster.shutdown()


def test_what_no_machine_has_is_one_sentence(here, notes):
    with pytest.raises(HQError, match=r"No machine of the cluster has what squares needs: .* GiB"):
        run(notes, memory=2**60)


def test_a_worker_that_declares_other_nodes_is_one_sentence(here, notes):
    _, (wanted,) = worker_nodes.declare(notes, seconds=0.1)
    executor = RayExecutor(worker_nodes.declaring(notes), None, 1)
    with pytest.raises(HQError, match="declares other nodes for this study"):
        Runner(open_store(), QUIET, None, executor).run([wanted])


def wait_until(condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)
