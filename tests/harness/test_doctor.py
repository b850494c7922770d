"""`hq doctor` reports what is installed, and what to install for the rest."""

import json
import subprocess
import sys

import pytest

from harness import doctor
from harness.models import requirements
from hq.errors import HQError
from hq.precisions import BACKEND_OF


def test_every_precision_is_tried(hq):
    outcome = hq("doctor", "--deep", "--json")
    assert outcome.code == 0
    details = {finding["what"]: finding["detail"] for finding in json.loads(outcome.out)}
    for name in ("fp16", "bf16", "nf4", "fp8", "gptq-4"):
        assert "relative error of a product on" in details[f"precision {name}"] or (
            "is not installed" in details[f"precision {name}"]
        )


def test_without_deep_no_package_of_a_precision_is_imported():
    """Each takes seconds: bitsandbytes imports torch's compiler."""
    program = (
        "import sys; from harness.doctor import examine; found = examine(); "
        "print(sorted({'bitsandbytes', 'torchao', 'gptqmodel', 'torch._dynamo', 'numba', "
        "'accelerate', 'sklearn', 'transformers'} & sys.modules.keys())); "
        "print([f.detail for f in found if f.what == 'precision nf4'])"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, encoding="utf-8", check=True
    )
    imported, nf4 = ran.stdout.splitlines()
    assert imported == "[]"
    assert "bitsandbytes" in nf4


def test_every_precision_has_a_line(hq):
    outcome = hq("doctor", "--json")
    assert outcome.code == 0
    found = {finding["what"]: finding for finding in json.loads(outcome.out)}
    assert found["precision fp16"]["state"] == "ok"
    assert {"Python", "torch", "embedded model", "cache", "precision int8", "precision nf4"} <= set(
        found
    )


def test_what_is_missing_comes_with_a_fix(monkeypatch):
    monkeypatch.setattr(requirements, "installed_version", lambda package: "")
    missing = [finding for finding in doctor.examine() if finding.what.startswith("extra")]
    assert all(finding.state == "missing" and "pip install" in finding.fix for finding in missing)


def test_a_full_disk_is_a_warning(monkeypatch, tmp_path):
    monkeypatch.setenv("HQ_CACHE", str(tmp_path))
    monkeypatch.setattr(doctor, "_NEEDED_GIB", 10**9)
    (cache,) = [finding for finding in doctor.examine() if finding.what == "cache"]
    assert cache.state == "warn"
    assert "HQ_CACHE" in cache.fix


def test_the_table_shows_the_fix_as_it_must_be_typed(hq, monkeypatch):
    monkeypatch.setattr(requirements, "installed_version", lambda package: "")
    assert "pip install 'hq[bnb]'" in hq("doctor").out


@pytest.fixture
def without(monkeypatch):
    """Make these packages look as if they were not installed, and all others as if they were."""

    def hide(*packages):
        monkeypatch.setattr(
            requirements, "installed_version", lambda p: "" if p in packages else "1.0"
        )

    return hide


def precisions_found():
    found = {finding.what: finding for finding in doctor.examine()}
    return {name: found[f"precision {name}"] for name in BACKEND_OF}  # every one has a line


@pytest.mark.parametrize(
    ("package", "extra", "lacking", "whole"),
    [
        ("gptqmodel", "gptq", ("gptq-4", "gptq-8", "gptq-3", "awq-4-native"), ("awq-4", "fp16")),
        ("auto-round", "gptq", ("awq-4", "awq-4-native"), ("gptq-4", "gptq-4-native")),
        ("gguf", "llama", ("gguf-q8_0", "gguf-f16"), ("gguf-source", "fp16")),
        ("llama-cpp-python", "llama", ("gguf-source", "gguf-q4_k_m"), ("gptq-4", "fp16")),
        ("bitsandbytes", "bnb", ("int8", "nf4", "nf4-dq", "fp4"), ("gptq-4", "fp8", "mxfp4")),
        ("torchao", "torchao", ("torchao-int8", "hqq-4"), ("compressed-8", "fp16")),
    ],
)
def test_each_precision_says_which_package_it_lacks(package, extra, lacking, whole, without):
    without(package)
    found = precisions_found()
    for name in lacking:
        assert found[name].state == "missing", found[name]
        assert package in found[name].detail
        assert found[name].fix == f"pip install 'hq[{extra}]'"
    for name in whole:
        assert package not in found[name].detail


def test_what_only_makes_a_checkpoint_leaves_it_readable(without):
    without("gptqmodel")
    found = precisions_found()
    assert "existing checkpoints can be used" in found["gptq-4"].detail
    assert "can be used" not in found["gptq-4-native"].detail


def test_a_study_is_refused_for_what_a_precision_lacks(without):
    without("gptqmodel")
    with pytest.raises(HQError, match=r"'gptq-4' needs gptqmodel: pip install 'hq\[gptq\]'"):
        requirements.require_packages(("fp16", "gptq-4"))
    requirements.require_packages(("fp16", "gptq-4"), {"gptq-4"})  # the study names a checkpoint
    with pytest.raises(HQError, match="gptq-4-native"):
        requirements.require_packages(("gptq-4-native",), {"gptq-4"})


def test_the_extras_are_those_of_the_project():
    from importlib.metadata import requires

    declared = {}
    for line in requires("hq"):
        name, _, condition = line.partition(";")
        if "extra ==" in condition:
            extra = condition.split("'")[1] if "'" in condition else condition.split('"')[1]
            declared.setdefault(extra, set()).add(name.split(">")[0].split("[")[0].strip())
    for extra, packages in requirements.EXTRAS.items():
        assert set(packages) == declared[extra], extra
