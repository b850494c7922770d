"""Workflows, actions, forms and citation: valid by their schemas, pinned, with sessions that exist."""

import ast
import os
import re
import shutil
import subprocess
import sys

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from hq import __version__
from tests.test_project import ROOT, tomllib

GITHUB = ROOT / ".github"
SCHEMAS = {
    "vendor.github-workflows": sorted(GITHUB.glob("workflows/*.yml")),
    "custom.github-workflows-require-timeout": sorted(GITHUB.glob("workflows/*.yml")),
    "vendor.github-actions": sorted(GITHUB.glob("actions/*/action.yml")),
    "vendor.github-issue-forms": sorted(GITHUB.glob("ISSUE_TEMPLATE/[!c]*.yml")),
    "vendor.github-issue-config": [GITHUB / "ISSUE_TEMPLATE" / "config.yml"],
    "vendor.citation-file-format": [ROOT / "CITATION.cff"],
}
FILES = SCHEMAS["vendor.github-workflows"] + SCHEMAS["vendor.github-actions"]


@pytest.mark.parametrize("schema", SCHEMAS)
def test_files_are_valid_by_their_schema(schema):
    assert SCHEMAS[schema]
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", schema]
    checked = subprocess.run([*command, *SCHEMAS[schema]], capture_output=True, encoding="utf-8")
    assert checked.returncode == 0, checked.stdout


def steps(path):
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    jobs = content.get("jobs") or {"action": content["runs"]}
    return [step for job in jobs.values() for step in job["steps"]]


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_actions_are_pinned_and_scripts_are_safe(path):
    for step in steps(path):
        if "uses" in step:
            assert re.fullmatch(r"\./.+|[\w./-]+@(v\d+|release/v\d+)", step["uses"]), step
        else:
            # An expression in a script would run what a title or a branch is named.
            assert "${{" not in step["run"], step


def test_sessions_of_workflows_exist():
    tree = ast.parse((ROOT / "noxfile.py").read_text(encoding="utf-8"))
    sessions = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    named = set()
    for path in SCHEMAS["vendor.github-workflows"]:
        text = path.read_text(encoding="utf-8")
        for line in re.findall(r"nox -s ([\w ]+)", text):
            named |= set(line.split())
        for line in re.findall(r"session: \[(.+)\]", text):
            named |= set(line.split(", "))
    assert {"lint", "types", "tests", "lowest", "fp16", "int4", "gptq", "bare"} <= named <= sessions


def test_the_version_is_in_the_citation():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == __version__


def release_notes(tag):
    command = [sys.executable, ROOT / ".ci" / "release_notes.py", tag]
    return subprocess.run(command, capture_output=True, encoding="utf-8")


def test_a_release_has_the_notes_of_its_version():
    notes = release_notes(f"v{__version__}")
    assert notes.returncode == 0, notes.stderr
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert notes.stdout.strip() in changelog.split(f"## [{__version__}]", 1)[1]
    assert "\n## " not in notes.stdout


@pytest.mark.parametrize("tag", [__version__, "v9.9.9"])
def test_a_tag_of_another_version_is_no_release(tag):
    notes = release_notes(tag)
    assert (notes.returncode, notes.stdout) == (1, "")
    assert f"tag v{__version__}" in notes.stderr


CODES = {
    0: "pass",
    2: "bad-input",
    3: "threshold-stale",
    4: "degraded",
    5: "inconclusive",
    6: "incomparable",
    1: "failed",
}


@pytest.mark.skipif(os.name == "nt", reason="the runner's bash is not the system's")
@pytest.mark.parametrize("code", CODES)
def test_the_action_ends_with_the_verdict_of_the_check(code, tmp_path):
    """Its scripts run as the runner runs them, with an `hq` that exits with the code."""
    program, output = tmp_path / "hq", tmp_path / "output"
    program.write_text(
        f'#!/bin/sh\necho "$@" >> "$RUNNER_TEMP/calls"\n[ "$1" != check ] || exit {code}\n',
        encoding="utf-8",
    )
    program.chmod(0o755)
    environment = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "RUNNER_TEMP": str(tmp_path),
        "GITHUB_OUTPUT": str(output),
        "GITHUB_STEP_SUMMARY": str(tmp_path / "summary.md"),
        "STUDY": "my study.toml",
        "PRECISIONS": "fp16,nf4",
        "AGAINST": "committed",
        "TABLES": str(tmp_path / "hq" / "tables"),
        "CODE": str(code),
    }
    bash = shutil.which("bash")
    action = GITHUB / "actions" / "hq-check" / "action.yml"
    scripts = {step["name"]: step["run"] for step in steps(action) if "run" in step}
    codes = {
        name: subprocess.run([bash, "-eo", "pipefail", "-c", script], env=environment).returncode
        for name, script in scripts.items()
        if name != "Install hq"
    }
    assert codes.pop("Verdict") == code
    assert set(codes.values()) == {0}  # so that reports are uploaded
    assert f"verdict={CODES[code]}" in output.read_text(encoding="utf-8")
    run, check, report = (tmp_path / "calls").read_text(encoding="utf-8").splitlines()
    tables = environment["TABLES"]
    assert run == f"run my study.toml --into {tables} --quiet --precisions fp16,nf4"
    assert check.startswith(f"check {tables} --against committed --junit ")
    assert report.startswith(f"report {tables} --into ")


def test_the_lowest_versions_are_those_of_the_project():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = (ROOT / ".ci" / "lowest.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))
    text = (ROOT / "noxfile.py").read_text(encoding="utf-8")
    extras = ast.literal_eval(text.split("LOWEST_EXTRAS = ", 1)[1].split("\n", 1)[0])
    wanted = project["dependencies"] + [
        r for extra in extras for r in project["optional-dependencies"][extra]
    ]
    for requirement in map(Requirement, wanted):
        (bound,) = requirement.specifier
        pin = pins[canonicalize_name(requirement.name)]
        assert pin in requirement.specifier, requirement
        # The release of the bound itself may lack a wheel.
        assert pin.split(".")[:1] == bound.version.split(".")[:1] or "airports" in requirement.name
