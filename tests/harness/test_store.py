"""The store: built once, found again, resumed after a kill, rebuilt when asked."""

import os
import signal
import subprocess
import sys
import textwrap

import pytest

from harness.store.store import Stage, Store, inputs_of
from tests.harness.killing import needs_sigkill

STAGE = Stage("stage")


def test_built_once_and_found_again(tmp_path):
    calls = []

    def make(folder):
        calls.append(folder)
        (folder / "out.txt").write_text("x", encoding="utf-8")

    first = Store(tmp_path).build(STAGE, {"a": 1}, make)
    second = Store(tmp_path).build(STAGE, {"a": 1}, make)
    assert first == second
    assert len(calls) == 1
    assert (first / "out.txt").read_text(encoding="utf-8") == "x"


def test_another_input_is_another_artefact(tmp_path):
    store = Store(tmp_path)
    folders = {store.build(STAGE, {"a": a}, lambda folder: None) for a in (1, 2, "1")}
    assert len(folders) == 3
    assert store.build(Stage("other"), {"a": 1}, lambda folder: None) not in folders


def test_another_version_of_a_stage_is_another_artefact(tmp_path):
    store, calls = Store(tmp_path), []
    first, again, second = (store.build(Stage("s", v), {}, calls.append) for v in (1, 1, 2))
    assert first == again != second
    assert len(calls) == 2


def test_an_error_leaves_nothing_under_the_final_name_and_the_next_run_goes_on(tmp_path):
    def fail(folder):
        (folder / "part").write_text("half", encoding="utf-8")
        raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        Store(tmp_path).build(STAGE, {}, fail)
    assert not [p for p in tmp_path.iterdir() if p.is_dir() and p.suffix != ".partial"]
    seen = []
    Store(tmp_path).build(
        STAGE, {}, lambda folder: seen.append((folder / "part").read_text(encoding="utf-8"))
    )
    assert seen == ["half"]


def test_fresh_builds_anew_but_once(tmp_path):
    calls = []
    Store(tmp_path).build(STAGE, {}, calls.append)
    store = Store(tmp_path, fresh=True)
    store.build(STAGE, {}, calls.append)
    store.build(STAGE, {}, calls.append)
    assert len(calls) == 2


def test_inputs_are_written_whole_and_found_again(tmp_path):
    folder = Store(tmp_path).build(STAGE, {"a": 1}, lambda folder: None)
    assert inputs_of(folder) == {"version": 1, "a": 1}
    with Store(tmp_path).growing(Stage("log"), {"a": 1}) as growing:
        assert inputs_of(growing) == {"version": 1, "a": 1}


def test_what_grows_goes_on_after_an_error_and_begins_anew_once_if_fresh(tmp_path):
    def grow(store):
        with (
            store.growing(Stage("log"), {}) as folder,
            open(folder / "log", "a", encoding="utf-8") as log,
        ):
            log.write("x")
        return (folder / "log").read_text(encoding="utf-8")

    with pytest.raises(RuntimeError), Store(tmp_path).growing(Stage("log"), {}) as folder:
        (folder / "log").write_text("x", encoding="utf-8")
        raise RuntimeError
    assert grow(Store(tmp_path)) == "xx"
    fresh = Store(tmp_path, fresh=True)
    assert grow(fresh) == "x"
    assert grow(fresh) == "xx"


@needs_sigkill
def test_kill_minus_nine_leaves_the_partial_folder_for_the_next_run(tmp_path):
    script = textwrap.dedent(
        """
        import os, signal, sys
        from pathlib import Path
        from harness.store.store import Stage, Store
        def make(folder):
            (folder / "part").write_text("half", encoding="utf-8")
            os.kill(os.getpid(), signal.SIGKILL)
        Store(Path(sys.argv[1])).build(Stage("stage"), {}, make)
        """
    )
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    killed = subprocess.run([sys.executable, "-c", script, str(tmp_path)], env=env, check=False)
    assert killed.returncode == -signal.SIGKILL
    seen = []
    Store(tmp_path).build(
        STAGE, {}, lambda folder: seen.append((folder / "part").read_text(encoding="utf-8"))
    )
    assert seen == ["half"]
