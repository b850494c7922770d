"""The algebra of a LoRA that scales neurons, and its scale."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hq.errors import HQError
from hq.suppress.lora.delta import LoraDelta, lora_deltas

LAYERS, D_FF, D_MODEL = 4, 12, 5

factors = st.dictionaries(
    st.tuples(st.integers(0, LAYERS - 1), st.integers(0, D_FF - 1)),
    st.floats(0, 4, width=32),
    min_size=1,
).filter(lambda found: any(alpha != 1 for alpha in found.values()))


@given(factors, st.floats(-2, 2), st.integers(0, 2**32 - 1))
def test_a_scale_moves_alpha_on_a_line(found, scale, seed):
    """W·h + s·B·A·h = W·(α(s) ⊙ h) with α(s) = 1 + s(α₀ − 1), and so for rows of up."""
    draw = np.random.default_rng(seed)
    for delta in lora_deltas(found, LAYERS, D_FF):
        down, h = draw.standard_normal((D_MODEL, D_FF)), draw.standard_normal(D_FF)
        alphas = np.array([found.get((delta.layer, i), 1.0) for i in range(D_FF)])
        moved = 1 + scale * (alphas - 1)
        hot, chosen = delta.one_hot(D_FF), list(delta.neurons)
        through_down = down @ h + scale * down[:, chosen] @ (hot @ h)
        np.testing.assert_allclose(through_down, down @ (moved * h), atol=1e-5)
        up, x = draw.standard_normal((D_FF, D_MODEL)), draw.standard_normal(D_MODEL)
        through_up = up @ x + scale * hot.T @ (up[chosen] @ x)
        np.testing.assert_allclose(through_up, moved * (up @ x), atol=1e-5)


@given(factors)
def test_layers_and_neurons_come_in_order_and_only_where_something_changes(found):
    made = lora_deltas(dict(reversed(found.items())), LAYERS, D_FF)
    indices = [(delta.layer, i) for delta in made for i in delta.neurons]
    assert indices == sorted(neuron for neuron, alpha in found.items() if alpha != 1)
    assert all(delta.rank == len(delta.neurons) == len(delta.coefficients) > 0 for delta in made)


def test_an_offset_is_where_a_fused_projection_has_its_second_half():
    hot = LoraDelta(0, (1, 3), (-1.0, -0.5)).one_hot(8, offset=4)
    assert np.argwhere(hot).tolist() == [[0, 5], [1, 7]]
    assert hot[hot != 0].tolist() == [-1.0, -0.5]
    assert hot.dtype == np.float32


@pytest.mark.parametrize(
    ("found", "words"),
    [
        ({(0, 3): 1.0}, "would change nothing"),
        ({}, "would change nothing"),
        ({(LAYERS, 0): 0.0}, "not in this model"),
        ({(0, D_FF): 0.0}, "not in this model"),
        ({(0, 0): -0.5}, "must be 0 or more"),
        ({(0, 0): float("nan")}, "must be 0 or more"),
        ({(0, 0): float("inf")}, "must be 0 or more"),
    ],
)
def test_bad_factors_are_rejected(found, words):
    with pytest.raises(HQError, match=words):
        lora_deltas(found, LAYERS, D_FF)
