"""`hq doctor` finds what is there, and says what to do for what is not."""

import json

from harness import doctor


def test_every_precision_is_tried(hq):
    outcome = hq("doctor", "--json")
    assert outcome.code == 0
    found = {finding["what"]: finding for finding in json.loads(outcome.out)}
    assert found["precision fp16"]["state"] == "ok"
    assert {"Python", "torch", "embedded model", "cache", "precision int8", "precision nf4"} <= set(
        found
    )


def test_what_is_missing_comes_with_a_fix(monkeypatch):
    monkeypatch.setattr(doctor, "_version", lambda package: "")
    missing = [finding for finding in doctor.examine() if finding.what.startswith("extra")]
    assert all(finding.state == "missing" and "pip install" in finding.fix for finding in missing)


def test_a_full_disk_is_a_warning(monkeypatch, tmp_path):
    monkeypatch.setenv("HQ_CACHE", str(tmp_path))
    monkeypatch.setattr(doctor, "_NEEDED_GIB", 10**9)
    (cache,) = [finding for finding in doctor.examine() if finding.what == "cache"]
    assert cache.state == "warn"
    assert "HQ_CACHE" in cache.fix


def test_the_table_shows_the_fix_as_it_must_be_typed(hq, monkeypatch):
    monkeypatch.setattr(doctor, "_version", lambda package: "")
    assert "pip install 'hq[bnb]'" in hq("doctor").out
