"""Layers on a GPU in llama.cpp give the numbers of the CPU; logits are computed where needed."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hq.backends.opening import open_backend
from hq.neurons.cett import MEASURES, SPANS
from hq.neurons.prompt_response import PromptResponse
from tests import tiny

pytest.importorskip("llama_cpp")

Array = np.ndarray
NEURONS = np.array([1, 5, tiny.D_FF + 2, (tiny.LAYERS - 1) * tiny.D_FF + 3])
FACTORS = {(0, 1): 0.0, (1, 4): 0.3, (2, 7): 3.0}
NEAR = 2e-3  # relative, of float32 arithmetic that a GPU may do in TF32


def opened(path: Path, precision: str, layers: int) -> Any:
    """The file with so many layers on the GPU, as llama.cpp counts them."""
    from hq.backends.llamacpp.backend import LlamaBackend

    return LlamaBackend(path, precision, token_budget=64, n_gpu_layers=layers)


def everything(backend: Any) -> dict[str, Array]:
    """All that is read of some exchanges, plain and scaled, and prompts of several decodes."""
    exchanges = tiny.exchanges()
    long = [PromptResponse((*range(5, 95), i), (3 + i, 4)) for i in range(2)]
    found: dict[str, Array] = {}
    for suffix, factors in (("", {}), (", scaled", FACTORS)):
        with backend.scale(factors):
            for texts, name in ((exchanges, "short"), (long, "long")):
                for batch in backend.trace(texts, MEASURES, SPANS):
                    found[f"trace {name} {batch.number}{suffix}"] = batch.values
                for tokens in backend.read_tokens(texts, NEURONS, "output"):
                    found[f"tokens {name} {tokens.number}{suffix}"] = tokens.values
                for row, logits in backend.logits(texts):
                    found[f"logits {name} {row}{suffix}"] = logits
            start = backend.decoding().start([(5, 6, 7, 8), (5, 6, 9)])
            found[f"start{suffix}"] = start.numpy()
    for hidden in backend.hidden_states(exchanges):
        for site, values in hidden.mean.items():
            found[f"{site} {hidden.number}"] = values
    return found


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["f32", "q8_0", "q4_0"])
@pytest.mark.parametrize("layers", [1, 2, 3, -1])
def test_layers_on_a_gpu_are_read_as_on_the_cpu(
    kind: str, layers: int, gguf: Callable[[str, str], Path]
) -> None:
    """Of 3 layers, none, one, two and all: llama.cpp counts the output as one more.

    The CPU rounds activations to 8 bits where weights are quantized, and a GPU may not, so these
    files are compared with looser bounds.
    """
    path = gguf("llama", kind)
    with opened(path, f"gguf-{kind}", 0) as on_cpu:
        expected = everything(on_cpu)
    with opened(path, f"gguf-{kind}", layers) as partly:
        found = everything(partly)
        on_gpu = 3 if layers == -1 else layers - 1
        places = partly.device.split(", ")
        assert ("CPU" in places) == (on_gpu < 3)
        assert len(places) >= 1 + (0 < on_gpu < 3)
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        error = np.linalg.norm(found[name] - values) / np.linalg.norm(values)
        assert error <= (NEAR if kind == "f32" else 0.1), name


@pytest.mark.gpu
@pytest.mark.parametrize("device", ["cuda", "auto"])
def test_cuda_is_all_layers(device: str, gguf: Callable[[str, str], Path]) -> None:
    with open_backend(gguf("llama", "f32"), "gguf-f32", device) as backend:
        assert "CPU" not in backend.device


@pytest.fixture
def wanted(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Number of logits of each decode that follows."""
    from hq.llamacpp.context import Context

    counts: list[int] = []
    decode = Context.decode

    def counted(self: Context, *arguments: Any) -> Array:
        counts.append(int(np.count_nonzero(arguments[-1])))
        return decode(self, *arguments)

    monkeypatch.setattr(Context, "decode", counted)
    return counts


def test_logits_are_computed_only_of_tokens_that_need_them(
    wanted: list[int], gguf: Callable[[str, str], Path]
) -> None:
    """They take a GiB for 2,048 tokens at a vocabulary of 131,072."""
    exchanges = tiny.exchanges()
    answers = sum(len(exchange.response) for exchange in exchanges)
    with opened(gguf("llama", "f32"), "gguf-f32", 0) as backend:
        for read in (
            lambda: list(backend.trace(exchanges, ("sum",), ("answer",))),
            lambda: list(backend.read_tokens(exchanges, NEURONS, "sum")),
            lambda: list(backend.logits(exchanges)),
            lambda: list(backend.hidden_states(exchanges)),
        ):
            wanted.clear()
            read()
            assert sum(wanted) == answers
        decoding = backend.decoding()
        wanted.clear()
        decoding.share([(5, 6, 7, 8), (5, 6, 9)])
        decoding.start([(5, 6, 7, 8), (5, 6, 9)])
        assert wanted == [0, 2]


def test_a_prefix_is_traced_in_decodes_whose_logits_fit(
    wanted: list[int], gguf: Callable[[str, str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from hq.backends.llamacpp import backend as module

    exchanges = [PromptResponse((*range(5, 45), i), (3 + i, 4)) for i in range(4)]
    with opened(gguf("llama", "f32"), "gguf-f32", 0) as backend:
        (whole,) = backend.trace(exchanges, MEASURES, SPANS)
        monkeypatch.setattr(module, "_LOGIT_BUDGET", 7 * tiny.VOCABULARY)
        wanted.clear()
        (parts,) = backend.trace(exchanges, MEASURES, SPANS)
    assert max(wanted) == 7
    np.testing.assert_allclose(parts.values, whole.values, rtol=1e-5, atol=1e-9)
