"""A fingerprint is computed once for unchanged files, and again for anything else."""

import os
import time
from pathlib import Path

import pytest

from hq.storage import fingerprints
from hq.storage.fingerprints import cached_fingerprint

DAY_NS = 86_400_000_000_000


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of its own, in which file times count as settled."""
    monkeypatch.setattr(fingerprints, "cache_folder", lambda: tmp_path / "cache")
    monkeypatch.setattr(fingerprints, "_SETTLED_NS", -1)
    return tmp_path / "cache"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file of four bytes, a day old."""
    path = tmp_path / "weights"
    path.write_bytes(b"1234")
    os.utime(path, ns=(time.time_ns() - DAY_NS,) * 2)
    return path


class Counted:
    """A computation that counts its calls, and returns their number."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self) -> str:
        self.calls += 1
        return f"{self.calls:016x}"


def test_unchanged_files_are_read_once(file: Path) -> None:
    compute = Counted()
    found = [cached_fingerprint("a", [file], compute) for _ in range(3)]
    assert found == ["0000000000000001"] * 3
    assert compute.calls == 1
    assert cached_fingerprint("b", [file], compute) == "0000000000000002"
    assert cached_fingerprint("a", [file], compute) == "0000000000000001"


def replace(file: Path) -> None:
    """Another file of the same size and time under the name."""
    stat = file.stat()
    other = file.with_name("other")
    other.write_bytes(b"4321")
    os.utime(other, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    os.replace(other, file)


def rewrite_in_place(file: Path) -> None:
    """The same inode, size and time of modification: only ctime says so."""
    stat = file.stat()
    time.sleep(0.02)
    with open(file, "r+b") as stream:
        stream.write(b"4321")
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))


@pytest.mark.parametrize(
    "change",
    [
        lambda file: file.write_bytes(b"12345"),
        lambda file: os.utime(file, ns=(0, file.stat().st_mtime_ns + 1000)),
        replace,
        pytest.param(
            rewrite_in_place,
            marks=pytest.mark.skipif(os.name == "nt", reason="ctime is the time of creation"),
        ),
    ],
)
def test_any_change_computes_it_again(file: Path, change) -> None:
    compute = Counted()
    cached_fingerprint("a", [file], compute)
    change(file)
    assert cached_fingerprint("a", [file], compute) == "0000000000000002"
    assert cached_fingerprint("a", [file], compute) == "0000000000000002"


def test_each_of_several_files_counts(file: Path) -> None:
    second = file.with_name("second")
    second.write_bytes(b"12")
    compute = Counted()
    cached_fingerprint("a", [file, second], compute)
    assert cached_fingerprint("a", [file], compute) == "0000000000000002"
    second.write_bytes(b"123")
    assert cached_fingerprint("a", [file, second], compute) == "0000000000000003"


@pytest.mark.parametrize(
    "content", [b"", b"\xff\x00", b"{}", b"[]", b'{"kind": "a", "files": [], "fingerprint": "x"}']
)
def test_a_damaged_entry_is_replaced(file: Path, cache: Path, content: bytes) -> None:
    compute = Counted()
    cached_fingerprint("a", [file], compute)
    (entry,) = (cache / "fingerprints").iterdir()
    entry.write_bytes(content)
    assert cached_fingerprint("a", [file], compute) == "0000000000000002"
    assert cached_fingerprint("a", [file], compute) == "0000000000000002"


def test_an_entry_of_other_files_is_not_believed(file: Path, cache: Path) -> None:
    """Copied from another machine, or with another path in it."""
    compute = Counted()
    cached_fingerprint("a", [file], compute)
    (entry,) = (cache / "fingerprints").iterdir()
    text = entry.read_text(encoding="utf-8").replace("weights", "others")
    entry.write_text(text, encoding="utf-8")
    assert cached_fingerprint("a", [file], compute) == "0000000000000002"


def test_a_file_that_was_just_written_is_not_cached(
    file: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another write in the same tick of the file system's clock would not be seen."""
    monkeypatch.setattr(fingerprints, "_SETTLED_NS", 2_000_000_000)
    file.write_bytes(b"1234")
    cached_fingerprint("a", [file], Counted())
    assert not cache.exists()


def test_a_file_that_changes_meanwhile_is_not_cached(file: Path, cache: Path) -> None:
    def compute() -> str:
        file.write_bytes(b"12345")
        return "0" * 16

    cached_fingerprint("a", [file], compute)
    assert not cache.exists()


def test_a_cache_that_cannot_be_written_is_no_error(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "no folder").write_text("", encoding="utf-8")
    monkeypatch.setattr(fingerprints, "cache_folder", lambda: tmp_path / "no folder")
    assert cached_fingerprint("a", [file], Counted()) == "0000000000000001"
