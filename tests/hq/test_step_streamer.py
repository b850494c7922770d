"""A stream: each token's text with its step, and an error in place of waiting for ever."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hq.errors import HQError
from hq.models.checkpoint import checkpoint_identity
from hq.monitor import StepStreamer, TorchMonitor
from hq.neurons.neuron_set import NeuronSet
from tests import tiny, tiny_tokenizers
from tests.hq.monitored import PROMPT, asked, load, neuron_set

Checkpoint = Callable[[str], Path]


@pytest.fixture(scope="module")
def model(checkpoint: Checkpoint) -> Any:
    """The tiny llama."""
    return load(checkpoint("llama"))


@pytest.fixture
def neurons(checkpoint: Checkpoint) -> NeuronSet:
    """A set of the tiny llama."""
    return neuron_set(checkpoint_identity(checkpoint("llama")))


class Letters:
    """A tokenizer of one letter a token, and of one letter that takes two."""

    def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        assert skip_special_tokens
        text = ""
        for token in ids:
            half = text.endswith("\ufffd")
            text = (
                f"{text[:-1]}é"
                if half
                else text + ("\ufffd" if token % 5 == 0 else chr(65 + token % 26))
            )
        return text


def test_a_stream_gives_text_and_steps(model, neurons):
    with TorchMonitor(model, neurons) as monitor:
        stream = StepStreamer(monitor, Letters())
        answer = threading.Thread(target=model.generate, kwargs=asked(PROMPT, streamer=stream))
        answer.start()
        pairs = list(stream)
        answer.join()
    *read, (last, unread) = pairs
    assert [step for _, step in read] == list(monitor.steps)
    assert unread is None
    assert "\ufffd" not in last


def test_text_is_whole_characters_and_without_the_end(model, neurons):
    with TorchMonitor(model, neurons) as monitor:
        model.generate(**asked(PROMPT, new=12))
        tokens = [step.token for step in monitor.steps]
        end = next(t for i, t in enumerate(tokens) if i > 2 and t not in tokens[:i])
        stream = StepStreamer(monitor, Letters())
        model.generate(**asked(PROMPT, new=12, streamer=stream, eos_token_id=end))
        pairs = list(stream)
        assert [step.token for _, step in pairs] == tokens[: tokens.index(end)]
        whole = Letters().decode(tokens[: len(pairs)], skip_special_tokens=True)
        assert "".join(text for text, _ in pairs) == whole.rstrip("\ufffd")
        again = StepStreamer(monitor, Letters())
        for _ in range(2):  # one stream, one answer after another
            model.generate(**asked(PROMPT, new=12, streamer=again, eos_token_id=end))
            assert [text for text, _ in again] == [text for text, _ in pairs]


def test_a_real_tokenizer_streams(model, neurons):
    tokenizer = tiny_tokenizers.byte_level(tiny.VOCABULARY, every_byte=False)
    with TorchMonitor(model, neurons) as monitor:
        stream = StepStreamer(monitor, tokenizer)
        out = model.generate(**asked(PROMPT, streamer=stream))
    text = "".join(piece for piece, _ in stream)
    assert text == tokenizer.decode(out[0, 4:], skip_special_tokens=True).rstrip("\ufffd")


@pytest.mark.parametrize(
    ("prompts", "options", "words"),
    [
        ((PROMPT, PROMPT), {}, "A stream is of one answer"),
        ((PROMPT,), {"num_beams": 2}, "not beam search"),
    ],
)
def test_a_stream_raises_what_generate_raised(model, neurons, prompts, options, words):
    with TorchMonitor(model, neurons) as monitor:
        stream = StepStreamer(monitor, Letters())
        with pytest.raises(HQError, match=words):
            model.generate(**asked(*prompts, streamer=stream, **options))
        with pytest.raises(HQError, match=words):
            list(stream)


def test_without_its_monitor_nothing_waits_for_ever(model, neurons):
    with TorchMonitor(model, neurons) as monitor:
        pass
    stream = StepStreamer(monitor, Letters())
    with pytest.raises(HQError, match="is not watching"):
        model.generate(**asked(PROMPT, streamer=stream))
    with pytest.raises(HQError, match="is not watching"):
        list(stream)
    with pytest.raises(HQError, match="is not watching"):
        model.generate(**asked(PROMPT, stopping_criteria=[monitor.stop_at(0)]))
    with pytest.raises(HQError, match="Nothing was generated yet"):
        _ = monitor.steps
