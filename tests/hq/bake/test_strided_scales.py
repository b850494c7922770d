"""Number formats, compared with NumPy and torch; and which α is exact, by exhaustive search."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hq.suppress.bake.strided_scales import FORMATS, largest_alpha, nearest_exact

THEIRS = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32}
NAMES = st.sampled_from(sorted(THEIRS))


def stored(name: str, values: list[float]) -> np.ndarray:
    """Numbers of a format, made by torch: float64."""
    return torch.tensor(values, dtype=torch.float32).to(THEIRS[name]).double().numpy()


@given(NAMES, st.lists(st.floats(width=32, allow_nan=False), min_size=1))
def test_rounding_is_that_of_torch(name, values):
    expected = stored(name, values)
    given = torch.tensor(values, dtype=torch.float32).double().numpy()
    number_format = FORMATS[name]
    finite = np.isfinite(given)
    np.testing.assert_array_equal(number_format.rounded(given[finite]), expected[finite])


@pytest.mark.parametrize("name", THEIRS)
def test_beyond_the_largest_number_is_infinity(name):
    most, digits = torch.finfo(THEIRS[name]).max, torch.finfo(THEIRS[name]).eps
    assert FORMATS[name].largest == most
    values = np.array([most, most * (1 + digits / 8), most * (1 + digits), -1.5 * most])
    np.testing.assert_array_equal(FORMATS[name].rounded(values), [most, most, np.inf, -np.inf])


@given(NAMES, st.lists(st.floats(width=32, allow_nan=False), min_size=1))
def test_what_is_written_is_read_and_is_what_torch_stores(name, values):
    theirs = torch.tensor(values, dtype=torch.float32).to(THEIRS[name])
    raw = theirs.view(torch.uint8).numpy().reshape(len(values), -1)
    number_format = FORMATS[name]
    numbers = number_format.read(raw)
    np.testing.assert_array_equal(numbers, theirs.double().numpy())
    assert number_format.write(numbers).tobytes() == raw.tobytes()


@given(NAMES, st.floats(min_value=2.0**-100, max_value=2.0**13, width=32))
def test_a_unit_is_the_distance_to_the_next_number(name, value):
    number_format = FORMATS[name]
    (number,) = number_format.rounded(np.array([value]))
    (unit,) = number_format.ulp(np.array([number]))
    assert number_format.rounded(np.array([number + unit])) == number + unit
    assert number_format.rounded(np.array([number + unit / 4])) == number


def exact(alpha: float, number_format, values: np.ndarray) -> bool:
    return bool((number_format.rounded(alpha * values) == alpha * values).all())


@given(
    NAMES,
    st.lists(st.floats(-8, 8, width=16), min_size=1, max_size=6),
    st.floats(0, 64, width=32),
)
def test_the_nearest_exact_alpha_is_exact_and_none_of_few_bits_is_nearer(name, values, alpha):
    number_format, numbers = FORMATS[name], stored(name, values)
    found = nearest_exact(alpha, [(number_format, numbers)])
    assert exact(found, number_format, numbers)
    if not numbers.any():
        assert found == alpha
        return
    tried = [0.0, *(math.ldexp(odd, power) for odd in range(1, 16, 2) for power in range(-24, 7))]
    nearest = min(abs(t - alpha) for t in tried if exact(t, number_format, numbers))
    assert abs(found - alpha) <= nearest


def test_with_every_bit_in_use_only_powers_of_two_are_exact():
    full = np.array([1 + 2**-10])
    number_format = FORMATS["F16"]
    assert [nearest_exact(a, [(number_format, full)]) for a in (0.0, 0.1, 0.3, 0.7, 1.4, 3.1)] == [
        0.0, 0.125, 0.25, 0.5, 1.0, 4.0,
    ]  # fmt: skip
    assert nearest_exact(0.3, [(number_format, np.array([1.0]))]) == pytest.approx(0.3, abs=2**-11)


def test_below_the_normal_numbers_a_half_is_not_exact():
    number_format = FORMATS["F16"]
    assert nearest_exact(0.5, [(number_format, np.array([2.0**-24]))]) in (0.0, 1.0)
    assert nearest_exact(0.4, [(number_format, np.array([2.0**-24]))]) == 0
    assert nearest_exact(0.6, [(number_format, np.array([2.0**-24]))]) == 1
    assert nearest_exact(2.2, [(number_format, np.array([2.0**-24]))]) == pytest.approx(2)


def test_the_largest_alpha_overflows_nowhere_and_one_a_little_larger_does():
    number_format = FORMATS["F16"]
    numbers = [(number_format, np.array([3.3, -7.7])), (number_format, np.zeros(2))]
    most = largest_alpha(numbers)
    assert np.isfinite(number_format.rounded(most * numbers[0][1])).all()
    assert not np.isfinite(number_format.rounded(1.001 * most * numbers[0][1])).all()
    assert largest_alpha([(number_format, np.zeros(2))]) == math.inf
    assert largest_alpha([(number_format, np.array([0.25, -0.01]))]) == 262000  # of 262016
