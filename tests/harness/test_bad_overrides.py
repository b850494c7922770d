"""Overrides that no study can have, and experiments of packages that lack something."""

from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from harness.experiments.base import Experiment
from harness.experiments.survival.experiment import SurvivalExperiment
from hq.errors import HQError
from tests.harness.test_bad_input import is_one_sentence

OVERRIDES = {
    "an unknown section": ("smpling.quota=9", "no experiment 'smpling'"),
    "an unknown key of a section": ("sampling.qouta=9", "sampling.qouta"),
    "an unknown key": ("modle=x", "modle"),
    "a value of another type": ("sampling.quota=many", "sampling.quota"),
    "a value for a section": ("sampling=9", "sampling"),
    "a value that is too small": ("sampling.quota=0", "sampling.quota"),
    "no value": ("sampling.quota", "write KEY=VALUE"),
    "no key": ("=9", "write KEY=VALUE"),
    "a key below a value": ("seed.low=9", "seed"),
    "a key below a value of the file": ("name.first=9", "no keys"),
    "an unknown key of an experiment": ("sweep.trails=9", "trails"),
    "an unknown precision": ('precisions=["fp16", "nf5"]', "did you mean 'nf4'"),
    "a section of an experiment without one": ("survival.draws=9", "has no section"),
}


@pytest.mark.parametrize("command", ["run", "plan"])
@pytest.mark.parametrize("case", OVERRIDES)
def test_a_bad_override_is_rejected(case, command, tiny_study, hq):
    override, words = OVERRIDES[case]
    is_one_sentence(hq(command, tiny_study, "--set", override), words)
    assert not Path("runs").exists()


class Abstract(Experiment):
    """An experiment that lacks `nodes` and the rest."""

    name = "abstract"


class Other(SurvivalExperiment):
    """An experiment with the name of another, and without tolerances."""


class Tableless(Experiment):
    """An experiment without tables."""

    name = "tableless"
    measures = "nothing"

    def nodes(self, m):
        return []

    def rows(self, m, outputs):
        return {}

    def summary(self, tables):
        return ""


NUMBER = 3
LACKING = {
    "abstract": ("Abstract", "abstract class"),
    "other": ("Other", "is named 'survival'"),
    "tableless": ("Tableless", "Tableless has no 'tables'"),
    "number": ("NUMBER", "3 is not an Experiment"),
    "nowhere": ("Nowhere", "has no attribute 'Nowhere'"),
}


@pytest.mark.parametrize("command", ["run", "plan"])
@pytest.mark.parametrize("name", LACKING)
def test_an_experiment_of_a_package_that_lacks_something(
    name, command, tiny_study, hq, monkeypatch
):
    value, words = LACKING[name]
    point = EntryPoint(name, f"{__name__}:{value}", "hq.experiments")
    monkeypatch.setattr(
        "hq.registry.entry_points", lambda group: [point] if group == point.group else []
    )
    outcome = hq(command, tiny_study, "-e", name)
    is_one_sentence(outcome, words)
    assert f"experiment {name!r}" in outcome.err


def test_an_experiment_without_tolerances_says_where_they_belong():
    with pytest.raises(HQError, match=r"'survival' has no tolerances.toml beside its module tests"):
        Other().tolerances()
