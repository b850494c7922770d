"""The store: made once and reused, continued after a kill, made again on request."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from threading import Event, Thread

import pytest
from filelock import FileLock

from harness.store.store import Store, read_record
from tests.harness.killing import needs_sigkill

NAME = f"stage-{'1' * 16}"


def test_an_output_is_made_once_and_reused(tmp_path):
    calls = []

    def make(folder):
        calls.append(folder)
        (folder / "out.txt").write_text("x", encoding="utf-8")

    first = Store(tmp_path).build("stage-1", {"a": 1}, make)
    second = Store(tmp_path).build("stage-1", {"a": 1}, make)
    assert first == second == Store(tmp_path).finished("stage-1")
    assert len(calls) == 1
    assert (first / "out.txt").read_text(encoding="utf-8") == "x"
    assert Store(tmp_path).finished("stage-2") is None


def test_the_record_has_what_it_was_made_from_and_digests_of_contents(tmp_path):
    def make(folder):
        (folder / "deep").mkdir()
        (folder / "deep" / "a").write_text("same", encoding="utf-8")
        (folder / "b").write_text("same", encoding="utf-8")
        (folder / "speed").write_text(str(os.times()), encoding="utf-8")

    store = Store(tmp_path)
    record = read_record(store.build(NAME, {"stage": "stage"}, make, frozenset({"speed"})))
    assert record["stage"] == "stage"
    assert record["seconds"] >= 0
    assert set(record["outputs"]) == {"deep/a", "b"}
    assert record["outputs"]["b"] == record["outputs"]["deep/a"]
    assert [r["outputs"] for r in store.records("stage")] == [record["outputs"]]


def test_a_process_that_waits_for_another_says_so(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("harness.store.store._PATIENCE_S", 0.05)
    held = Event()

    def hold():
        with FileLock(tmp_path / "stage-1.lock"):
            held.set()
            time.sleep(0.3)

    other = Thread(target=hold)
    other.start()
    held.wait()
    Store(tmp_path).build("stage-1", {}, lambda folder: None)
    other.join()
    assert caplog.messages == ["Another process computes stage-1: waiting until it ends."]
    Store(tmp_path).build("stage-2", {}, lambda folder: None)
    assert len(caplog.messages) == 1


def test_an_error_leaves_nothing_under_the_final_name_and_the_next_run_continues(tmp_path):
    def fail(folder):
        (folder / "part").write_text("half", encoding="utf-8")
        raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        Store(tmp_path).build("stage-1", {}, fail)
    assert Store(tmp_path).finished("stage-1") is None
    assert not list(Store(tmp_path).records("stage"))
    seen = []
    Store(tmp_path).build(
        "stage-1", {}, lambda folder: seen.append((folder / "part").read_text(encoding="utf-8"))
    )
    assert seen == ["half"]


def test_fresh_makes_again_but_once(tmp_path):
    calls = []
    Store(tmp_path).build("stage-1", {}, calls.append)
    store = Store(tmp_path, fresh=True)
    assert store.finished("stage-1") is None
    store.build("stage-1", {}, calls.append)
    store.build("stage-1", {}, calls.append)
    assert store.finished("stage-1") is not None
    assert len(calls) == 2


def test_a_log_continues_after_an_error_and_begins_again_once_if_fresh(tmp_path):
    def grow(store):
        with (
            store.growing("log", 1, {}) as folder,
            open(folder / "log", "a", encoding="utf-8") as log,
        ):
            log.write("x")
        return (folder / "log").read_text(encoding="utf-8")

    with pytest.raises(RuntimeError), Store(tmp_path).growing("log", 1, {}) as folder:
        (folder / "log").write_text("x", encoding="utf-8")
        raise RuntimeError
    assert grow(Store(tmp_path)) == "xx"
    fresh = Store(tmp_path, fresh=True)
    assert grow(fresh) == "x"
    assert grow(fresh) == "xx"
    with fresh.growing("log", 2, {}) as another, fresh.growing("log", 1, {"a": 1}) as third:
        assert len({folder, another, third}) == 3


@needs_sigkill
def test_kill_minus_nine_leaves_the_partial_folder_for_the_next_run(tmp_path):
    script = textwrap.dedent(
        """
        import os, signal, sys
        from pathlib import Path
        from harness.store.store import Store
        def make(folder):
            (folder / "part").write_text("half", encoding="utf-8")
            os.kill(os.getpid(), signal.SIGKILL)
        Store(Path(sys.argv[1])).build("stage-1", {}, make)
        """
    )
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    killed = subprocess.run([sys.executable, "-c", script, str(tmp_path)], env=env, check=False)
    assert killed.returncode == -signal.SIGKILL
    seen = []
    Store(tmp_path).build(
        "stage-1", {}, lambda folder: seen.append((folder / "part").read_text(encoding="utf-8"))
    )
    assert seen == ["half"]


def test_an_interrupted_removal_leaves_nothing_that_looks_finished(tmp_path, monkeypatch):
    def make(folder):
        (folder / "out").write_text("x", encoding="utf-8")

    name = f"stage-{'0' * 16}"
    Store(tmp_path).build(name, {"a": 1}, make)

    def interrupted(folder):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("shutil.rmtree", interrupted)
        Store(tmp_path, fresh=True).build(name, {"a": 1}, make)
    assert Store(tmp_path).finished(name) is None
    assert not list(Store(tmp_path).records("stage"))
    for fresh in (False, True):
        assert (Store(tmp_path, fresh).build(name, {"a": 1}, make) / "out").is_file()
    assert len(list(Store(tmp_path).records("stage"))) == 1
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == [name]


def test_records_are_those_of_the_stage_alone(tmp_path):
    for stage in ("toy", "toy-count"):
        Store(tmp_path).build(f"{stage}-{'a' * 16}", {"stage": stage}, lambda folder: None)
    assert [record["stage"] for record in Store(tmp_path).records("toy")] == ["toy"]
