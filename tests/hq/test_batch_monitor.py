"""Answers that are generated together: each as it is alone, whatever its neighbours are."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("llama_cpp")

from hq.backends.llamacpp.backend import LlamaBackend
from hq.errors import HQError
from hq.monitor import BatchMonitor, LlamaMonitor, Step
from hq.monitor.combination import Combination
from hq.neurons.neuron_set import NeuronSet
from hq.tracing.sampling import StopCriteria
from tests.hq.monitored import neuron_set

ENDLESS = StopCriteria(frozenset(), (), lambda ids: "x" * len(ids))
NEW = 9
MAX_STEPS = 100
TOLERANCE = {"rel": 1e-4, "abs": 1e-5}  # another number of tokens in a decode rounds otherwise
PROMPTS = [tuple(5 + (7 * k + j) % 80 for j in range(3 + 4 * k)) for k in range(8)]
ALPHAS = [1.0, 0.0, 1.0, 0.5, 1.0, 2.0, 1.0, 0.25]
SPANS = ["answer", "prompt", "other"]


@pytest.fixture(scope="module")
def backend(gguf: Callable[..., Path]) -> Iterator[LlamaBackend]:
    """The tiny llama in F32."""
    with LlamaBackend(gguf("llama"), "gguf-f32") as opened:
        yield opened


def generate(batch: BatchMonitor, prompts, alphas, lengths=None) -> list[list[Step]]:
    """Greedy answers, all begun together; each ends after its length."""
    lengths = lengths or [NEW] * len(prompts)
    stacks = [ExitStack() for _ in prompts]
    answers = [
        stack.enter_context(batch.answer(prompt, length, alpha))
        for stack, prompt, length, alpha in zip(stacks, prompts, lengths, alphas, strict=True)
    ]
    steps: list[list[Step]] = [[] for _ in answers]
    running = dict(enumerate(answers))
    for _ in range(MAX_STEPS):
        batch.step()
        for k, answer in list(running.items()):
            if answer.waiting:
                continue
            if answer.step is not None:
                steps[k].append(answer.step)
            if len(steps[k]) == lengths[k]:
                del running[k]
                stacks[k].close()
            else:
                is_last = len(steps[k]) + 1 == lengths[k]
                answer.append(int(answer.logits.argmax()), is_last)
    assert not running
    return steps


def alone(backend: LlamaBackend, neurons: NeuronSet, prompt, alpha, combination=None) -> list[Step]:
    """The answer by one context per pass, whose activations are scaled for all tokens."""
    factors = {(neuron.layer, neuron.index): alpha for neuron in neurons.positive}
    with LlamaMonitor(backend, neurons, combination=combination) as monitor:
        with backend.scale(factors):
            written = list(monitor.answer(prompt, ENDLESS, NEW))
        return list(monitor.follow(prompt, [step.token for step in written]))


def assert_equal(actual: list[Step], expected: list[Step]) -> None:
    assert [step.token for step in actual] == [step.token for step in expected]
    for one, two in zip(actual, expected, strict=True):
        assert one.cett == pytest.approx(two.cett, **TOLERANCE)
        assert one.token_score == pytest.approx(two.token_score, **TOLERANCE)
        assert one.score == pytest.approx(two.score, **TOLERANCE)


@pytest.mark.parametrize("span", SPANS)
@pytest.mark.parametrize("cett", ["sum", "output"])
def test_answers_together_equal_answers_alone(backend, span, cett):
    neurons = neuron_set(backend.identity).model_copy(update={"tokens": span, "cett": cett})
    batch = BatchMonitor(backend, neurons, 12, tokens=64)
    for steps, prompt, alpha in zip(generate(batch, PROMPTS, ALPHAS), PROMPTS, ALPHAS, strict=True):
        assert_equal(steps, alone(backend, neurons, prompt, alpha))


def test_more_answers_than_sequences_wait_for_their_turn(backend):
    neurons = neuron_set(backend.identity)
    batch = BatchMonitor(backend, neurons, 3, tokens=64)
    lengths = [1, NEW, 4, NEW, 2, NEW, NEW, 3]
    steps = generate(batch, PROMPTS, ALPHAS, lengths)
    for k, length in enumerate(lengths):
        assert_equal(steps[k], alone(backend, neurons, PROMPTS[k], ALPHAS[k])[:length])


def test_factors_differ_between_the_answers_of_a_batch(backend):
    """A scaled answer is another one, and changes none of its neighbours."""
    neurons = neuron_set(backend.identity)
    batch = BatchMonitor(backend, neurons, 8, tokens=64)
    prompt = PROMPTS[3]
    first, scaled, last = generate(batch, [prompt] * 3, [1.0, 0.0, 1.0])
    assert [step.token for step in first] == [step.token for step in last]
    assert_equal(scaled, alone(backend, neurons, prompt, 0.0))
    assert_equal(first, alone(backend, neurons, prompt, 1.0))


def test_a_combination_reads_the_unscaled_logits(backend):
    neurons = neuron_set(backend.identity)
    combination = Combination(probe=0.7, entropy=0.2, surprisal=0.1, intercept=-0.3)
    batch = BatchMonitor(backend, neurons, 12, 64, combination)
    for steps, prompt, alpha in zip(generate(batch, PROMPTS, ALPHAS), PROMPTS, ALPHAS, strict=True):
        assert_equal(steps, alone(backend, neurons, prompt, alpha, combination))


@pytest.mark.parametrize("alpha", [1.0, 0.5])
def test_a_repeated_prompt_is_not_read_again(backend, alpha):
    neurons = neuron_set(backend.identity)
    batch = BatchMonitor(backend, neurons, 2, tokens=64)
    prompt = PROMPTS[5]
    (first,) = generate(batch, [prompt], [alpha])
    assert batch.reused_tokens == 0
    (second,) = generate(batch, [prompt], [alpha])
    passes = 1 if alpha == 1 else 2
    assert batch.reused_tokens == passes * (len(prompt) - 1)
    assert_equal(second, first)
    (longer,) = generate(batch, [(*prompt, 9, 11)], [alpha])
    assert_equal(longer, alone(backend, neurons, (*prompt, 9, 11), alpha))


def test_keys_and_values_of_another_alpha_are_not_reused(backend):
    batch = BatchMonitor(backend, neuron_set(backend.identity), 2, tokens=64)
    generate(batch, [PROMPTS[5]], [0.0])
    reused = batch.reused_tokens
    (steps,) = generate(batch, [PROMPTS[5]], [2.0])
    assert batch.reused_tokens == reused + len(PROMPTS[5]) - 1  # of the unscaled reader only
    assert_equal(steps, alone(backend, neuron_set(backend.identity), PROMPTS[5], 2.0))


def test_a_set_of_all_prompt_tokens_reads_every_prompt(backend):
    neurons = neuron_set(backend.identity).model_copy(update={"tokens": "other"})
    batch = BatchMonitor(backend, neurons, 2, tokens=64)
    (first,), (second,) = (generate(batch, [PROMPTS[5]], [1.0]) for _ in range(2))
    assert batch.reused_tokens == 0
    assert_equal(second, first)


def test_a_prefix_is_copied_from_a_sequence_in_use(backend):
    neurons = neuron_set(backend.identity)
    batch = BatchMonitor(backend, neurons, 2, tokens=256)
    prefix = tuple(5 + k % 80 for k in range(100))
    with batch.answer((*prefix, 6), NEW) as busy:
        while busy.waiting:
            batch.step()
        (steps,) = generate(batch, [(*prefix, 7, 8)], [1.0])
        assert batch.reused_tokens == len(prefix)
        busy.append(int(busy.logits.argmax()))
        batch.step()
        assert busy.step is not None
        first = busy.step
    assert_equal(steps, alone(backend, neurons, (*prefix, 7, 8), 1.0))
    assert_equal([first], alone(backend, neurons, (*prefix, 6), 1.0)[:1])


def test_an_answer_that_is_left_frees_its_sequence(backend):
    neurons = neuron_set(backend.identity)
    batch = BatchMonitor(backend, neurons, 2, tokens=64)
    with batch.answer(PROMPTS[0], NEW) as kept:
        with batch.answer(PROMPTS[1], NEW), batch.answer(PROMPTS[2], NEW) as unplaced:
            batch.step()
            assert unplaced.waiting
            assert not kept.waiting
        (other,) = generate(batch, [PROMPTS[4]], [1.0])
        kept.append(int(kept.logits.argmax()))
        batch.step()
        assert kept.step is not None
        assert_equal([kept.step], alone(backend, neurons, PROMPTS[0], 1.0)[:1])
    assert_equal(other, alone(backend, neurons, PROMPTS[4], 1.0))


def test_bad_input_is_a_sentence(backend):
    neurons = neuron_set(backend.identity)
    with pytest.raises(HQError, match="takes two"):
        BatchMonitor(backend, neurons, 1)
    batch = BatchMonitor(backend, neurons, 2, tokens=64)
    for prompt, new, alpha, words in (
        ((), 4, 1.0, "do not fit"),
        ((5,) * 60, 5, 1.0, "do not fit"),
        ((5,), 4, -1.0, "must be 0 or more"),
        ((5,), 4, float("nan"), "must be 0 or more"),
    ):
        with pytest.raises(HQError, match=words), batch.answer(prompt, new, alpha):
            pass


def test_a_failed_decode_ends_the_answers_and_not_the_monitor(backend):
    neurons = neuron_set(backend.identity)
    batch = BatchMonitor(backend, neurons, 2, tokens=64)
    with batch.answer((5, 10**6), NEW) as wrong, batch.answer(PROMPTS[0], NEW) as beside:
        batch.step()
        for answer in (wrong, beside):
            with pytest.raises(HQError, match="token ids below"):
                _ = answer.waiting
    (steps,) = generate(batch, [PROMPTS[0]], [1.0])
    assert_equal(steps, alone(backend, neurons, PROMPTS[0], 1.0))


def test_factors_of_tokens_equal_those_of_the_model(backend):
    """Row by row: α_t of each token against all tokens scaled by it, in contexts of their own."""
    scaled = [(0, 3), (1, 5), (2, 7)]
    alphas = np.array([1.0, 0.0, 2.0, 0.5], dtype=np.float32)
    context, observer = backend.context(1024, 4, 64, unified=False)
    with observer.scaled_by_token(scaled) as factors:
        factors[:4] = alphas
        together = context.decode([9, 9, 9, 9], [0] * 4, range(4), [1] * 4).copy()
        with pytest.raises(HQError, match="two sets of factors"), observer.scaled_by_token(scaled):
            pass
    for k, alpha in enumerate(alphas.tolist()):
        one, _ = backend.context(64, 1, 8)
        with backend.scale(dict.fromkeys(scaled, alpha)):
            assert together[k] == pytest.approx(
                one.decode([9], [0], [0], [1])[0], rel=1e-4, abs=1e-4
            )
    after = context.decode([9], [1], [0], [1]).copy()
    one, _ = backend.context(64, 1, 8)
    one.decode([9], [0], [0], [0])
    assert after[0] == pytest.approx(one.decode([9], [1], [0], [1])[0], rel=1e-4, abs=1e-4)
