"""`hq audit verify` and `hq audit query`."""

import json

import pytest

from harness.serve.audit.files import read_audit_log
from harness.serve.audit.log import AuditLog


@pytest.fixture
def log(tmp_path):
    path = tmp_path / "audit.jsonl"
    with AuditLog(path) as log:
        log.append({"kind": "start"})
        for n, decision in enumerate(("pass", "block", "pass", "annotate")):
            log.append(
                {
                    "kind": "response",
                    "id": f"id{n}",
                    "domain": "all" if n else "medicine",
                    "outcome": "completed",
                    "decision": decision,
                    "score": n / 2,
                    "alpha": 1.0,
                }
            )
    return path


def hashes(path):
    return [line.link.sha256 for line in read_audit_log(path)]


def test_an_intact_log(hq, log):
    outcome = hq("audit", "verify", log)
    assert outcome.code == 0, outcome
    assert "5 lines are intact, 4 of them responses" in outcome.out
    assert hashes(log)[-1] in outcome.out
    result = json.loads(hq("audit", "verify", log, "--json").out)
    assert result == {
        "whole": True,
        "fault": None,
        "lines": 5,
        "responses": 4,
        "last_sha256": hashes(log)[-1],
    }


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda lines: [*lines[:2], lines[2].replace(b'"block"', b'"pass"'), *lines[3:]], "line 3"),
        (lambda lines: [*lines[:1], *lines[2:]], "line 2: it has number 2 instead of 1"),
        (lambda lines: [lines[1], lines[0], *lines[2:]], "line 1"),
        (lambda lines: [*lines[:4], lines[4][:-9]], "line 5: it is not a line of an audit log, or"),
    ],
)
def test_tampering_exits_1_and_names_the_line(hq, log, damage, words):
    log.write_bytes(b"".join(damage(log.read_bytes().splitlines(keepends=True))))
    outcome = hq("audit", "verify", log)
    assert outcome.code == 1, outcome
    assert words in outcome.err
    assert not json.loads(hq("audit", "verify", log, "--json").out)["whole"]
    assert hq("audit", "query", log).code == 1


def test_an_anchor_detects_lines_removed_from_the_end(hq, log):
    last = hashes(log)[-1]
    assert hq("audit", "verify", log, "--anchor", last).code == 0
    log.write_bytes(b"".join(log.read_bytes().splitlines(keepends=True)[:-1]))
    assert hq("audit", "verify", log).code == 0
    outcome = hq("audit", "verify", log, "--anchor", last)
    assert outcome.code == 1
    assert "removed from the end" in outcome.err


@pytest.mark.parametrize(
    ("options", "ids"),
    [
        ((), ["id0", "id1", "id2", "id3"]),
        (("--decision", "block"), ["id1"]),
        (("--domain", "medicine"), ["id0"]),
        (("--id", "id2"), ["id2"]),
        (("--outcome", "error"), []),
        (("--since", "2020-01-01", "--decision", "pass"), ["id0", "id2"]),
        (("--since", "2999-01-01"), []),
        (("--until", "2020-01-01T12:00+02:00"), []),
    ],
)
def test_matching_responses_are_listed(hq, log, options, ids):
    lines = hq("audit", "query", log, "--json", *options).out.splitlines()
    assert [json.loads(line)["id"] for line in lines] == ids
    table = hq("audit", "query", log, *options).out
    assert [id for id in ("id0", "id1", "id2", "id3") if id in table] == ids


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("verify", "none.jsonl"), "There is no audit log none.jsonl"),
        (("query", "none.jsonl"), "There is no audit log none.jsonl"),
        (("query", "none.jsonl", "--since", "yesterday"), "--since 'yesterday' is not a time"),
    ],
)
def test_bad_input_is_one_sentence(hq, arguments, words):
    outcome = hq("audit", *arguments)
    assert outcome.code == 2
    assert words in outcome.err
    assert len(outcome.err.strip().splitlines()) == 1
