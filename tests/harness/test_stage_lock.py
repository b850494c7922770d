"""stages.lock: no stage's source changes without a decision about what the store holds of it."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from harness.experiments import lock
from harness.experiments.sweep import nodes as sweep
from harness.stages import trace

ROOT = Path(lock.__file__).parents[2]


@pytest.fixture
def copied(tmp_path):
    """A copy of the project's source."""
    for package in ("hq", "harness"):
        shutil.copytree(
            ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__")
        )
    return tmp_path


def append(path, text):
    assert path.is_file()
    with open(path, "a", encoding="utf-8") as file:
        file.write(text)


def test_the_committed_lock_is_that_of_the_source():
    assert lock.differences(lock.read(), lock.locked()) == []


def test_a_changed_formula_is_named_with_the_stages_that_compute_by_it(copied):
    before = lock.locked(copied)
    append(copied / "hq" / "neurons" / "cett.py", "\nFACTOR = 2\n")
    faults = lock.differences(before, lock.locked(copied))
    assert any(f.startswith("the source of stage trace changed (hq.neurons.cett)") for f in faults)


def test_a_stage_is_named_only_for_what_it_imports(copied):
    before = lock.locked(copied)
    append(copied / "harness" / "experiments" / "sweep" / "costs.py", "\nFACTOR = 2\n")
    faults = lock.differences(before, lock.locked(copied))
    named = {fault.split(" changed ")[0].split()[-1] for fault in faults}
    assert sweep.COSTS.name in named
    assert "trace" not in named
    assert all("(harness.experiments.sweep.costs)" in fault for fault in faults)


def test_what_no_stage_imports_is_free_to_change(copied):
    before = lock.locked(copied)
    append(copied / "harness" / "report" / "picture.py", "\nFACTOR = 2\n")
    assert lock.differences(before, lock.locked(copied)) == []


def test_a_raised_version_asks_for_a_new_lock(monkeypatch):
    before = lock.locked()
    monkeypatch.setattr(trace, "STAGE", replace(trace.STAGE, version=99))
    assert lock.differences(before, lock.locked()) == [
        f"stage trace has version 99, the lock {before.stages['trace'][0]}: write the lock."
    ]


def test_a_lock_file_says_what_was_written(tmp_path):
    lock.write(lock.locked(), tmp_path / "stages.lock")
    assert lock.read(tmp_path / "stages.lock") == lock.locked()
