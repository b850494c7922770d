"""Atomic writes: concurrent writers, killed writers, failing disks."""

import os
import signal
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from hq.errors import HQError
from hq.storage.atomic import atomic_file, atomic_folder, remove_drafts, write_whole
from tests.test_project import ROOT

_SIZE = 1 << 18
_ROUNDS = 100

# Writes a file of one repeated letter again and again, or many folders with two such files.
_FILE_WRITER = f"""
import sys
from pathlib import Path
from hq.storage.atomic import write_whole
for _ in range({_ROUNDS}):
    write_whole(Path(sys.argv[1]), sys.argv[2].encode() * {_SIZE})
"""
_FOLDER_WRITER = f"""
import sys
from pathlib import Path
from hq.errors import HQError
from hq.storage.atomic import atomic_folder
won = 0
for i in range({_ROUNDS}):
    try:
        with atomic_folder(Path(sys.argv[1]) / str(i)) as folder:
            for name in ("one", "two"):
                (folder / name).write_bytes(sys.argv[2].encode() * 1000)
        won += 1
    except HQError as error:
        assert "is there already" in str(error), error
print(won)
"""
_KILLED = """
import os, signal, sys
from pathlib import Path
import hq.storage.atomic as atomic
with getattr(atomic, sys.argv[1])(Path(sys.argv[2])) as draft:
    (draft / "part" if draft.is_dir() else draft).write_bytes(b"half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def start(script: str, *arguments: object) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", script, *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        encoding="utf-8",
    )


def test_two_processes_write_one_file_and_a_reader_never_sees_a_mixture(tmp_path):
    target = tmp_path / "target"
    writers = [start(_FILE_WRITER, target, letter) for letter in "AB"]
    seen = set()
    while any(writer.poll() is None for writer in writers):
        if target.exists():
            content = target.read_bytes()
            assert len(content) == _SIZE
            assert content in (b"A" * _SIZE, b"B" * _SIZE)
            seen.add(content[:1])
    assert [(writer.communicate()[0], writer.returncode) for writer in writers] == [("", 0)] * 2
    assert seen
    assert list(tmp_path.iterdir()) == [target]


def test_two_processes_write_the_same_folders_and_one_of_them_wins_each(tmp_path):
    writers = [start(_FOLDER_WRITER, tmp_path, letter) for letter in "AB"]
    won = [int(writer.communicate()[0]) for writer in writers]
    assert [writer.returncode for writer in writers] == [0, 0]
    assert sum(won) == _ROUNDS
    assert {path.name for path in tmp_path.iterdir()} == {str(i) for i in range(_ROUNDS)}
    for folder in tmp_path.iterdir():
        one, two = ((folder / name).read_bytes() for name in ("one", "two"))
        assert one == two
        assert one in (b"A" * 1000, b"B" * 1000)


def test_two_writers_of_one_process_do_not_share_a_draft(tmp_path):
    """Threads have the same process id."""
    with atomic_file(tmp_path / "target") as one, atomic_file(tmp_path / "target") as two:
        one.write_bytes(b"A")
        two.write_bytes(b"B")
        assert one.read_bytes() == b"A"
    assert (tmp_path / "target").read_bytes() == b"A"  # the last writer


def test_many_threads(tmp_path):
    def write(letter: int) -> None:
        for _ in range(20):
            write_whole(tmp_path / "target", bytes([letter]) * 10_000)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, b"ABCD"))
    content = (tmp_path / "target").read_bytes()
    assert content == content[:1] * 10_000
    assert [path.name for path in tmp_path.iterdir()] == ["target"]


def test_a_folder_that_appears_in_the_meantime_stays(tmp_path):
    with (
        pytest.raises(HQError, match="is there already"),
        atomic_folder(tmp_path / "target") as late,
    ):
        (late / "x").write_bytes(b"late")
        with atomic_folder(tmp_path / "target") as early:
            (early / "x").write_bytes(b"early")
    assert (tmp_path / "target" / "x").read_bytes() == b"early"
    assert [path.name for path in tmp_path.iterdir()] == ["target"]


@pytest.mark.parametrize("kind", ["atomic_file", "atomic_folder"])
def test_a_killed_writer_leaves_the_target_and_a_draft_that_can_be_removed(tmp_path, kind):
    target = tmp_path / "target"
    if kind == "atomic_file":
        target.write_bytes(b"old")
    killed = start(_KILLED, kind, target)
    killed.communicate()
    assert killed.returncode == -signal.SIGKILL
    assert len(list(tmp_path.iterdir())) == 1 + target.exists()
    remove_drafts(tmp_path)
    assert [path.read_bytes() for path in tmp_path.iterdir()] == (
        [b"old"] if kind == "atomic_file" else []
    )


@pytest.mark.parametrize("kind", [atomic_file, atomic_folder])
def test_an_error_leaves_nothing(tmp_path, kind):
    with pytest.raises(KeyboardInterrupt), kind(tmp_path / "target") as draft:
        (draft / "x" if draft.is_dir() else draft).write_bytes(b"half")
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())


def test_a_full_disk_at_the_last_moment_leaves_the_old_file(tmp_path, monkeypatch):
    target = tmp_path / "target"
    target.write_bytes(b"old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("hq.storage.atomic.os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_whole(target, b"new")
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


def test_missing_folders_are_made_and_long_names_fit(tmp_path):
    target = tmp_path / "a" / "b" / ("n" * 250)
    write_whole(target, "São\n")
    assert target.read_bytes() == "São\n".encode()


def test_a_new_file_has_the_permissions_of_any_other(tmp_path):
    (tmp_path / "plain").write_bytes(b"")
    write_whole(tmp_path / "atomic", b"")
    with atomic_folder(tmp_path / "folder"):
        pass
    (tmp_path / "made").mkdir()
    modes = {path.name: path.stat().st_mode for path in tmp_path.iterdir()}
    assert modes["plain"] == modes["atomic"]
    assert modes["made"] == modes["folder"]


def test_what_is_synced_was_opened_for_writing(tmp_path, monkeypatch):
    """Windows cannot sync a read-only handle."""
    fcntl = pytest.importorskip("fcntl")
    modes = []

    def fsync(handle: int) -> None:
        if stat.S_ISREG(os.fstat(handle).st_mode):
            modes.append(fcntl.fcntl(handle, fcntl.F_GETFL) & os.O_ACCMODE)

    monkeypatch.setattr("hq.storage.atomic.os.fsync", fsync)
    write_whole(tmp_path / "x", b"x")
    assert modes == [os.O_RDWR]
