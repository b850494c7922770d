"""How far a number may move."""

import pytest
from pydantic import ValidationError

from harness.check.tolerance import Tolerance


@pytest.mark.parametrize(
    ("worse", "found", "regressed"),
    [
        ("lower", 0.6, True),
        ("lower", 0.9, False),
        ("higher", 0.6, False),
        ("higher", 0.9, True),
        ("either", 0.6, True),
        ("either", 0.9, True),
        ("either", 0.78, False),
    ],
)
def test_only_the_worse_direction_regresses(worse, found, regressed):
    assert Tolerance(within=0.05, worse=worse).exceeded(0.75, found) is regressed


@pytest.mark.parametrize("relative", [False, True])
@pytest.mark.parametrize("worse", ["lower", "higher", "either"])
def test_nan_regresses(worse, relative):
    assert Tolerance(within=1, worse=worse, relative=relative).exceeded(0.5, float("nan"))


def test_a_share_of_the_expected_value():
    tolerance = Tolerance(within=0.1, worse="higher", relative=True)
    assert not tolerance.exceeded(100, 109)
    assert tolerance.exceeded(100, 111)
    assert tolerance.exceeded(1, 1.2)
    assert not tolerance.exceeded(0, 0)
    assert tolerance.exceeded(0, 1e-9)
    assert tolerance.allowed(-50) == pytest.approx(5)


def test_rows_with_a_key():
    assert Tolerance(within=0).covers(("nf4", "probe"))
    assert Tolerance(within=0, only="nf4").covers(("nf4", "probe"))
    assert not Tolerance(within=0, only="matched").covers(("nf4", "probe"))


def test_no_tolerance_is_negative():
    with pytest.raises(ValidationError):
        Tolerance(within=-1)
