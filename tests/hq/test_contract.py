"""What every backend must do at every precision. A new one joins by a line in CASES.

Only the protocol is used here; what belongs to one backend alone is tested beside that backend.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import Float
from scipy.special import log_softmax

from hq.backends.base import SITES, Backend
from hq.backends.transformers.backend import TorchBackend
from hq.errors import HQError
from hq.models.head import ReferenceLogits
from hq.neurons.cett import MEASURES, SPANS
from hq.neurons.prompt_response import PromptResponse
from hq.neurons.space import Position
from tests import tiny
from tests.packed_files import PACKINGS

Array = Float[np.ndarray, "..."]


@dataclass(frozen=True)
class Case:
    """One backend at one precision, and how far rounding may carry a row's values.

    `shape` bounds the relative change of a row that is computed in a batch of another shape: the
    order of float sums. LLM.int8() rounds each token's activations to 8 bits, so there a last bit
    of a float can move a code by one of 127, and layers multiply that: no bound close to float's
    can hold. `exact` is whether neighbours of the same shape leave a row's bits alone; LLM.int8()
    looks for outlier columns in the whole batch, and promises nothing.
    """

    open: Callable[[Path], Backend]
    shape: float = 1e-5
    exact: bool = True
    halves: bool = False  # it computes in FP16, whose subnormal numbers lose bits when halved
    file: str = ""  # the kind of GGUF file that it opens, in place of a checkpoint
    packed: str = ""  # the precision whose packed checkpoint it opens
    needs: str = ""  # a package that is an extra
    model: str = "llama"


def llamacpp(kind: str, path: Path, **options: int) -> Backend:
    """llama.cpp, which is an extra."""
    from hq.backends.llamacpp.backend import LlamaBackend

    return LlamaBackend(path, f"gguf-{kind}", token_budget=64, **options)


CASES = {
    "torch-fp16": Case(partial(TorchBackend, device="cpu", precision="fp16", token_budget=64)),
    "torch-int8": Case(
        partial(TorchBackend, device="cpu", precision="int8", token_budget=64),
        shape=0.05,
        exact=False,
    ),
    **{
        f"torch-{name}": Case(partial(TorchBackend, device="cpu", precision=name, token_budget=64))
        for name in ("bf16", "nf4", "nf4-dq", "fp4", "fp8", "nvfp4", "mxfp4")
    },
    **{
        f"torch-{name}": Case(
            partial(TorchBackend, device="cpu", precision=name, token_budget=64), packed=name
        )
        for name in PACKINGS
    },
    **{
        f"torch-{name}": Case(
            partial(TorchBackend, device="cpu", precision=name, token_budget=64), needs="torchao"
        )
        for name in ("torchao-int8", "torchao-int4", "hqq-4")
    },
    **{
        f"torch-{name}-native": Case(
            partial(TorchBackend, device="cpu", precision=f"{name}-native", token_budget=64),
            shape=0.05,
            exact=False,
            packed=name,
            needs="gptqmodel",
        )
        for name in ("gptq-4", "awq-4")
    },
    **{
        f"cuda-{name}": Case(
            partial(TorchBackend, device="cuda", precision=name, token_budget=64),
            shape=0.05,  # CUDA computes in FP16
            exact=name != "int8",
            halves=True,
        )
        for name in ("fp16", "int8", "nf4", "nf4-dq", "fp4", "fp8", "nvfp4", "mxfp4")
    },
    **{
        f"torch-fp16-{name}": Case(
            partial(TorchBackend, device="cpu", precision="fp16", token_budget=64),
            exact=False,  # an expert multiplies its tokens of all rows at once
            model=name,
        )
        for name in tiny.MIXTURES
    },
    **{
        f"torch-{name}-mixtral": Case(
            partial(TorchBackend, device="cpu", precision=name, token_budget=64),
            exact=False,
            model="mixtral",
        )
        for name in ("bf16", "fp8", "nvfp4", "mxfp4")
    },
    "cuda-bf16": Case(
        partial(TorchBackend, device="cuda", precision="bf16", token_budget=64),
        shape=0.2,  # 8 bits of precision, 3 fewer than FP16
    ),
    "cuda-gptq-4": Case(
        partial(TorchBackend, device="cuda", precision="gptq-4", token_budget=64),
        shape=0.05,
        halves=True,
        packed="gptq-4",
    ),
    "cuda-llamacpp-f32": Case(
        partial(llamacpp, "f32", n_gpu_layers=-1), shape=0.05, file="f32", needs="llama_cpp"
    ),
    "llamacpp-f32": Case(partial(llamacpp, "f32"), file="f32", needs="llama_cpp"),
    "llamacpp-q8_0": Case(partial(llamacpp, "q8_0"), shape=0.05, file="q8_0", needs="llama_cpp"),
    "llamacpp-q4_0": Case(partial(llamacpp, "q4_0"), shape=0.1, file="q4_0", needs="llama_cpp"),
    **{
        f"llamacpp-{kind}-{name}": Case(
            partial(llamacpp, kind),
            shape=shape,
            exact=False,  # an expert multiplies its tokens of all rows at once
            file=kind,
            needs="llama_cpp",
            model=name,
        )
        for name in tiny.MIXTURES_IN_LLAMACPP
        for kind, shape in (("f32", 1e-5), ("f16", 0.02), ("q8_0", 0.05), ("q4_k_m", 0.1))
    },
    # A key or value at the edge of two codes gets the other one where a last bit differs.
    **{
        f"llamacpp-f32+{suffix}": Case(
            partial(llamacpp, f"f32+{suffix}"),
            shape=shape,
            file="f32",
            needs="llama_cpp",
            model="llama-32",
        )
        for suffix, shape in (("fa", 1e-3), ("kv-q8_0", 0.02), ("kv-q4_0", 0.1))
    },
}


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(name, marks=pytest.mark.gpu) if name.startswith("cuda") else name
        for name in CASES
    ],
)
def case(request: pytest.FixtureRequest) -> Case:
    """Each case in turn."""
    return CASES[request.param]


@pytest.fixture(scope="module")
def backend(
    case: Case,
    checkpoint: Callable[[str], Path],
    gguf: Callable[[str, str], Path],
    packed: Callable[[str], Path],
) -> Iterator[Backend]:
    """The tiny llama, opened by the case."""
    if case.needs:
        pytest.importorskip(case.needs)
    if case.packed:
        opened = case.open(packed(case.packed))
    else:
        opened = case.open(gguf(case.model, case.file) if case.file else checkpoint(case.model))
    yield opened
    opened.close()


@pytest.fixture
def exchanges() -> list[PromptResponse]:
    """Six exchanges over more than one batch, whose prompts share five tokens."""
    return tiny.exchanges()


def trace(backend: Backend, exchanges: Sequence[PromptResponse]) -> Array:
    """Every measure and span, in the order asked: [n, measure, span, layer, d_ff]."""
    values = np.empty((len(exchanges), len(MEASURES), len(SPANS), tiny.LAYERS, tiny.D_FF))
    for batch in backend.trace(exchanges, MEASURES, SPANS):
        values[batch.rows] = batch.values.reshape(-1, *values.shape[1:])
    return values


def at(backend: Backend, layer: int, index: int) -> Position:
    """A neuron by its index in the layer, over all experts of the layer."""
    return backend.identity.space.positions(layer * tiny.D_FF + index)[0]


def all_of(backend: Backend, layer: int, alpha: float) -> dict[Position, float]:
    """One factor for every neuron of a layer."""
    return {at(backend, layer, i): alpha for i in range(tiny.D_FF)}


def logits(backend: Backend, exchanges: Sequence[PromptResponse]) -> list[Array]:
    """Of every response token, in the order asked."""
    found = dict(backend.logits(exchanges))
    return [found[row] for row in range(len(exchanges))]


def off(values: Array, expected: Array) -> float:
    """The largest relative error of a vector along the last axis; absolute where it is zero."""
    error, size = (np.linalg.norm(v, axis=-1) for v in (values - expected, expected))
    return float((error / np.where(size, size, 1)).max())


def unlike(exchange: PromptResponse) -> PromptResponse:
    """An exchange of the same lengths after the same first tokens, otherwise of other tokens."""
    tail = tuple(127 - token for token in exchange.prompt[5:])
    return PromptResponse(exchange.prompt[:5] + tail, tuple(127 - t for t in exchange.response))


# --- tracing


def test_the_exchanges_cover_more_than_one_batch(
    backend: Backend, exchanges: list[PromptResponse]
) -> None:
    batches = list(backend.trace(exchanges, ("sum",), ("answer",)))
    assert [batch.number for batch in batches] == list(range(len(batches)))
    assert len(batches) > 1
    assert sorted(np.concatenate([b.rows for b in batches])) == list(range(len(exchanges)))
    assert {batch.values.dtype for batch in batches} == {np.dtype("float32")}


def test_a_row_is_the_same_alone(
    backend: Backend, case: Case, exchanges: list[PromptResponse]
) -> None:
    alone = np.concatenate([trace(backend, [exchange]) for exchange in exchanges])
    assert off(trace(backend, exchanges), alone) <= case.shape


def test_a_shared_prefix_changes_nothing(
    backend: Backend, case: Case, exchanges: list[PromptResponse]
) -> None:
    stranger = PromptResponse((99, 98, 97), (96,))
    without = trace(backend, [*exchanges, stranger])[:-1]
    assert off(trace(backend, exchanges), without) <= case.shape


def test_neighbours_of_the_same_shape_leave_the_bits_alone(
    backend: Backend, case: Case, exchanges: list[PromptResponse]
) -> None:
    changed = [*exchanges[:1], *map(unlike, exchanges[1:])]
    for read in (trace, logits):
        found, expected = read(backend, changed)[0], read(backend, exchanges)[0]
        if case.exact:
            np.testing.assert_array_equal(found, expected)
        else:
            assert off(found, expected) <= case.shape


@pytest.mark.parametrize("measure", ["sum", "output"])
def test_each_token_is_read_as_a_response_of_its_own(
    backend: Backend, exchanges: list[PromptResponse], case: Case, measure: str
) -> None:
    neurons = np.array([1, 5, tiny.D_FF + 2, (tiny.LAYERS - 1) * tiny.D_FF + 3])
    readings = list(backend.read_tokens(exchanges, neurons, measure))
    assert len(readings) > 1
    values: dict[int, Array] = {}
    for batch in readings:
        values |= dict(zip(batch.rows, np.split(batch.values, batch.ends[:-1]), strict=True))
    assert sorted(values) == list(range(len(exchanges)))
    assert [len(values[i]) for i in range(len(exchanges))] == [len(e.response) for e in exchanges]
    tokens = [
        PromptResponse(e.prompt + e.response[:t], (e.response[t],))
        for e in exchanges
        for t in range(len(e.response))
    ]
    alone = trace(backend, tokens)[:, MEASURES.index(measure), SPANS.index("answer")]
    read = np.concatenate([values[i] for i in range(len(exchanges))])
    assert off(read, alone.reshape(len(tokens), -1)[:, neurons]) < max(case.shape, 1e-5) * 3
    rest = backend.read_tokens(exchanges, neurons, measure, frozenset({readings[0].number}))
    assert [batch.number for batch in rest] == [batch.number for batch in readings[1:]]


def test_measures_and_spans_come_in_the_order_asked(
    backend: Backend, exchanges: list[PromptResponse]
) -> None:
    whole = trace(backend, exchanges)
    for batch in backend.trace(exchanges, ("contribution", "sum"), ("other", "answer")):
        expected = whole[batch.rows][:, [2, 0]][:, :, [2, 0]].reshape(batch.values.shape)
        assert off(batch.values, expected) <= 1e-6


def test_skip_leaves_out_those_batches_and_no_others(
    backend: Backend, exchanges: list[PromptResponse]
) -> None:
    whole = list(backend.trace(exchanges, MEASURES, SPANS))
    rest = list(backend.trace(exchanges, MEASURES, SPANS, skip=frozenset({0})))
    assert [batch.number for batch in rest] == [batch.number for batch in whole[1:]]
    for batch, same in zip(rest, whole[1:], strict=True):
        np.testing.assert_array_equal(batch.rows, same.rows)
        np.testing.assert_array_equal(batch.values, same.values)


def test_no_exchanges_give_no_traces(backend: Backend) -> None:
    assert list(backend.trace([], MEASURES, SPANS)) == []
    assert list(backend.logits([])) == []
    assert list(backend.predictions([])) == []


def test_sum_adds_up_to_one(backend: Backend, exchanges: list[PromptResponse]) -> None:
    sums = trace(backend, exchanges)[:, MEASURES.index("sum")].sum(axis=-1)
    np.testing.assert_allclose(sums, 1, rtol=1e-5)


def test_activations_that_are_not_finite_are_refused(
    backend: Backend, exchanges: list[PromptResponse]
) -> None:
    with backend.scale(all_of(backend, 0, 3e38)), pytest.raises(HQError, match="not finite"):
        trace(backend, exchanges)


def test_a_trace_can_be_paused_and_dropped(
    backend: Backend, exchanges: list[PromptResponse]
) -> None:
    expected = logits(backend, exchanges)
    paused = backend.trace(exchanges, MEASURES, SPANS)
    first = next(paused)
    for found, same in zip(logits(backend, exchanges), expected, strict=True):
        np.testing.assert_array_equal(found, same)
    assert not torch.is_inference_mode_enabled()
    np.testing.assert_array_equal(
        next(iter(backend.trace(exchanges, MEASURES, SPANS))).values, first.values
    )
    rest = np.concatenate([batch.rows for batch in paused])
    assert len(first.rows) + len(rest) == len(exchanges)


# --- predictions


@pytest.fixture(scope="module")
def reference(checkpoint: Callable[[str], Path]) -> ReferenceLogits:
    """The exchanges at fp16."""
    with TorchBackend(checkpoint("llama"), device="cpu") as fp16:
        asked = tiny.exchanges()
        found = {
            int(row): part
            for batch in fp16.predictions(asked)
            for row, part in zip(batch.rows, np.split(batch.hidden, batch.ends[:-1]), strict=True)
        }
        hidden = np.concatenate([found[row] for row in range(len(asked))])
        starts = np.cumsum([0, *(len(exchange.response) for exchange in asked)]).tolist()
        return ReferenceLogits(hidden, starts, fp16.head)


def predictions(
    backend: Backend, exchanges: Sequence[PromptResponse], reference: ReferenceLogits | None = None
) -> Array:
    """Means of entropy, log-probability and divergence, in the order asked: [n, 3]."""
    values = np.zeros((len(exchanges), 3))
    for batch in backend.predictions(exchanges, reference):
        for i, part in enumerate((batch.entropy, batch.log_prob, batch.kl)):
            values[batch.rows, i] = np.nan if part is None else batch.means(part)
    return values


def test_predictions_follow_from_the_logits(
    backend: Backend, case: Case, exchanges: list[PromptResponse], reference: ReferenceLogits
) -> None:
    expected = []
    for row, found in enumerate(logits(backend, exchanges)):
        q = log_softmax(found.astype(np.float64), axis=-1)
        p = log_softmax(reference.blocks([row])(0, tiny.VOCABULARY), axis=-1)
        chosen = q[np.arange(len(q)), exchanges[row].response]
        entropy, kl = -(np.exp(q) * q).sum(axis=-1), (np.exp(p) * (p - q)).sum(axis=-1)
        expected.append([entropy.mean(), chosen.mean(), kl.mean()])
    found = predictions(backend, exchanges, reference)
    # A row's logits can come in a batch of another shape.
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=max(1e-5, case.shape / 10))
    without = predictions(backend, exchanges)
    np.testing.assert_array_equal(without[:, :2], found[:, :2])
    assert np.isnan(without[:, 2]).all()


def test_skipped_batches_of_predictions_change_no_other(
    backend: Backend, exchanges: list[PromptResponse], reference: ReferenceLogits
) -> None:
    whole = list(backend.predictions(exchanges, reference))
    assert len(whole) > 1
    assert sorted(np.concatenate([b.rows for b in whole])) == list(range(len(exchanges)))
    rest = list(backend.predictions(exchanges, reference, frozenset({0})))
    assert [batch.number for batch in rest] == [batch.number for batch in whole[1:]]
    for batch, same in zip(rest, whole[1:], strict=True):
        for name in ("rows", "ends", "entropy", "log_prob", "kl"):
            np.testing.assert_array_equal(getattr(batch, name), getattr(same, name))


def test_logits_that_are_not_finite_are_refused(
    backend: Backend, exchanges: list[PromptResponse]
) -> None:
    with (
        backend.scale(all_of(backend, tiny.LAYERS - 1, 3e38)),
        pytest.raises(HQError, match="not finite"),
    ):
        list(backend.predictions(exchanges))


# --- hidden states


def hidden(backend: Backend, exchanges: Sequence[PromptResponse]) -> Array:
    """Mean and last of both sites side by side, in the order asked: [n, 2, layer, widths]."""
    found: dict[int, Array] = {}
    for batch in backend.hidden_states(exchanges):
        kinds = [
            np.concatenate([k[site] for site in SITES], axis=-1) for k in (batch.mean, batch.last)
        ]
        found |= dict(zip(batch.rows.tolist(), np.stack(kinds, axis=1), strict=True))
    return np.stack([found[row] for row in range(len(exchanges))])


def test_hidden_states_are_the_same_alone(
    backend: Backend, case: Case, exchanges: list[PromptResponse]
) -> None:
    alone = np.concatenate([hidden(backend, [exchange]) for exchange in exchanges])
    assert off(hidden(backend, exchanges), alone) <= case.shape


def test_the_mean_of_one_token_is_the_last(
    backend: Backend, case: Case, exchanges: list[PromptResponse]
) -> None:
    one = [PromptResponse(e.prompt, e.response[:1]) for e in exchanges]
    values = hidden(backend, one)
    np.testing.assert_allclose(values[:, 0], values[:, 1], rtol=1e-6)
    longer = hidden(backend, exchanges)
    several = [row for row, e in enumerate(exchanges) if len(e.response) > 1]
    assert off(longer[several, 0], longer[several, 1]) > 0.01


# --- decoding


def test_decoding_agrees_with_logits(
    backend: Backend, case: Case, exchanges: list[PromptResponse]
) -> None:
    for exchange, expected in zip(exchanges, logits(backend, exchanges), strict=True):
        decoding = backend.decoding()
        rows = [decoding.start([exchange.prompt])]
        rows += [decoding.step(np.array([0]), np.array([t])) for t in exchange.response[:-1]]
        assert off(torch.cat(rows).cpu().numpy(), expected) <= case.shape


def test_rows_that_branch_and_end_read_as_if_alone(backend: Backend, case: Case) -> None:
    prompts = [(5, 6, 7), (5, 6, 8), (5, 9, 9)]
    decoding = backend.decoding()
    decoding.start(prompts)
    decoding.step(np.array([0, 0, 2]), np.array([10, 11, 12]))  # the second prompt ends
    branched = decoding.step(np.array([1, 2, 2]), np.array([20, 21, 22])).cpu().numpy()
    texts = [(5, 6, 7, 11, 20), (5, 9, 9, 12, 21), (5, 9, 9, 12, 22)]
    alone = [backend.decoding().start([text])[0].cpu().numpy() for text in texts]
    assert off(branched, np.stack(alone)) <= case.shape


def test_a_decoding_starts_again_and_again(backend: Backend, case: Case) -> None:
    decoding = backend.decoding()
    decoding.share([(5, 6, 7, 8), (5, 6, 9)])
    starts = [[(5, 6, 7, 8), (5, 6, 9, 9)], [(5, 6, 9)], [(5, 6)], [(7,), (8,)]]
    for prompts in starts:
        alone = [backend.decoding().start([prompt])[0].cpu().numpy() for prompt in prompts]
        assert off(decoding.start(prompts).cpu().numpy(), np.stack(alone)) <= case.shape


def test_a_shared_prefix_is_read_under_the_scales_of_the_start(
    backend: Backend, case: Case
) -> None:
    prompts = [(5, 6, 7, 8), (5, 6, 9, 9)]
    decoding = backend.decoding()
    decoding.share(prompts)
    with backend.scale(all_of(backend, 0, 0.0)):
        expected = backend.decoding().start(prompts).cpu().numpy()
        assert off(decoding.start(prompts).cpu().numpy(), expected) <= case.shape
    expected = backend.decoding().start(prompts).cpu().numpy()
    assert off(decoding.start(prompts).cpu().numpy(), expected) <= case.shape


def test_prompts_of_several_lengths_read_as_if_alone(backend: Backend, case: Case) -> None:
    """With a shared prefix, without one, and one that is longer than another's whole prompt."""
    together = [
        [(5, 6, 7, 8, 9, 10), (5, 6, 9), (5, 6, 9, 11)],
        [(7,), (8, 9, 10, 11, 12)],
        [(5, 6, 7, 8, 9, 10, 11, 12), (5, 6, 7, 8, 9, 13)],
    ]
    decoding = backend.decoding()
    for prompts in together:
        alone = [backend.decoding().start([prompt])[0].cpu().numpy() for prompt in prompts]
        assert off(decoding.start(prompts).cpu().numpy(), np.stack(alone)) <= case.shape
        parents, tokens = np.array([1, 0, 0]), np.array([20, 21, 22])
        branched = decoding.step(parents, tokens).cpu().numpy()
        texts = [(*prompts[p], t) for p, t in zip(parents, tokens.tolist(), strict=True)]
        alone = [backend.decoding().start([text])[0].cpu().numpy() for text in texts]
        assert off(branched, np.stack(alone)) <= case.shape


# --- scaling


def test_scaling_by_one_is_bit_identical(backend: Backend, exchanges: list[PromptResponse]) -> None:
    plain = trace(backend, exchanges), logits(backend, exchanges)
    neurons = [at(backend, layer, i) for layer in range(tiny.LAYERS) for i in range(64)]
    with backend.scale(dict.fromkeys(neurons, 1.0)):
        np.testing.assert_array_equal(trace(backend, exchanges), plain[0])
        for found, expected in zip(logits(backend, exchanges), plain[1], strict=True):
            np.testing.assert_array_equal(found, expected)


def test_scaling_reaches_what_is_traced(backend: Backend, exchanges: list[PromptResponse]) -> None:
    """In the first layer h depends on nothing that is scaled, so contributions go with α."""
    contribution = MEASURES.index("contribution")
    plain = trace(backend, exchanges)[:, contribution, :, 0]
    with backend.scale({at(backend, 0, i): a for i, a in ((3, 0.0), (5, 0.5), (7, 4.0))}):
        scaled = trace(backend, exchanges)[:, contribution, :, 0]
    factors = np.ones(tiny.D_FF)
    factors[[3, 5, 7]] = 0.0, 0.5, 4.0
    np.testing.assert_allclose(scaled, plain * factors, rtol=1e-6)


def test_scaling_changes_later_layers_and_logits(
    backend: Backend, case: Case, exchanges: list[PromptResponse]
) -> None:
    plain = trace(backend, exchanges), np.concatenate(logits(backend, exchanges))
    with backend.scale(all_of(backend, 1, 0.0)):
        np.testing.assert_array_equal(trace(backend, exchanges)[..., 0, :], plain[0][..., 0, :])
        assert off(trace(backend, exchanges)[..., 2, :], plain[0][..., 2, :]) > 2 * case.shape
        assert off(np.concatenate(logits(backend, exchanges)), plain[1]) > 2 * case.shape


def test_a_factor_and_its_inverse_cancel(
    backend: Backend, case: Case, exchanges: list[PromptResponse]
) -> None:
    plain = trace(backend, exchanges)
    chosen = [(layer, i) for layer in range(tiny.LAYERS) for i in range(0, tiny.D_FF, 3)]
    neurons = [at(backend, *neuron) for neuron in chosen]
    with backend.scale(dict.fromkeys(neurons, 0.3)), backend.scale(dict.fromkeys(neurons, 1 / 0.3)):
        assert off(trace(backend, exchanges), plain) <= case.shape


@settings(max_examples=10)
@given(
    neurons=st.sets(
        st.tuples(st.integers(0, tiny.LAYERS - 1), st.integers(0, tiny.D_FF - 1)), min_size=1
    ),
    power=st.integers(-6, 6),
)
def test_powers_of_two_cancel_to_the_bit(
    backend: Backend, case: Case, neurons: set[tuple[int, int]], power: int
) -> None:
    """They round nothing, whatever type the arithmetic continues in."""
    exchanges = tiny.exchanges(2)
    chosen = [at(backend, *neuron) for neuron in neurons]
    there, back = dict.fromkeys(chosen, 2.0**power), dict.fromkeys(chosen, 2.0**-power)
    plain = logits(backend, exchanges)
    with backend.scale(there), backend.scale(back):
        for found, expected in zip(logits(backend, exchanges), plain, strict=True):
            if case.halves:
                assert off(found, expected) <= case.shape
            else:
                np.testing.assert_array_equal(found, expected)


def test_scales_that_change_between_two_batches_are_refused(
    backend: Backend, exchanges: list[PromptResponse]
) -> None:
    batches = backend.trace(exchanges, ("sum",), ("answer",))
    next(iter(batches))
    silenced = {at(backend, 0, 0): 0.0}
    with backend.scale(silenced), pytest.raises(HQError, match="scales changed"):
        next(iter(batches))


def test_decoding_is_scaled_too(
    backend: Backend, case: Case, exchanges: list[PromptResponse]
) -> None:
    with backend.scale(all_of(backend, 1, 0.0)):
        expected = logits(backend, exchanges)[0][:1]
        started = backend.decoding().start([exchanges[0].prompt]).cpu().numpy()
    assert off(started, expected) <= case.shape


@pytest.mark.parametrize("alpha", [float("nan"), -0.5, float("inf"), -float("inf")])
def test_factors_that_make_no_sense_are_refused(backend: Backend, alpha: float) -> None:
    with (
        pytest.raises(HQError, match=r"for neuron \(1, (0, )?2\): it must be"),
        backend.scale({at(backend, 0, 0): 0.5, at(backend, 1, 2): alpha}),
    ):
        pass


@pytest.mark.parametrize(
    ("measures", "spans"),
    [(("sum", "mean"), ("answer",)), (("sum", "sum"), ("answer",)), (("sum",), ("answers",))],
)
def test_measures_and_spans_that_there_are_not_are_refused(
    backend: Backend, exchanges: list[PromptResponse], measures: tuple, spans: tuple
) -> None:
    with pytest.raises(HQError, match=r"measure|span"):
        list(backend.trace(exchanges, measures, spans))


@pytest.mark.parametrize(
    "neuron", [(3, 0), (-1, 0), (0, 128), (0, -1), (0, 1.5), (0, 9, 0), (0, 0, 128), (0, 0, 1.5)]
)
def test_neurons_that_the_model_lacks_are_refused(
    backend: Backend, neuron: tuple[int, int]
) -> None:
    with pytest.raises(HQError, match="is not in this model, which has 3 layers of "):
        with backend.scale({at(backend, 0, 0): 0.5, neuron: 0.5}):
            pass


def test_nothing_stays_scaled(backend: Backend, exchanges: list[PromptResponse]) -> None:
    plain = trace(backend, exchanges)
    with pytest.raises(KeyError), backend.scale(all_of(backend, 0, 0.0)):
        raise KeyError
    np.testing.assert_array_equal(trace(backend, exchanges), plain)


# --- what it says of itself


def test_it_says_who_it_is(backend: Backend) -> None:
    space = backend.identity.space
    assert [s.stop - s.start for s in space.layer_slices] == [tiny.D_FF] * tiny.LAYERS
    assert backend.norms.shape == (tiny.LAYERS * tiny.D_FF,)
    assert (backend.norms > 0).all()
    assert backend.compute.partition(",")[0] in {"float32", "float16", "bfloat16", "int8"}


def test_it_audits_every_projection(backend: Backend) -> None:
    rows = backend.audit()
    attention, ffn = 4 * tiny.LAYERS, 3 * 64 * tiny.D_FF * tiny.LAYERS
    assert sum(row.count for row in rows) >= attention + tiny.LAYERS
    if any("Experts" in row.module or row.module.endswith("_exps") for row in rows):
        assert sum(row.weights for row in rows) > ffn
    else:
        assert sum(row.count for row in rows) == attention + 3 * tiny.LAYERS
    assert backend.weight_bytes() > 0


def test_contribution_is_h_times_the_norm(
    backend: Backend, exchanges: list[PromptResponse]
) -> None:
    """Σ_i contribution_i ≥ ‖W_down h‖: true only with norms of the weights that multiply."""
    answers = trace(backend, [PromptResponse(e.prompt, e.response[:1]) for e in exchanges])[:, :, 0]
    with np.errstate(invalid="ignore"):  # zeros of neurons that are not routed
        output = answers[:, MEASURES.index("contribution")] / answers[:, MEASURES.index("output")]
    total = answers[:, MEASURES.index("contribution")].sum(axis=-1)
    assert (np.nanmax(output, axis=-1) <= total).all()


def test_unknown_precisions_are_answered_with_the_nearest(
    checkpoint: Callable[[str], Path],
) -> None:
    with pytest.raises(HQError, match="no precision 'nf5': did you mean 'nf4'"):
        TorchBackend(checkpoint("llama"), "nf5")
