"""Hidden states of both backends against those that transformers returns and computes."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers as hf

from hq.backends.base import Backend
from hq.backends.transformers.backend import TorchBackend
from hq.backends.transformers.hidden import attention_outputs
from hq.errors import HQError
from hq.models.architectures import architecture_of
from tests import tiny


@pytest.fixture(params=("torch", "llamacpp"))
def backend(
    request: pytest.FixtureRequest,
    checkpoint: Callable[[str], Path],
    gguf: Callable[[str, str], Path],
) -> Iterator[Backend]:
    """The tiny llama in float32 on each backend."""
    if request.param == "torch":
        opened: Backend = TorchBackend(checkpoint("llama"), device="cpu", token_budget=64)
    else:
        pytest.importorskip("llama_cpp")
        from hq.backends.llamacpp.backend import LlamaBackend

        opened = LlamaBackend(gguf("llama", "f32"), "gguf-f32", token_budget=64)
    yield opened
    opened.close()


def reference(path: Path, site: str) -> list[tuple[np.ndarray, np.ndarray]]:
    """Mean and last of each exchange, from one pass of transformers per exchange."""
    model = hf.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    family = architecture_of(model.config)
    decoder = model.get_decoder()
    found = []
    for exchange in tiny.exchanges():
        heads: list[torch.Tensor] = []

        def keep(
            _: torch.nn.Module, args: tuple[torch.Tensor], heads: list[torch.Tensor] = heads
        ) -> None:
            heads.append(args[0][0])

        handles = [
            module.register_forward_pre_hook(keep) for module in attention_outputs(decoder, family)
        ]
        with torch.inference_mode():
            states = model(torch.tensor([exchange.ids]), output_hidden_states=True).hidden_states
        for handle in handles:
            handle.remove()
        # The last of transformers' hidden states is normalised, so it is left out.
        layers = torch.stack(heads if site == "heads" else [s[0] for s in states[1:-1]])
        answer = layers[:, len(exchange.prompt) :].numpy()
        found.append((answer.mean(axis=1), answer[:, -1]))
    return found


@pytest.mark.parametrize("site", ["residual", "heads"])
def test_states_are_those_of_transformers(
    backend: Backend, checkpoint: Callable[[str], Path], site: str
) -> None:
    expected = reference(checkpoint("llama"), site)
    rows = set()
    for batch in backend.hidden_states(tiny.exchanges(), (site,)):
        for k, row in enumerate(batch.rows.tolist()):
            rows.add(row)
            for found, value in zip((batch.mean, batch.last), expected[row], strict=True):
                np.testing.assert_allclose(found[site][k][: len(value)], value, atol=2e-4)
    assert rows == set(range(len(tiny.exchanges())))


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_heads_are_the_input_of_the_output_projection(
    checkpoint: Callable[[str], Path], family: str
) -> None:
    with TorchBackend(checkpoint(family), device="cpu", token_budget=64) as torch_backend:
        batch = next(iter(torch_backend.hidden_states(tiny.exchanges())))
        assert batch.mean["residual"].shape[1:] == (tiny.LAYERS, 64)
        assert batch.last["heads"].shape[1] == tiny.LAYERS


def test_bad_sites(backend: Backend) -> None:
    for sites in ((), ("neurons",), ("heads", "heads")):
        with pytest.raises(HQError, match="sites of hidden states are residual, heads"):
            next(iter(backend.hidden_states(tiny.exchanges(), sites)))


def test_states_that_are_not_finite_raise(checkpoint: Callable[[str], Path]) -> None:
    with TorchBackend(checkpoint("llama"), device="cpu") as torch_backend:
        overflow = {(0, i): 3e38 for i in range(tiny.D_FF)}
        with torch_backend.scale(overflow), pytest.raises(HQError, match="not finite"):
            next(iter(torch_backend.hidden_states(tiny.exchanges())))
