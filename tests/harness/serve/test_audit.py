"""The audit log: hash chain, rotation, locking and recovery after a kill."""

import hashlib
import json
import os
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.serve.audit import log as audit_log
from harness.serve.audit.files import log_files, read_audit_log
from harness.serve.audit.hash_chain import (
    GENESIS,
    ChainError,
    Link,
    decode_line,
    encode_line,
    verify_line,
)
from harness.serve.audit.log import AuditLog
from hq.errors import HQError

CONTENTS = st.lists(
    st.dictionaries(
        st.text(max_size=8).filter(lambda key: key not in ("seq", "previous", "sha256")),
        st.none() | st.integers() | st.text() | st.floats(allow_nan=False, allow_infinity=False),
        max_size=4,
    ),
    min_size=2,
    max_size=6,
)


def chain(contents):
    link, lines = Link(), []
    for content in contents:
        line, link = encode_line(link, content)
        lines.append(line)
    return lines


def intact_lines(lines):
    """Return the number of lines before the first fault."""
    link = Link()
    for count, line in enumerate(lines):
        try:
            _, link = verify_line(line, link)
        except ChainError:
            return count
    return len(lines)


@given(CONTENTS)
def test_a_chain_is_intact_and_contains_its_contents(contents):
    lines = chain(contents)
    assert intact_lines(lines) == len(lines)
    for line, content in zip(lines, contents, strict=True):
        decoded, _ = decode_line(line)
        assert {k: v for k, v in decoded.items() if k not in ("seq", "previous")} == content
        assert json.loads(line)["sha256"]


def test_a_single_surrogate_can_be_recorded():
    (line,) = chain([{"error": "\ud800"}])
    assert decode_line(line)[0]["error"] == "\ud800"


@given(CONTENTS, st.data())
def test_a_changed_byte_is_detected_in_its_line(contents, data):
    lines = chain(contents)
    place = data.draw(st.integers(0, len(lines) - 1))
    byte = data.draw(st.integers(0, len(lines[place]) - 1))
    other = data.draw(st.integers(0, 255).filter(lambda value: value != lines[place][byte]))
    line = bytearray(lines[place])
    line[byte] = other
    lines[place] = bytes(line)
    assert intact_lines(lines) == place


@given(CONTENTS, st.data())
def test_removed_repeated_and_swapped_lines_are_detected(contents, data):
    lines = chain(contents)
    place = data.draw(st.integers(0, len(lines) - 2))
    assert intact_lines(lines[:place] + lines[place + 1 :]) == place
    assert intact_lines([*lines[: place + 1], *lines[place:]]) == place + 1
    swapped = [*lines]
    swapped[place], swapped[place + 1] = swapped[place + 1], swapped[place]
    assert intact_lines(swapped) == place


@given(CONTENTS)
def test_a_line_of_another_chain_is_detected(contents):
    one, other = chain([{"other": 0}, *contents]), chain([{"other": 1}, *contents])
    assert intact_lines([one[0], *other[1:]]) == 1


def test_lines_removed_from_the_end_are_not_detected():
    lines = chain([{"n": n} for n in range(5)])
    assert intact_lines(lines[:3]) == 3  # therefore users note the last hash


def with_hash(body):
    return body[:-1] + f',"sha256":"{hashlib.sha256(body).hexdigest()}"}}\n'.encode()


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"\n",
        b"{}\n",
        with_hash(b"[]}"),
        with_hash(b'{"other":1}'),
        with_hash(b'{"seq":null}'),
        with_hash(b'{"seq":' + b"[" * 100_000 + b"}"),
    ],
)
def test_other_content_is_not_a_line(line):
    with pytest.raises(ChainError, match="not a line"):
        verify_line(line, Link())


def contents_of(path):
    return [line.content for line in read_audit_log(path)]


def test_servers_append_one_after_the_other(tmp_path):
    path = tmp_path / "logs" / "audit.jsonl"
    for run in range(3):
        with AuditLog(path) as log:
            log.append({"run": run})
    assert [content["run"] for content in contents_of(path)] == [0, 1, 2]
    assert contents_of(path)[0]["previous"] == GENESIS
    assert path.stat().st_mode & 0o077 == 0  # other users cannot read prompts


def test_a_second_server_on_the_same_log_raises(tmp_path):
    with AuditLog(tmp_path / "a") as log:
        with pytest.raises(HQError, match="Another server"):
            AuditLog(tmp_path / "a")
        log.append({"still": "locked"})
    AuditLog(tmp_path / "a").close()


def test_the_chain_continues_across_full_files(tmp_path):
    path = tmp_path / "a"
    for run in range(3):
        with AuditLog(path, rotate_bytes=1000) as log:
            for n in range(10):
                log.append({"run": run, "n": n, "filling": "x" * 100})
    files = log_files(path)
    assert len(files) > 5
    assert all(file.stat().st_size <= 1000 for file in files)
    assert [c["n"] for c in contents_of(path)] == [*range(10)] * 3
    files[2].unlink()
    with pytest.raises(ChainError, match=f"{files[3].name}, line 1: it has number"):
        contents_of(path)


def test_a_log_without_a_current_file_continues_from_the_full_files(tmp_path):
    path = tmp_path / "a"
    with AuditLog(path, rotate_bytes=400) as log:
        for n in range(10):
            log.append({"n": n, "filling": "x" * 100})
    last = log_files(path)[-2]
    path.unlink()  # as a kill between renaming and opening does
    with AuditLog(path) as log:
        log.append({"n": "next"})
    assert contents_of(path)[-1]["seq"] == len(contents_of(path)) - 1
    assert last.exists()


@pytest.mark.parametrize("length", [1, 20, -1])
def test_an_incomplete_last_line_is_moved_and_recorded(tmp_path, length):
    path = tmp_path / "a"
    with AuditLog(path) as log:
        for n in range(3):
            log.append({"n": n})
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:2]) + lines[2][:length])
    with pytest.raises(ChainError, match=r"line 3: .* is cut off"):
        contents_of(path)
    with AuditLog(path) as log:
        log.append({"n": "after"})
    *before, recovery, after = contents_of(path)
    assert [content["n"] for content in before] == [0, 1]
    assert recovery["kind"] == "recovery"
    assert (tmp_path / recovery["torn_file"]).read_bytes() == lines[2][:length]
    assert after["n"] == "after"


def test_a_log_of_one_incomplete_line_restarts(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b'{"seq":0,"prev')
    AuditLog(path).close()
    (recovery,) = contents_of(path)
    assert recovery["torn_bytes"] == 14


def test_a_damaged_last_line_raises(tmp_path):
    path = tmp_path / "a"
    with AuditLog(path) as log:
        log.append({"n": 0})
    path.write_bytes(path.read_bytes().replace(b'"n":0', b'"n":1'))
    before = path.read_bytes()
    with pytest.raises(HQError, match="its hash does not match its content"):
        AuditLog(path)
    assert path.read_bytes() == before
    with pytest.raises(HQError, match="is damaged"):  # the lock was released
        AuditLog(path)


def test_a_full_disk_leaves_no_incomplete_line(tmp_path, monkeypatch):
    path = tmp_path / "a"
    with AuditLog(path) as log:
        log.append({"n": 0})
        real_write = os.write

        def write(file, data):
            if len(data) > 50:
                return real_write(file, data[:50])
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(audit_log.os, "write", write)
        with pytest.raises(HQError, match="No space left"):
            log.append({"n": 1})
        monkeypatch.setattr(audit_log.os, "write", real_write)
        log.append({"n": 2})
    assert [(c["seq"], c["n"]) for c in contents_of(path)] == [(0, 0), (1, 2)]


def test_append_syncs_once_before_it_returns(tmp_path, monkeypatch):
    synced = []
    real_fsync = os.fsync
    monkeypatch.setattr(audit_log.os, "fsync", lambda file: (synced.append(file), real_fsync(file)))
    with AuditLog(tmp_path / "a") as log:
        synced.clear()
        log.append({"n": 0})
        assert len(synced) == 1


def test_a_reader_sees_complete_lines_while_a_server_writes(tmp_path):
    path = tmp_path / "a"
    with AuditLog(path) as log:
        writing = threading.Thread(target=lambda: [log.append({"n": n}) for n in range(200)])
        writing.start()
        seen = 0
        while writing.is_alive():
            seen = max(seen, len(contents_of(path))) if path.stat().st_size else seen
        writing.join()
    assert len(contents_of(path)) == 200
    assert seen <= 200


def test_a_missing_log_raises(tmp_path):
    for path in (tmp_path / "none", tmp_path / "no" / "folder"):
        with pytest.raises(HQError, match="There is no audit log"):
            contents_of(path)
