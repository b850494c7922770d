"""The audit log: appended, chained, rotated, and honest about what a kill left."""

import hashlib
import json
import os
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.serve.audit import log as audit_log
from harness.serve.audit.files import log_files, read_log
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


def held(lines):
    """How many lines hold."""
    link = Link()
    for count, line in enumerate(lines):
        try:
            _, link = verify_line(line, link)
        except ChainError:
            return count
    return len(lines)


@given(CONTENTS)
def test_a_chain_holds_and_says_what_was_put_in(contents):
    lines = chain(contents)
    assert held(lines) == len(lines)
    for line, content in zip(lines, contents, strict=True):
        said, _ = decode_line(line)
        assert {k: v for k, v in said.items() if k not in ("seq", "previous")} == content
        assert json.loads(line)["sha256"]


def test_half_a_character_is_no_fault_of_the_log():
    (line,) = chain([{"error": "\ud800"}])
    assert decode_line(line)[0]["error"] == "\ud800"


@given(CONTENTS, st.data())
def test_a_byte_that_is_changed_is_found_where_it_is(contents, data):
    lines = chain(contents)
    place = data.draw(st.integers(0, len(lines) - 1))
    byte = data.draw(st.integers(0, len(lines[place]) - 1))
    other = data.draw(st.integers(0, 255).filter(lambda value: value != lines[place][byte]))
    line = bytearray(lines[place])
    line[byte] = other
    lines[place] = bytes(line)
    assert held(lines) == place


@given(CONTENTS, st.data())
def test_lines_that_are_taken_out_doubled_or_swapped_are_found(contents, data):
    lines = chain(contents)
    place = data.draw(st.integers(0, len(lines) - 2))
    assert held(lines[:place] + lines[place + 1 :]) == place
    assert held([*lines[: place + 1], *lines[place:]]) == place + 1
    swapped = [*lines]
    swapped[place], swapped[place + 1] = swapped[place + 1], swapped[place]
    assert held(swapped) == place


@given(CONTENTS)
def test_a_line_of_another_chain_does_not_fit(contents):
    ours, theirs = chain([{"other": 0}, *contents]), chain([{"other": 1}, *contents])
    assert held([ours[0], *theirs[1:]]) == 1


def test_what_is_taken_off_the_end_is_not_found():
    lines = chain([{"n": n} for n in range(5)])
    assert held(lines[:3]) == 3  # which is why the last hash is to be noted down


def sealed(body):
    return body[:-1] + f',"sha256":"{hashlib.sha256(body).hexdigest()}"}}\n'.encode()


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"\n",
        b"{}\n",
        sealed(b"[]}"),
        sealed(b'{"other":1}'),
        sealed(b'{"seq":null}'),
        sealed(b'{"seq":' + b"[" * 100_000 + b"}"),
    ],
)
def test_what_is_no_line_is_said(line):
    with pytest.raises(ChainError, match="not a line"):
        verify_line(line, Link())


def contents_of(path):
    return [line.content for line in read_log(path)]


def test_lines_are_appended_by_one_server_after_the_other(tmp_path):
    path = tmp_path / "logs" / "audit.jsonl"
    for run in range(3):
        with AuditLog(path) as log:
            log.append({"run": run})
    assert [content["run"] for content in contents_of(path)] == [0, 1, 2]
    assert contents_of(path)[0]["previous"] == GENESIS
    assert path.stat().st_mode & 0o077 == 0  # nobody else reads prompts


def test_two_servers_on_one_log_are_refused(tmp_path):
    with AuditLog(tmp_path / "a") as log:
        with pytest.raises(HQError, match="Another server"):
            AuditLog(tmp_path / "a")
        log.append({"still": "mine"})
    AuditLog(tmp_path / "a").close()


def test_the_chain_goes_on_over_full_files(tmp_path):
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


def test_a_log_whose_growing_file_is_gone_goes_on_from_the_full_ones(tmp_path):
    path = tmp_path / "a"
    with AuditLog(path, rotate_bytes=400) as log:
        for n in range(10):
            log.append({"n": n, "filling": "x" * 100})
    last = log_files(path)[-2]
    path.unlink()  # as a kill between renaming and opening leaves it
    with AuditLog(path) as log:
        log.append({"n": "next"})
    assert contents_of(path)[-1]["seq"] == len(contents_of(path)) - 1
    assert last.exists()


@pytest.mark.parametrize("kept", [1, 20, -1])
def test_a_torn_last_line_is_set_aside_and_the_log_says_so(tmp_path, kept):
    path = tmp_path / "a"
    with AuditLog(path) as log:
        for n in range(3):
            log.append({"n": n})
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:2]) + lines[2][:kept])
    with pytest.raises(ChainError, match=r"line 3: .* is cut off"):
        contents_of(path)
    with AuditLog(path) as log:
        log.append({"n": "after"})
    *before, recovery, after = contents_of(path)
    assert [content["n"] for content in before] == [0, 1]
    assert recovery["kind"] == "recovery"
    assert (tmp_path / recovery["torn_file"]).read_bytes() == lines[2][:kept]
    assert after["n"] == "after"


def test_a_log_that_is_all_torn_begins_anew(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b'{"seq":0,"prev')
    AuditLog(path).close()
    (recovery,) = contents_of(path)
    assert recovery["torn_bytes"] == 14


def test_a_damaged_last_line_is_refused(tmp_path):
    path = tmp_path / "a"
    with AuditLog(path) as log:
        log.append({"n": 0})
    path.write_bytes(path.read_bytes().replace(b'"n":0', b'"n":1'))
    before = path.read_bytes()
    with pytest.raises(HQError, match="its hash does not match its content"):
        AuditLog(path)
    assert path.read_bytes() == before
    with pytest.raises(HQError, match="is damaged"):  # the lock was let go
        AuditLog(path)


def test_a_full_disk_leaves_no_part_of_a_line(tmp_path, monkeypatch):
    path = tmp_path / "a"
    with AuditLog(path) as log:
        log.append({"n": 0})
        real = os.write

        def write(file, data):
            if len(data) > 50:
                return real(file, data[:50])
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(audit_log.os, "write", write)
        with pytest.raises(HQError, match="No space left"):
            log.append({"n": 1})
        monkeypatch.setattr(audit_log.os, "write", real)
        log.append({"n": 2})
    assert [(c["seq"], c["n"]) for c in contents_of(path)] == [(0, 0), (1, 2)]


def test_a_line_is_on_the_disk_when_append_returns(tmp_path, monkeypatch):
    synced = []
    real = os.fsync
    monkeypatch.setattr(audit_log.os, "fsync", lambda file: (synced.append(file), real(file)))
    with AuditLog(tmp_path / "a") as log:
        synced.clear()
        log.append({"n": 0})
        assert len(synced) == 1


def test_a_reader_sees_whole_lines_while_a_server_writes(tmp_path):
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


def test_there_is_a_sentence_for_no_log(tmp_path):
    for path in (tmp_path / "none", tmp_path / "no" / "folder"):
        with pytest.raises(HQError, match="There is no audit log"):
            contents_of(path)
