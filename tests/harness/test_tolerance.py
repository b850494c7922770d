"""How far a number may move."""

import pytest
from pydantic import ValidationError

from harness.check.tolerance import Committed, Tolerance


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
    assert Tolerance(within=0.05, worse=worse).exceeded(Committed(0.75), found) is regressed


@pytest.mark.parametrize("amount", ["within", "relative", "half_widths"])
@pytest.mark.parametrize("worse", ["lower", "higher", "either"])
def test_nan_regresses(worse, amount):
    tolerance = Tolerance(worse=worse, **{amount: 1})
    assert tolerance.exceeded(Committed(0.5, 0.4, 0.6), float("nan"))


def test_a_share_of_the_committed_number():
    tolerance = Tolerance(relative=0.1, worse="higher")
    assert not tolerance.exceeded(Committed(100), 109)
    assert tolerance.exceeded(Committed(100), 111)
    assert tolerance.exceeded(Committed(1), 1.2)
    assert not tolerance.exceeded(Committed(0), 0)
    assert tolerance.exceeded(Committed(0), 1e-9)
    assert tolerance.allowed(Committed(-50)) == pytest.approx(5)


def test_a_share_of_half_the_interval():
    tolerance = Tolerance(half_widths=0.5, worse="lower")
    wide, narrow = Committed(0.8, 0.7, 0.86), Committed(0.8, 0.79, 0.81)
    assert tolerance.allowed(wide) == pytest.approx(0.04)
    assert not tolerance.exceeded(wide, 0.77)
    assert tolerance.exceeded(narrow, 0.77)
    assert not tolerance.exceeded(Committed(0, 0, 0), 0)
    assert tolerance.exceeded(Committed(0, 0, 0), -1e-9)
    with pytest.raises(ValueError, match="has none"):
        tolerance.allowed(Committed(0.8))


def test_rows_with_a_key():
    assert Tolerance(within=0).covers(("nf4", "probe"))
    assert Tolerance(within=0, only="nf4").covers(("nf4", "probe"))
    assert not Tolerance(within=0, only="matched").covers(("nf4", "probe"))


@pytest.mark.parametrize("value", [-1, float("inf"), float("nan"), True, "1"])
@pytest.mark.parametrize("amount", ["within", "relative", "half_widths"])
def test_a_tolerance_is_a_finite_number_from_zero(amount, value):
    with pytest.raises(ValidationError, match=amount):
        Tolerance(**{amount: value})


@pytest.mark.parametrize(
    "amounts", [{}, {"within": 1, "relative": 0.1}, {"within": 0.1, "half_widths": 1}]
)
def test_exactly_one_amount(amounts):
    with pytest.raises(ValidationError, match="exactly one of within, relative and half_widths"):
        Tolerance(**amounts)


def test_others_widen_the_allowed_change():
    tolerance = Tolerance(within=1, other_samples=2, other_making=3)
    assert [tolerance.allowed(Committed(0), other) for other in ((), ("samples",))] == [1, 2]
    assert tolerance.allowed(Committed(0), ("samples", "making")) == 3
    assert Tolerance(within=1, other_samples=0.5).allowed(Committed(0), ("samples", "making")) == 1
