"""CETT against its two definitions, written out naively for every family, and its algebra."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers as hf
from hypothesis import given
from hypothesis import strategies as st
from jaxtyping import Float

from hq.backends.transformers.backend import TorchBackend
from hq.errors import HQError
from hq.neurons.cett import MEASURES, SPANS, Measure, Span, require_measures, span_means
from hq.neurons.prompt_response import PromptResponse
from tests import tiny

Array = Float[np.ndarray, "..."]
Checkpoint = Callable[[str], Path]

# Known apart from hq's records, so that a wrong path there is found here.
_DOWN = {"gpt2": r"h\.(\d+)\.mlp\.c_proj$", "opt": r"layers\.(\d+)\.fc2$"}
_GATED_DOWN = r"layers\.(\d+)\.mlp\.down_proj$"


def naive_cett(
    model: hf.PreTrainedModel, family: str, exchange: PromptResponse, measure: Measure, span: Span
) -> Float[np.ndarray, "layer d_ff"]:
    """Token by token, in float64, from hooks on a plain model that reads one text."""
    last = len(exchange.prompt) - 1
    tokens = {
        "answer": range(last + 1, len(exchange)),
        "prompt": range(last, last + 1),
        "other": range(last + 1),
    }[span]
    layers = []
    for weight, h in _inputs_of_down(model, family, exchange.ids):
        shares = []
        for t in tokens:
            contribution = np.array(
                [abs(h[t, i]) * np.linalg.norm(weight[:, i]) for i in range(len(h[t]))]
            )
            whole = {
                "sum": contribution.sum(),
                "output": np.linalg.norm(weight @ h[t]),
                "contribution": 1.0,
            }[measure]
            shares.append(contribution / whole)
        layers.append(np.mean(shares, axis=0))
    return np.stack(layers)


def _inputs_of_down(
    model: hf.PreTrainedModel, family: str, ids: tuple[int, ...]
) -> list[tuple[Array, Array]]:
    """(W_down [d_model, d_ff], h [seq, d_ff]) of each layer, float64."""
    pattern = re.compile(_DOWN.get(family, _GATED_DOWN))
    seen: dict[int, tuple[Array, Array]] = {}

    def reading(layer: int) -> Callable[..., None]:
        def hook(module: torch.nn.Linear, args: tuple[torch.Tensor, ...]) -> None:
            weight = module.weight.T if family == "gpt2" else module.weight
            h = args[0].reshape(len(ids), -1)
            seen[layer] = weight.double().numpy(), h.double().numpy()

        return hook

    handles = [
        module.register_forward_pre_hook(reading(int(found[1])))
        for name, module in model.named_modules()
        if (found := pattern.search(name))
    ]
    with torch.inference_mode():
        model(torch.tensor([ids]))
    for handle in handles:
        handle.remove()
    return [seen[layer] for layer in sorted(seen)]


@pytest.fixture(scope="module")
def traced(family: str, checkpoint: Checkpoint) -> Array:
    """All measures and spans of the family's exchanges, by hq: [n, measure, span, layer, d_ff]."""
    with TorchBackend(checkpoint(family), device="cpu", token_budget=64) as backend:
        return by_row(backend, tiny.exchanges()).reshape(-1, 3, 3, tiny.LAYERS, tiny.D_FF)


def by_row(backend: TorchBackend, exchanges: list[PromptResponse]) -> Array:
    """Traces in the order of the exchanges."""
    batches = list(backend.trace(exchanges, MEASURES, SPANS))
    order = np.argsort(np.concatenate([batch.rows for batch in batches]))
    return np.concatenate([batch.values for batch in batches])[order]


def test_every_family_equals_the_definitions_written_naively(
    family: str, checkpoint: Checkpoint, traced: Array
) -> None:
    model = hf.AutoModelForCausalLM.from_pretrained(checkpoint(family), dtype=torch.float32)
    for row, exchange in enumerate(tiny.exchanges()):
        for m, measure in enumerate(MEASURES):
            for s, span in enumerate(SPANS):
                expected = naive_cett(model, family, exchange, measure, span)
                error = np.linalg.norm(traced[row, m, s] - expected, axis=1)
                assert (error <= 1e-5 * np.linalg.norm(expected, axis=1)).all(), (measure, span)


def test_sum_cett_adds_up_to_one_over_a_layer(traced: Array) -> None:
    sums = traced[:, MEASURES.index("sum")].sum(axis=-1, dtype=np.float64)
    np.testing.assert_allclose(sums, 1, rtol=1e-5)


@pytest.mark.parametrize("biased", ["gpt2", "opt"])
def test_output_leaves_the_bias_out(biased: str, checkpoint: Checkpoint) -> None:
    exchange = tiny.exchanges()
    with TorchBackend(checkpoint(biased), device="cpu") as backend:
        before = by_row(backend, exchange)
        backend.downs[-1].bias += 10
        after = by_row(backend, exchange)
    np.testing.assert_allclose(after, before, rtol=1e-4, atol=1e-7)


FAR = st.floats(0.01, 100)


def _case(seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Random h [2, 5, 16], W_down [8, 16], and span weights [2, 3, 5] that add up to 1."""
    generator = torch.Generator().manual_seed(seed)
    h = torch.randn(2, 5, 16, generator=generator)
    weight = torch.randn(8, 16, generator=generator)
    weights = torch.rand(2, 3, 5, generator=generator)
    return h, weight, weights / weights.sum(dim=-1, keepdim=True)


def _means(h: torch.Tensor, weight: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    norms = torch.linalg.vector_norm(weight, dim=0)
    return span_means(h, h @ weight.T, norms, weights, MEASURES)


@given(st.integers(0, 2**31), FAR)
def test_shares_do_not_change_when_h_is_rescaled(seed: int, factor: float) -> None:
    h, weight, weights = _case(seed)
    once, scaled = _means(h, weight, weights), _means(factor * h, weight, weights)
    torch.testing.assert_close(scaled[:, :2], once[:, :2], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(scaled[:, 2], factor * once[:, 2], rtol=1e-4, atol=1e-6)


@given(st.integers(0, 2**31), FAR)
def test_shares_do_not_change_when_the_weight_is_rescaled(seed: int, factor: float) -> None:
    h, weight, weights = _case(seed)
    once, scaled = _means(h, weight, weights), _means(h, factor * weight, weights)
    torch.testing.assert_close(scaled[:, :2], once[:, :2], rtol=1e-4, atol=1e-6)


@given(st.integers(0, 2**31), FAR)
def test_a_neuron_rescaled_against_its_column_keeps_every_measure(seed: int, factor: float) -> None:
    """What AWQ and SmoothQuant do: h_i / c and c · W_down[:, i]."""
    h, weight, weights = _case(seed)
    moved_h, moved_weight = h.clone(), weight.clone()
    moved_h[..., 3] /= factor
    moved_weight[:, 3] *= factor
    once, moved = _means(h, weight, weights), _means(moved_h, moved_weight, weights)
    torch.testing.assert_close(moved, once, rtol=1e-3, atol=1e-5)


@given(st.integers(0, 2**31))
def test_sum_never_exceeds_output(seed: int) -> None:
    """‖W h‖ ≤ Σ contributions, by the triangle inequality."""
    means = _means(*_case(seed))
    assert (means[:, 0] <= means[:, 1] * (1 + 1e-5)).all()


def test_a_token_without_output_counts_as_zero() -> None:
    h, weight, weights = _case(0)
    h[0, 2] = 0
    means = _means(h, weight, weights)
    assert torch.isfinite(means).all()
    without = weights.clone()
    without[0, :, 2] = 0
    torch.testing.assert_close(means, _means(h, weight, without))


@pytest.mark.parametrize("measures", [("contribution", "sum"), *((m,) for m in MEASURES)])
def test_some_of_the_measures_are_those_among_all(measures: tuple[Measure, ...]) -> None:
    require_measures(measures)
    h, weight, weights = _case(1)
    norms = torch.linalg.vector_norm(weight, dim=0)
    some = span_means(h, h @ weight.T, norms, weights, measures)
    chosen = [MEASURES.index(measure) for measure in measures]
    torch.testing.assert_close(some, _means(h, weight, weights)[:, chosen])


@pytest.mark.parametrize("measures", [("sum", "sum"), (*MEASURES, "sum"), ("sum", "cett")])
def test_a_measure_exists_and_is_named_once(measures: tuple[Measure, ...]) -> None:
    with pytest.raises(HQError, match="each at most once"):
        require_measures(measures)
