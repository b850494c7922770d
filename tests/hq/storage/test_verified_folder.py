"""Verified folders: round trips, and one sentence for any folder that was changed."""

import hashlib
import json
import os

import pytest

from hq.errors import HQError
from hq.storage.verified_folder import (
    MANIFEST,
    read_verified_folder,
    sha256_of,
    write_verified_folder,
)

FILES = {"a.json": b"{}\n", "b.bin": bytes(range(256))}
NAMES = frozenset(FILES)


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "folder"
    write_verified_folder(path, 3, {"name": "x"}, FILES)
    return path


def refused(folder, words):
    with pytest.raises(HQError) as error:
        read_verified_folder(folder, 3, NAMES)
    assert words in str(error.value), error.value
    assert "\n" not in str(error.value)
    assert str(folder) in str(error.value)


def edit(folder, change):
    """Rewrite the manifest, as somebody who tampers with a file could."""
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    change(manifest)
    (folder / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")


def test_what_is_written_is_read(folder):
    found = read_verified_folder(folder, 3, NAMES)
    assert found.files == FILES
    assert found.facts == {"name": "x"}
    assert found.digest == hashlib.sha256((folder / MANIFEST).read_bytes()).hexdigest()
    assert found.digest == sha256_of(folder / MANIFEST)
    assert {path.name for path in folder.parent.iterdir()} == {"folder"}


def test_the_same_content_has_the_same_digest(folder, tmp_path):
    again = tmp_path / "again"
    write_verified_folder(again, 3, {"name": "x"}, dict(reversed(FILES.items())))
    assert (
        read_verified_folder(again, 3, NAMES).digest
        == read_verified_folder(folder, 3, NAMES).digest
    )


def test_a_folder_that_is_there_stays(folder):
    with pytest.raises(HQError, match="there already"):
        write_verified_folder(folder, 3, {}, {})
    assert read_verified_folder(folder, 3, NAMES).files == FILES


def test_a_failure_leaves_nothing(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr("hq.storage.atomic.os.fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        write_verified_folder(tmp_path / "new", 3, {}, FILES)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", sorted(NAMES))
@pytest.mark.parametrize("at", [0, -1])
def test_a_tampered_byte(folder, name, at):
    content = bytearray((folder / name).read_bytes())
    content[at] ^= 1
    (folder / name).write_bytes(content)
    refused(folder, f"{name} was changed")


def test_a_file_cut_short_or_grown(folder):
    (folder / "a.json").write_bytes(b"{")
    refused(folder, "a.json was changed")
    (folder / "a.json").write_bytes(b"{}\n ")
    refused(folder, "a.json is larger than its manifest says")


def test_missing_and_extra_files(folder):
    (folder / "c.txt").write_text("more", encoding="utf-8")
    refused(folder, "contains 'c.txt'")
    (folder / "c.txt").rename(folder / "__pycache__")
    refused(folder, "contains '__pycache__'")
    (folder / "__pycache__").rename(folder / ".hidden")
    refused(folder, "contains '.hidden'")
    (folder / ".hidden").unlink()
    (folder / "a.json").unlink()
    refused(folder, "a.json is missing")
    (folder / MANIFEST).unlink()
    refused(folder, "has no manifest.json")


@pytest.mark.parametrize(
    "name", ["../a.json", "/etc/hostname", "sub/a.json", "a.json/../b.bin", "..", "", "a.json\0"]
)
def test_a_path_as_a_name(folder, name):
    edit(folder, lambda manifest: manifest["files"].update({name: manifest["files"]["a.json"]}))
    refused(folder, "which no bundle has")


def test_a_name_in_the_place_of_another(folder):
    edit(
        folder, lambda manifest: manifest["files"].update({"../x": manifest["files"].pop("a.json")})
    )
    refused(folder, "'../x', which no bundle has")
    edit(folder, lambda manifest: manifest["files"].pop("../x"))
    refused(folder, "does not list a.json")


def test_a_link_is_not_followed(folder, tmp_path):
    outside = tmp_path / "outside"
    outside.write_bytes(FILES["a.json"])
    (folder / "a.json").unlink()
    (folder / "a.json").symlink_to(outside)
    refused(folder, "a.json is a link")
    (folder / MANIFEST).rename(tmp_path / "moved")
    (folder / MANIFEST).symlink_to(tmp_path / "moved")
    refused(folder, f"{MANIFEST} is a link")


def test_only_plain_files_are_opened(folder):
    (folder / "a.json").unlink()
    (folder / "a.json").mkdir()
    refused(folder, "a.json is not a regular file")
    (folder / "a.json").rmdir()
    os.mkfifo(folder / "a.json")  # opening it would block
    refused(folder, "a.json is not a regular file")


def test_a_file_larger_than_any_is_not_read(folder):
    os.truncate(folder / "b.bin", 1 << 40)
    edit(folder, lambda manifest: manifest["files"]["b.bin"].update(bytes=1 << 40))
    refused(folder, "b.bin is larger")


@pytest.mark.skipif(os.geteuid() == 0, reason="this machine: root may read everything")
def test_a_file_that_may_not_be_read(folder):
    (folder / "a.json").chmod(0)
    refused(folder, "a.json cannot be read")


def test_a_folder_that_is_none(tmp_path):
    refused(tmp_path / "nowhere", "cannot be read (No such file or directory)")
    (tmp_path / "file").write_text("", encoding="utf-8")
    refused(tmp_path / "file", "cannot be read (Not a directory)")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"{", "not valid JSON"),
        (b"", "not valid JSON"),
        (b"\xff\xfe", "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        (b"[]", "is not a manifest"),
        (b"{}", "has schema version None but this hq reads 3"),
        (b'{"schema_version": 4}', "has schema version 4 but"),
        (b'{"schema_version": "3"}', "has schema version '3' but"),
        (b'{"schema_version": 3}', "lists no files"),
        (b'{"schema_version": 3, "files": ["a.json", "b.bin"]}', "lists no files"),
        (b'{"schema_version": 3, "files": {"a.json": 1, "b.bin": 2}}', "has no size of a.json"),
        (
            b'{"schema_version": 3, "files": {"a.json": {"bytes": 3}, "b.bin": {}}}',
            "a.json was changed",
        ),
        (
            b'{"schema_version": 3, "files": {"a.json": {"bytes": 1e999}, "b.bin": {}}}',
            "has no size of a.json",
        ),
    ],
)
def test_a_manifest_that_is_none(folder, content, words):
    (folder / MANIFEST).write_bytes(content)
    refused(folder, words)


def test_facts_that_are_not_valid_json_are_rejected(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        write_verified_folder(tmp_path / "new", 3, {"rate": float("nan")}, FILES)
    assert list(tmp_path.iterdir()) == []
