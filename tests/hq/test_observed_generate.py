"""What a monitor makes of `generate`: one observed pass per token, and rows that end as it does."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from transformers.generation.logits_process import UnbatchedClassifierFreeGuidanceLogitsProcessor
from transformers.generation.streamers import BaseStreamer

from hq.errors import HQError
from hq.models.checkpoint import checkpoint_identity
from hq.monitor import TorchMonitor
from hq.neurons.neuron_set import NeuronSet
from tests import tiny, tiny_tokenizers
from tests.hq.monitored import PROMPT, asked, load, neuron_set, scores

Checkpoint = Callable[[str], Path]
TWO = (PROMPT, (9, 10))


@pytest.fixture(scope="module")
def model(checkpoint: Checkpoint) -> Any:
    """The tiny llama."""
    return load(checkpoint("llama"))


@pytest.fixture
def neurons(checkpoint: Checkpoint) -> NeuronSet:
    """A set of the tiny llama."""
    return neuron_set(checkpoint_identity(checkpoint("llama")))


class Rerun(hf.LogitsProcessor):
    """Runs the model once more at the n-th token, as guidance and contrast do."""

    def __init__(self, model: Any, at: int) -> None:
        self.model, self.at, self.calls = model, at, 0

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        if self.calls == self.at:
            self.model(input_ids[:, -1:])
        self.calls += 1
        return scores


@pytest.mark.parametrize("tokens", ["answer", "prompt", "other"])
@pytest.mark.parametrize(
    ("at", "words"), [(0, "before the first new one"), (3, "2 forward passes")]
)
@pytest.mark.parametrize("options", [{}, {"use_cache": False}])
def test_a_processor_that_runs_the_model_is_refused(model, neurons, tokens, at, words, options):
    processor = Rerun(model, at)
    with TorchMonitor(model, neuron_set(neurons.model, tokens=tokens)) as monitor:
        with pytest.raises(HQError, match=words):
            model.generate(**asked(*TWO, logits_processor=[processor], **options))
        assert processor.calls == at + 1  # at the very token
        model.generate(**asked(*TWO, **options))
        assert [len(row) for row in monitor.rows] == [8, 8]


@pytest.mark.parametrize("length", [1, 4, 6])
def test_guidance_by_a_processor_is_refused_whatever_its_prompt(model, neurons, length):
    negative = torch.tensor([list(range(5, 5 + length))])
    guidance = UnbatchedClassifierFreeGuidanceLogitsProcessor(1.5, model, negative)
    with TorchMonitor(model, neurons), pytest.raises(HQError, match="were read before the first"):
        model.generate(**asked(PROMPT, logits_processor=[guidance]))


def test_other_code_that_runs_the_model_between_tokens_is_refused(model, neurons):
    class Criterion(hf.StoppingCriteria):
        def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
            model(input_ids)
            return torch.zeros(len(input_ids), dtype=torch.bool)

    class Streamer(BaseStreamer):
        def put(self, value: Any) -> None:
            model(torch.tensor([[5, 6]]))

        def end(self) -> None: ...

    with TorchMonitor(model, neurons):
        with pytest.raises(HQError, match="2 forward passes ran for one new token"):
            model.generate(**asked(PROMPT, stopping_criteria=[Criterion()]))
        with pytest.raises(HQError, match="6 tokens were read before the first new one, not 4"):
            model.generate(**asked(PROMPT, streamer=Streamer()))


def test_another_thread_is_refused_and_spoils_nothing(model, neurons):
    found: list[BaseException] = []

    def generate() -> None:
        try:
            model.generate(**asked((9, 10)))
        except HQError as error:
            found.append(error)

    class Meanwhile(hf.LogitsProcessor):
        def __call__(self, input_ids: Any, scores: Any) -> Any:
            if not found:
                thread = threading.Thread(target=generate)
                thread.start()
                thread.join()
            return scores

    with TorchMonitor(model, neurons) as monitor:
        model.generate(**asked(PROMPT))
        alone = scores(monitor.steps)
        model.generate(**asked(PROMPT, logits_processor=[Meanwhile()]))
        assert scores(monitor.steps) == alone
    assert "generates already" in str(found[0])


def test_new_ids_that_continue_a_cache_are_read_as_the_whole(model, neurons):
    with TorchMonitor(model, neurons) as monitor:
        out = model.generate(**asked(PROMPT, return_dict_in_generate=True))
        new = (int(out.sequences[0, -1]), 20, 21)
        whole = (*out.sequences[0, :-1].tolist(), *new)
        model.generate(**asked(whole))
        expected = scores(monitor.steps)
        given = asked(new) | {"attention_mask": torch.ones(1, len(whole), dtype=torch.long)}
        model.generate(**given, cache=out.cache)
        assert scores(monitor.steps) == pytest.approx(expected, rel=1e-4)


def test_embedded_prompts_are_read(model, neurons):
    with TorchMonitor(model, neurons) as monitor:
        model.generate(**asked(PROMPT))
        expected = scores(monitor.steps)
        given = asked(PROMPT)
        given["inputs_embeds"] = model.get_input_embeddings()(given.pop("input_ids"))
        model.generate(**given)
        assert scores(monitor.steps) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("given", ["pad_token_id", "generation_config"])
def test_a_pad_token_that_the_model_writes_is_a_token(model, neurons, given):
    with TorchMonitor(model, neurons) as monitor:
        out = model.generate(**asked(*TWO))
        pad = int(out[0, 4])  # the first token of the first row
        unused = next(t for t in range(tiny.VOCABULARY) if t not in out)
        ids = {"eos_token_id": unused, "pad_token_id": pad}
        options = asked(*TWO) | (
            ids
            if given == "pad_token_id"
            else {"generation_config": hf.GenerationConfig(max_new_tokens=9, **ids)}
        )
        model.generate(**options)
        assert [[step.token for step in row] for row in monitor.rows] == out[:, 4:-1].tolist()


class EndsRow(hf.StoppingCriteria):
    """Ends the first row after some tokens."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
        done = torch.zeros(len(input_ids), dtype=torch.bool)
        done[0] = input_ids.shape[1] >= self.length
        return done


@pytest.mark.parametrize("eos", [True, False])
def test_a_row_that_a_criterion_ends_is_over_whatever_fills_it(model, neurons, eos):
    with TorchMonitor(model, neurons) as monitor:
        out = model.generate(**asked(*TWO))
        free = out[:, 4:].tolist()
        unused = next(t for t in range(tiny.VOCABULARY) if t not in out)
        options = {"eos_token_id": unused, "pad_token_id": free[0][1]} if eos else {}
        criteria = [EndsRow(4 + 3)]
        model.generate(**asked(*TWO, stopping_criteria=criteria, **options))
        assert [step.token for step in monitor.rows[0]] == free[0][:3]
        assert [step.token for step in monitor.rows[1]] == free[1][:-1]


def test_a_stop_string_ends_its_row(model, neurons):
    tokenizer = tiny_tokenizers.byte_level(tiny.VOCABULARY, every_byte=False)
    with TorchMonitor(model, neurons) as monitor:
        out = model.generate(**asked(*TWO))
        first, second = out[:, 4:].tolist()
        text = [tokenizer.decode([token]) for token in first]
        at = next(
            i
            for i, piece in enumerate(text)
            if i and piece not in tokenizer.decode(second) + "".join(text[:i])
        )
        unused = next(t for t in range(tiny.VOCABULARY) if t not in out)
        options = {"eos_token_id": unused, "pad_token_id": first[0], "tokenizer": tokenizer}
        model.generate(**asked(*TWO, stop_strings=[text[at]], **options))
        assert [step.token for step in monitor.rows[0]] == first[: at + 1]
        assert [step.token for step in monitor.rows[1]] == second[:-1]


def test_arguments_of_generate_may_be_positional(model, neurons):
    given = asked(PROMPT)
    ids, config = given.pop("input_ids"), hf.GenerationConfig(max_new_tokens=9)
    del given["max_new_tokens"], given["do_sample"]
    with TorchMonitor(model, neurons) as monitor:
        model.generate(**asked(PROMPT))
        expected = scores(monitor.steps)
        model.generate(ids, config, None, hf.StoppingCriteriaList(), **given)
        assert scores(monitor.steps) == expected
        stop = hf.StoppingCriteriaList([monitor.stop_at(-1e9)])
        model.generate(ids, config, hf.LogitsProcessorList(), stop, **given)
        assert scores(monitor.steps) == expected[:1]
        with pytest.raises(HQError, match="assisted generation"):
            model.generate(ids, config, None, None, None, None, model, **given)
