"""What HQ_NO_SKIPS does, in a pytest of its own."""

import os
import subprocess
import sys

import pytest

SKIPS = {
    "a mark": "@pytest.mark.skipif(True, reason='no such thing')\ndef test_it(): pass",
    "a call": "def test_it(): pytest.skip('no such thing')",
    "a fixture": "@pytest.fixture\ndef it(): pytest.skip('no such thing')\ndef test_it(it): pass",
    "a package": "def test_it(): pytest.importorskip('no_such_thing', reason='no such thing')",
    "a file": "pytest.importorskip('no_such_thing', reason='no such thing')\ndef test_it(): pass",
}
ALLOWED = {
    "of the machine": "def test_it(): pytest.skip('this machine: has no such thing')",
    "expected to fail": "@pytest.mark.xfail(reason='no such thing')\ndef test_it(): assert False",
    "passes": "def test_it(): pass",
}


def run(folder, text, forbidden):
    (folder / "pytest.ini").write_text("[pytest]\n", encoding="utf-8")
    (folder / "test_it.py").write_text(f"import pytest\n{text}\n", encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "tests.no_skips", "--capture=no"]
    env = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "HQ_NO_SKIPS": forbidden}
    env["PYTHONPATH"] = os.pathsep.join(sys.path)
    return subprocess.run(
        command, cwd=folder, env=env, capture_output=True, encoding="utf-8", check=False
    )


@pytest.mark.parametrize("kind", SKIPS)
def test_a_skip_is_a_failure_that_says_why(kind, tmp_path):
    failed = run(tmp_path, SKIPS[kind], "1")
    assert failed.returncode in (1, 2), failed.stdout  # 2: the file was not collected
    assert "HQ_NO_SKIPS is set" in failed.stdout
    assert "no such thing" in failed.stdout


def test_without_the_variable_a_skip_is_a_skip(tmp_path):
    assert run(tmp_path, SKIPS["a mark"], "").returncode == 0


@pytest.mark.parametrize("kind", ALLOWED)
def test_what_no_installation_changes_is_no_failure(kind, tmp_path):
    passed = run(tmp_path, ALLOWED[kind], "1")
    assert passed.returncode == 0, passed.stdout
