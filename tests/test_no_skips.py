"""HQ_NO_SKIPS makes a skip a failure, shown by running pytest in a process of its own."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

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


HIDDEN = {  # a test file, and a package that its suite needs
    "tests/harness/serve/test_page.py": "playwright",
    "tests/harness/serve/test_http.py": "fastapi",
    "tests/harness/test_bundling.py": "llama_cpp",
}


def pytest_run(folder, *options, **variables):
    command = [sys.executable, "-m", "pytest", "-q", "-p", "tests.no_skips", *options]
    env = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", **variables}
    env["PYTHONPATH"] = os.pathsep.join([*map(os.path.abspath, sys.path), str(ROOT)])
    return subprocess.run(
        command, cwd=folder, env=env, capture_output=True, encoding="utf-8", check=False
    )


def run(folder, text, forbidden, *options):
    (folder / "pytest.ini").write_text("[pytest]\n", encoding="utf-8")
    (folder / "test_it.py").write_text(f"import pytest\n{text}\n", encoding="utf-8")
    return pytest_run(folder, *options, HQ_NO_SKIPS=forbidden)


@pytest.mark.parametrize("options", [(), ("-p", "xdist.plugin", "-n", "1")], ids=["", "xdist"])
@pytest.mark.parametrize("kind", SKIPS)
def test_a_skip_is_a_failure_that_says_why(kind, options, tmp_path):
    failed = run(tmp_path, SKIPS[kind], "1", *options)
    assert failed.returncode in (1, 2), failed.stdout  # 2: the file was not collected
    assert "HQ_NO_SKIPS is set" in failed.stdout
    assert "no such thing" in failed.stdout
    assert "skipped" not in failed.stdout.splitlines()[-1]


@pytest.mark.parametrize("options", [(), ("-p", "xdist.plugin", "-n", "1")], ids=["", "xdist"])
@pytest.mark.parametrize("kind", ["a mark", "a file"])
def test_without_the_variable_a_skip_is_a_skip(kind, options, tmp_path):
    skipped = run(tmp_path, SKIPS[kind], "", *options)
    assert skipped.returncode in (0, 5), skipped.stdout  # 5: no test was collected
    assert "1 skipped" in skipped.stdout


def test_a_suite_whose_package_is_missing_is_not_left_out(tmp_path):
    """The real suites, run where a package that each of them needs is not installed."""
    names = sorted(HIDDEN.values())
    hiding = f"import sys\nsys.modules.update(dict.fromkeys({names}))\n"
    (tmp_path / "hiding.py").write_text(hiding, encoding="utf-8")
    options = ("-p", "hiding", "--continue-on-collection-errors", "-k", "nowhere")
    files = [str(ROOT / file) for file in HIDDEN]
    failed = pytest_run(tmp_path, *options, *files, HQ_NO_SKIPS="1")
    assert failed.returncode == 1, failed.stdout
    for file in HIDDEN:
        assert re.search(f"^ERROR .*{file}", failed.stdout, re.MULTILINE), failed.stdout


def test_the_page_without_chromium_fails(tmp_path):
    pytest.importorskip("playwright", reason="Playwright is not installed")
    options = ("-m", "slow", "-k", "test_tokens_by_keyboard", "--exitfirst")
    file = str(ROOT / "tests" / "harness" / "serve" / "test_page.py")
    failed = pytest_run(ROOT, *options, file, HQ_NO_SKIPS="1", PATH=str(tmp_path))
    assert failed.returncode == 1, failed.stdout
    assert "Chromium is not installed" in failed.stdout


@pytest.mark.parametrize("kind", ALLOWED)
def test_what_no_installation_changes_is_no_failure(kind, tmp_path):
    passed = run(tmp_path, ALLOWED[kind], "1")
    assert passed.returncode == 0, passed.stdout
