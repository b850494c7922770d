"""A package outside of the tree adds a precision, scenario, judge, experiment and family."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import decoders
from tests.sharing import shared

SOURCE = Path(__file__).parents[1] / "outside_package"


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder that the toy package is installed in."""

    def install(folder):
        copy = folder / "source"
        copy.mkdir()
        for name in ("pyproject.toml", "hq_toy.py"):
            (copy / name).write_bytes((SOURCE / name).read_bytes())
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
        command += ["--no-build-isolation", "--target", str(folder / "site"), str(copy)]
        subprocess.run(command, check=True)

    return shared(tmp_path_factory, "outside", install) / "site"


@pytest.fixture
def hq_with(site, tmp_path):
    """Runs `hq`, in a process that has the toy package."""

    def run(*arguments):
        paths = [str(site), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(paths),
            "HQ_CACHE": str(tmp_path / "cache"),
            "COLUMNS": "300",
        }
        command = [sys.executable, "-c", "from harness.cli import main; main()"]
        return subprocess.run(
            [*command, *map(str, arguments)],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            encoding="utf-8",
            check=False,
        )

    return run


@pytest.mark.parametrize(
    ("kind", "name", "own"),
    [
        ("precisions", "toy-bf16", "nf4"),
        ("scenarios", "toy-lines", "facts"),
        ("judges", "toy-exact", "rules"),
        ("experiments", "toy-lengths", "sweep"),
        ("families", "stablelm", "llama"),
    ],
)
def test_hq_list_shows_what_there_is_and_from_which_package(kind, name, own, hq_with, hq):
    listed = {row["name"]: row for row in json.loads(hq_with("list", kind, "--json").stdout)}
    assert listed[name]["package"] == "hq-toy 1.0"
    assert listed[own]["package"].startswith("hq ")
    without = {row["name"] for row in json.loads(hq("list", kind, "--json").out)}
    assert name not in without
    assert own in without


def test_a_study_runs_with_a_toy_of_each(hq_with, own_study):
    study = own_study.read_text(encoding="utf-8").replace('"triviaqa"', '"toy-lines"')
    study = study.replace('precisions = ["fp16", "nf4"]', 'precisions = ["fp16", "toy-bf16"]')
    study = study.replace("quota = 60}", 'quota = 60, judge = "toy-exact"}')
    own_study.write_text(study + "\n[toy-lengths]\nat_least = 2\n", encoding="utf-8")
    ran = hq_with("run", own_study, "--into", "detect", "--json")
    assert ran.returncode == 0, ran.stderr
    result = json.loads(ran.stdout)
    fp16, toy = result["tables"]["detection"]
    assert (fp16["precision"], toy["precision"]) == ("fp16", "toy-bf16")
    assert fp16["n"] == toy["n"] > 10
    nodes = result["provenance"]["nodes"]
    assert nodes["sample fp16"]["parameters"]["responses"]["judge"] == "exact, version 1"
    # bfloat16 has 8 bits of mantissa, FP16 has 11: the weights differ, and the neurons are the same.
    error = {row["precision"]: row["error"] for row in result["tables"]["mapping"]}
    assert error["fp16"] < 1e-6 < 1e-4 < error["toy-bf16"] < 1e-2
    lengths = hq_with("run", own_study, "-e", "toy-lengths", "--into", "lengths", "--json")
    assert lengths.returncode == 0, lengths.stderr
    rows = json.loads(lengths.stdout)["tables"]["lengths"]
    assert {row["label"] for row in rows} == {"right", "hallucinated"}
    assert all(row["tokens"] >= 2 for row in rows if row["n"])
    assert hq_with("check", "lengths", "--against", "results", "--accept").returncode == 0
    assert hq_with("check", "lengths", "--against", "results").returncode == 0
    wrong = hq_with("run", own_study, "-e", "toy-lengths", "--set", "toy-lengths.at_least=0")
    assert wrong.returncode == 2
    assert "at_least" in wrong.stderr


def test_without_the_package_its_names_are_unknown(own_study, hq):
    for override, name in (
        ("sampling.judge=toy-exact", "toy-exact"),
        ("scenario.name=toy-lines", "toy-lines"),
        ("experiment=toy-lengths", "toy-lengths"),
        ("toy-lengths.at_least=2", "toy-lengths"),
    ):
        outcome = hq("run", own_study, "--set", override)
        assert outcome.code == 2
        assert f"{name!r}" in outcome.err


def test_a_family_of_a_package_is_known_by_its_record(site, tmp_path):
    decoders.save(decoders.DETECTED["stablelm"](), tmp_path / "model")
    code = (
        "import sys; from pathlib import Path; from hq.models.checkpoint import architecture_at;"
        "print(architecture_at(Path(sys.argv[1])).described['known_by'])"
    )
    known_by = []
    for extra in ((), (str(site),)):
        paths = [*extra, *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
        ran = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / "model")],
            env=environment,
            capture_output=True,
            text=True,
            encoding="utf-8",
            check=True,
        )
        known_by.append(ran.stdout.strip())
    assert known_by == ["detected", "record"]
