"""What is particular to torch: every family's cache, hooks that come off, weights that are freed."""

import gc
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from hq.backends.transformers.backend import TorchBackend
from hq.errors import HQError
from hq.neurons.prompt_response import PromptResponse
from tests import tiny

Checkpoint = Callable[[str], Path]


@pytest.fixture
def backend(checkpoint: Checkpoint) -> Iterator[TorchBackend]:
    """The tiny llama at fp16."""
    with TorchBackend(checkpoint("llama"), device="cpu", token_budget=64) as opened:
        yield opened


def hooks(backend: TorchBackend) -> int:
    """Forward hooks of any kind on any module."""
    modules = backend.model.modules()
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in modules)


def test_a_path_may_be_text(checkpoint: Checkpoint) -> None:
    with TorchBackend(str(checkpoint("llama")), device="cpu") as backend:
        assert backend.identity.name == "llama"


# --- every family, with a prefix longer than its window


def test_a_long_prefix_gives_the_same_trace(family: str, checkpoint: Checkpoint) -> None:
    exchanges = tiny.exchanges(shared=12)
    stranger = PromptResponse((99, 98, 97), (96,))
    with TorchBackend(checkpoint(family), device="cpu") as backend:
        (shared,) = backend.trace(exchanges, ("output",), ("answer", "prompt", "other"))
        (apart,) = backend.trace([*exchanges, stranger], ("output",), ("answer", "prompt", "other"))
    apart_values = apart.values[np.argsort(apart.rows)][shared.rows]
    np.testing.assert_allclose(shared.values, apart_values, rtol=1e-4, atol=1e-6)


def test_prompts_of_several_lengths_read_as_if_alone(family: str, checkpoint: Checkpoint) -> None:
    prefix = tuple(range(20, 32))
    prompts = [(*prefix, 5, 6, 7, 8), (*prefix, 7), (*prefix, 9, 10)]
    with TorchBackend(checkpoint(family), device="cpu") as backend:
        decoding = backend.decoding()
        decoding.start(prompts)
        found = decoding.step(np.array([2, 1, 0]), np.array([11, 12, 13])).numpy()
        texts = [(*prompts[2], 11), (*prompts[1], 12), (*prompts[0], 13)]
        alone = [backend.decoding().start([text])[0].numpy() for text in texts]
    np.testing.assert_allclose(found, np.stack(alone), rtol=1e-3, atol=1e-4)


def test_decoding_after_a_long_prefix_reads_as_one_text(
    family: str, checkpoint: Checkpoint
) -> None:
    prefix = tuple(range(20, 32))
    with TorchBackend(checkpoint(family), device="cpu") as backend:
        decoding = backend.decoding()
        decoding.share([(*prefix, 5, 6), (*prefix, 7)])
        decoding.start([(*prefix, 5, 6), (*prefix, 7, 8)])
        decoding.step(np.array([1, 1, 0]), np.array([9, 10, 11]))
        found = decoding.step(np.array([1, 2]), np.array([12, 13]))
        texts = torch.tensor([(*prefix, 7, 8, 10, 12), (*prefix, 5, 6, 11, 13)])
        with torch.inference_mode():
            expected = backend.model(texts, use_cache=False).logits[:, -1]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_zero_equals_zeroed_columns_in_every_family(family: str, checkpoint: Checkpoint) -> None:
    exchanges = tiny.exchanges()
    neurons = [(layer, i) for layer in range(tiny.LAYERS) for i in (1, 40, 127)]
    with TorchBackend(checkpoint(family), device="cpu") as backend:
        with backend.scale(dict.fromkeys(neurons, 0.0)):
            scaled = dict(backend.logits(exchanges))
        for layer, i in neurons:
            weight = backend.downs[layer].weight
            column = weight[i] if family == "gpt2" else weight[:, i]
            column.zero_()
        edited = dict(backend.logits(exchanges))
    for row in range(len(exchanges)):
        np.testing.assert_allclose(scaled[row], edited[row], rtol=1e-5, atol=1e-6)


# --- hooks


def test_hooks_come_off_after_a_trace(backend: TorchBackend) -> None:
    list(backend.trace(tiny.exchanges()))
    assert hooks(backend) == 0


def test_hooks_are_off_while_a_trace_waits(backend: TorchBackend) -> None:
    waiting = backend.trace(tiny.exchanges())
    next(waiting)
    assert hooks(backend) == 0


def test_hooks_come_off_after_a_failure(
    backend: TorchBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        assert hooks(backend) > 0
        raise KeyError

    with monkeypatch.context() as patch, pytest.raises(KeyError):
        patch.setattr(backend.decoder, "forward", fail)
        list(backend.trace(tiny.exchanges()))
    assert hooks(backend) == 0
    with pytest.raises(KeyError), backend.scale({(0, 0): 0.5, (2, 1): 2.0}):
        assert hooks(backend) == 3  # one per layer, and the decoder's, which checks that both ran
        raise KeyError
    assert hooks(backend) == 0


@pytest.mark.parametrize("token", [-1, tiny.VOCABULARY])
def test_tokens_that_the_model_lacks_are_refused(backend: TorchBackend, token: int) -> None:
    beyond = [PromptResponse((5, 6), (token,))]
    for read in (backend.trace, backend.logits):
        with pytest.raises(HQError, match=f"outside the {tiny.VOCABULARY}"):
            list(read(beyond))


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine: it has a CUDA device")
def test_a_device_that_is_not_there_is_refused(checkpoint: Callable[[str], Path]) -> None:
    with pytest.raises(HQError, match="no CUDA device"):
        TorchBackend(checkpoint("llama"), device="cuda")


def test_no_hook_is_set_when_a_factor_is_refused(backend: TorchBackend) -> None:
    with pytest.raises(HQError), backend.scale({(0, 0): 0.5, (1, 0): -1.0}):
        pass
    assert hooks(backend) == 0


def test_scaling_leaves_weights_alone(backend: TorchBackend) -> None:
    before = [down.weight.clone() for down in backend.downs]
    with backend.scale({(0, 0): 0.0, (1, 5): 3.0}):
        list(backend.logits(tiny.exchanges()))
    for down, weight in zip(backend.downs, before, strict=True):
        torch.testing.assert_close(down.weight, weight, rtol=0, atol=0)


# --- memory


def test_close_frees_the_model(checkpoint: Checkpoint) -> None:
    backend = TorchBackend(checkpoint("llama"), device="cpu")
    decoding = backend.decoding()
    decoding.start([(5, 6)])
    del decoding
    list(backend.trace(tiny.exchanges()))
    alive = [weakref.ref(backend.model), *map(weakref.ref, backend.downs)]
    backend.close()
    gc.collect()
    assert [ref() for ref in alive] == [None] * len(alive)


def test_wide_traces_make_smaller_batches(
    backend: TorchBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = tiny.LAYERS * tiny.D_FF
    monkeypatch.setattr("hq.backends.transformers.backend.VALUE_BUDGET", 2 * row)
    sizes = [len(batch.rows) for batch in backend.trace(tiny.exchanges(5))]
    assert sizes == [2, 2, 1]
