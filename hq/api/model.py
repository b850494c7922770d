"""A loaded model, whatever engine runs it: encode, trace, generate and scale."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from typing import Any

import numpy as np

from hq.backends.base import Backend
from hq.errors import HQError
from hq.models.encoding import Encoder
from hq.neurons.cett import Measure, Span
from hq.neurons.features import Features
from hq.neurons.neuron_set import ModelIdentity, NeuronSet
from hq.neurons.prompt_response import PromptResponse
from hq.tracing.sampling import Sampling, StopCriteria, sample

PromptInput = str | Sequence[int] | Sequence[Mapping[str, Any]]
"""A plain text, token ids, or the messages of a conversation (`role` and `content`)."""
AnswerInput = str | Sequence[int]
"""A plain text, or token ids."""
DRAWS = "hq"  # the key of the random numbers of `generate` and of `Monitor.answer`


class Model:
    """A model that was opened by `hq.load` or `hq.wrap`. A context manager; `close` frees it.

    Prompts are encoded as follows.

    - A `str` is plain text: it is encoded exactly as written, after the first token that the
      tokenizer adds to every text, if it adds one. Special tokens written in it count as such, and
      no chat template is applied.
    - Messages, `[{"role": "user", "content": "…"}]`, are rendered by the chat template of the
      tokenizer, up to where the assistant answers. Special tokens written in a message are letters.
    - Token ids are used as they are.

    An answer is encoded by itself and appended to the prompt's tokens, so that its first token is
    one that the model could have generated. A space between prompt and answer belongs to one of
    them.

    Attributes:
        backend: What runs the model, with more verbs: logits, predictions, decoding.
        tokenizer: The tokenizer, a transformers one. Raises HQError if the model has none.
    """

    def __init__(
        self,
        backend: Backend,
        tokenizer: Callable[[], Any],
        ends: Callable[[Any], frozenset[int]],
    ) -> None:
        self.backend = backend
        self._load_tokenizer = tokenizer
        self._ends = ends

    def __enter__(self) -> "Model":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<hq.Model {self.identity.name} at {self.precision}, {self.identity.space}>"

    def close(self) -> None:
        """Free the weights. A wrapped model stays the caller's."""
        self.backend.close()

    @property
    def identity(self) -> ModelIdentity:
        """Name, fingerprint and shape of the model."""
        return self.backend.identity

    @property
    def precision(self) -> str:
        """The name of the precision that the model runs at."""
        return self.backend.precision

    @cached_property
    def tokenizer(self) -> Any:
        """The tokenizer."""
        return self._load_tokenizer()

    @cached_property
    def ends(self) -> frozenset[int]:
        """Tokens that end an answer: end of text, and the end of a turn in the chat template."""
        return self._ends(self.tokenizer)

    def encode(self, prompt: PromptInput) -> tuple[int, ...]:
        """Token ids of a prompt; see the class for how texts and messages are encoded.

        Raises HQError for an empty prompt, for messages without a chat template, and for values
        that are no prompt.
        """
        if isinstance(prompt, str):
            ids = tuple(Encoder(self.tokenizer).text(prompt))
        elif len(prompt) and isinstance(prompt[0], Mapping):
            messages: Any = prompt
            ids = tuple(Encoder(self.tokenizer).chat(messages, add_generation_prompt=True))
        else:
            ids = _token_ids(prompt)
        if not ids:
            raise HQError("A prompt is empty: it needs a token at least.")
        return ids

    def encode_answer(self, answer: AnswerInput) -> tuple[int, ...]:
        """Token ids of an answer, as a continuation of any prompt. Raises HQError if empty."""
        if isinstance(answer, str):
            ids = tuple(Encoder(self.tokenizer).continuation(answer))
        else:
            ids = _token_ids(answer)
        if not ids:
            raise HQError("An answer is empty: it needs a token at least, so leave the pair out.")
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids, without special tokens."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))

    def trace(
        self,
        prompts: Sequence[PromptInput],
        answers: Sequence[AnswerInput],
        *,
        measure: Measure = "sum",
        span: Span = "answer",
    ) -> Features:
        """Trace every neuron over n responses.

        The result knows its measure, span and model, and `hq.identify` and `NeuronSet.score` check
        them. It holds n · p float32 values, p = `identity.n_neurons`.

        Args:
            prompts: n prompts.
            answers: The n answers to them.
            measure: `sum` or `output` CETT (arXiv 2512.01797; `hq.neurons.cett` has the formulas),
                or `contribution`, the numerator alone.
            span: `answer` is the mean over the answer's tokens, `prompt` the last token of the
                prompt, and `other` the mean over the prompt's tokens.

        Raises:
            HQError: The numbers of prompts and answers differ or are zero, a text is empty, too
                long or has token ids that the model lacks, the measure or span is unknown, or
                activations are not finite.
        """
        texts = self._pairs(prompts, answers)
        values = np.empty((len(texts), self.identity.n_neurons), dtype=np.float32)
        for batch in self.backend.trace(texts, (measure,), (span,)):
            values[batch.rows] = batch.features(measure, span).values
        return Features(values, measure, span, self.identity, self.precision, self.backend.missing)

    def generate(
        self,
        prompt: PromptInput,
        *,
        max_new_tokens: int = 64,
        temperature: float = 0.0,
        seed: int = 0,
        stop: Sequence[str] = (),
    ) -> str:
        """Generate the answer to a prompt.

        Args:
            prompt: The prompt.
            max_new_tokens: Longest answer, in tokens.
            temperature: 0 is greedy; above 0, tokens are sampled from the 50 most likely ones and
                the top 0.9 of probability.
            seed: Seed of sampling. The same prompt, settings and seed give the same answer.
            stop: Strings that end the answer, such as a line break; they are not part of it.

        Raises:
            HQError: The prompt is empty or too long, or the logits are not finite.
        """
        ids = self.encode(prompt)
        settings = sampling(max_new_tokens, temperature, seed)
        prompts = [(DRAWS, ids)]
        (tree,) = sample(self.backend.decoding(), prompts, settings, self.stop_criteria(stop))
        return tree.finished[0].text

    def stop_criteria(self, stop: Sequence[str]) -> StopCriteria:
        """What ends an answer: the model's own end tokens, and these strings."""
        if isinstance(stop, str):
            raise HQError(f"stop is the text {stop!r}: pass a list of strings.")
        return StopCriteria(self.ends, tuple(stop), self.decode)

    def scale(self, neurons: NeuronSet, alpha: float) -> AbstractContextManager[None]:
        """Scale the H-Neurons of a set, h_i ← α·h_i, while the context lasts.

        α = 0 silences them, and α = 1 changes nothing. Weights do not change. Everything that the
        model computes inside the context is scaled: answers, traces and logits. `backend.scale`
        takes a factor per neuron.

        Raises:
            HQError: The set belongs to another model, has no H-Neurons or has some that this
                variant lacks, or α is negative or not a number.
        """
        neurons.require(self.identity)
        neurons.require_present(self.backend.missing, self.precision)
        if not neurons.positive:
            raise HQError("The set has no neuron with a positive weight: there is none to scale.")
        positions = [neuron.position for neuron in neurons.positive]
        return self.backend.scale(dict.fromkeys(positions, alpha))

    def _pairs(
        self, prompts: Sequence[PromptInput], answers: Sequence[AnswerInput]
    ) -> list[PromptResponse]:
        for name, given in (("prompts", prompts), ("answers", answers)):
            if isinstance(given, str) or any(isinstance(item, int) for item in given):
                raise HQError(f"{name} is a single one: pass a list of {name}.")
        if len(prompts) != len(answers) or not len(prompts):
            raise HQError(
                f"There are {len(prompts)} prompts and {len(answers)} answers: pass one answer per "
                "prompt, and one at least."
            )
        return [
            PromptResponse(self.encode(prompt), self.encode_answer(answer))
            for prompt, answer in zip(prompts, answers, strict=True)
        ]


def sampling(max_new_tokens: int, temperature: float, seed: int) -> Sampling:
    """Settings of one answer. Raises HQError for values out of range."""
    if max_new_tokens < 1:
        raise HQError(f"max_new_tokens is {max_new_tokens}: it must be 1 or more.")
    if not 0 <= temperature < float("inf"):
        raise HQError(f"The temperature is {temperature}: it must be 0 or more.")
    return Sampling(responses=1, temperature=temperature, max_new_tokens=max_new_tokens, seed=seed)


def _token_ids(values: Any) -> tuple[int, ...]:
    """Token ids of any one-dimensional sequence of integers. Raises HQError for anything else."""
    ids = np.asarray(values)
    if ids.ndim != 1 or (ids.size and ids.dtype.kind not in "iu"):
        raise HQError(
            f"{str(values)[:40]!r} is neither a text nor a list of token ids: a prompt is a str, a "
            "list of integers, or a list of messages."
        )
    return tuple(ids.tolist())
