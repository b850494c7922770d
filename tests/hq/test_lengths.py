"""Texts longer than the model allows are an error, not values that no one trained."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from hq.backends.transformers.backend import TorchBackend
from hq.errors import HQError
from hq.models.auto import context_length
from hq.neurons.prompt_response import PromptResponse
from tests import decoders, tiny

Checkpoint = Callable[[str], Path]
LIMIT = 128  # of every tiny model


def exchange(length: int) -> PromptResponse:
    """A text of so many tokens, 20 of them the response."""
    ids = tuple(5 + i % 100 for i in range(length))
    return PromptResponse(ids[:-20], ids[-20:])


# Rotary embeddings go on past the limit; absolute ones have no row there.
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_text_past_the_limit_is_refused_and_one_at_it_is_read(name: str, checkpoint: Checkpoint):
    with TorchBackend(checkpoint(name), device="cpu") as backend:
        fits = exchange(LIMIT)
        assert sum(len(batch.rows) for batch in backend.trace([fits])) == 1
        assert len(dict(backend.logits([fits]))[0]) == 20
        long = [fits, exchange(LIMIT + 1)]
        words = rf"Text 1 has 129 tokens, but {name} takes at most 128"
        with pytest.raises(HQError, match=words):
            list(backend.trace(long))
        with pytest.raises(HQError, match=words):
            list(backend.logits(long))


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_decoding_ends_at_the_limit(name: str, checkpoint: Checkpoint):
    one = np.array([0])
    with TorchBackend(checkpoint(name), device="cpu") as backend:
        decoding = backend.decoding()
        decoding.start([exchange(LIMIT - 1).ids])
        decoding.step(one, np.array([7]))
        with pytest.raises(HQError, match=r"has 129 tokens, but .* at most 128"):
            decoding.step(one, np.array([7]))
        with pytest.raises(HQError, match="has 130 tokens"):
            backend.decoding().start([exchange(21).ids, exchange(LIMIT + 2).ids])


def test_the_limit_is_the_language_model_s_and_the_scaled_one():
    assert context_length(decoders.RECORDED["mistral3"]()) == LIMIT
    assert context_length(decoders.RECORDED["gpt2"]()) == LIMIT
    assert context_length(decoders.RECORDED["mpt"]()) == 2048
    assert context_length(decoders.RECORDED["bloom"]()) is None
    scaled = tiny.FAMILIES["llama"]()
    scaled.max_position_embeddings = 131_072
    scaled.rope_parameters = {
        "rope_type": "llama3",
        "rope_theta": 5e5,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    assert context_length(scaled) == 131_072
