"""The served model: it generates answers and evaluates the probe at each of their tokens."""

from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np
from jaxtyping import Float

from harness.models.gguf_tokenizer import GGUFTokenizer
from harness.scenarios.prompts import form
from harness.serve.generation.answer import (
    Draft,
    GenerationRequest,
    PieceLogprob,
    Reading,
    Token,
)
from harness.serve.generation.detokenizer import StreamingDetokenizer, strip_leading_space
from harness.serve.generation.grammar import GrammarCompiler
from harness.serve.generation.sampler import SampledLogprobs, Sampler
from hq.backends.llamacpp.backend import LlamaBackend
from hq.errors import HQError
from hq.monitor import BatchMonitor, Step
from hq.monitor.bundle import Bundle
from hq.neurons.neuron_set import NeuronSet
from hq.tracing.sampling import StopCriteria

TOP_NEURONS = 8  # neurons listed at each token

_Result = TypeVar("_Result")


class ServedModel:
    """A GGUF file and the bundle that was validated on it. A context manager; `close` frees it.

    One thread generates: it calls `step` while answers wait. Attention is computed as when the
    bundle was made.

    Args:
        parallel: answers that are generated together. Each takes the memory of `context_tokens`
            keys and values, at least two of them; an answer with alpha ≠ 1 takes two.
        context_tokens: tokens that a prompt and its answer may have together, up to the model's
            own limit.
        form_name: prompt form of chats; "" for the form that the bundle was validated with.
        n_gpu_layers: layers on a GPU; -1 for all.

    Raises HQError if the bundle belongs to another model, or the model does not support the form.
    """

    def __init__(
        self,
        gguf: Path,
        bundle: Bundle,
        context_tokens: int,
        form_name: str = "",
        threads: int = 1,
        n_gpu_layers: int = 0,
        parallel: int = 4,
    ) -> None:
        self.bundle, self.parallel = bundle, parallel
        self.neurons: NeuronSet = bundle.neurons
        self._backend = _in_new_thread(
            lambda: LlamaBackend(
                gguf, bundle.source_precision, threads=threads, n_gpu_layers=n_gpu_layers
            )
        )
        try:
            bundle.require(self._backend.file)
            if self._backend.identity.space.has_experts:
                raise HQError(
                    f"{gguf} is a mixture of experts, and the server's responses name neurons by "
                    "layer and index only: use hq monitor."
                )
            self.form = form_name or bundle.prompt
            self._form = form(self.form)
            self.tokenizer = GGUFTokenizer(self._backend.file, self._backend.model)
            self.vocabulary = self._backend.model.vocabulary
            self.grammars = GrammarCompiler(self.tokenizer, self.vocabulary)
            self._stop_ids = self._form.stop_ids(self.tokenizer)
            trained_length = self._backend.file.metadata.get(
                f"{self._backend.file.architecture}.context_length"
            )
            self.context_tokens = (
                min(context_tokens, trained_length)
                if isinstance(trained_length, int)
                else context_tokens
            )
            self._batch = BatchMonitor(
                self._backend,
                self.neurons,
                max(2, parallel),
                self.context_tokens,
                bundle.facts.combination,
            )
            _in_new_thread(self._warm_up)
        except BaseException:
            self._backend.close()
            raise
        self._weight, self._mean, self._scale = (
            np.array([getattr(neuron, name) for neuron in self.neurons.neurons])
            for name in ("weight", "mean", "scale")
        )
        if bundle.facts.combination is not None:  # contributions are to the token's score
            self._weight = self._weight * bundle.facts.combination.probe
        self._indices = [(neuron.layer, neuron.index) for neuron in self.neurons.neurons]

    def __enter__(self) -> "ServedModel":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Free contexts and weights; a second call has no effect."""
        self._backend.close()

    @property
    def name(self) -> str:
        """The file's name without its suffix."""
        return self._backend.file.path.stem

    @property
    def compute(self) -> str:
        """The type of the arithmetic and, if the bundle's precision has a suffix, the attention."""
        return self._backend.compute

    @property
    def trims(self) -> bool:
        """Whether answers begin with white space that belongs to the prompt form."""
        return bool(self._form.stop_strings)

    def chat_stop_criteria(self, stops: tuple[str, ...], trim: bool) -> StopCriteria:
        """Return what ends an answer in a chat: the form's criteria and the client's stop strings.

        With `trim`, white space before the first word is not searched for stop strings.
        """
        decode = self.tokenizer.decode
        strings = (*self._form.stop_strings, *stops)
        return StopCriteria(
            self._stop_ids,
            strings,
            (lambda ids: strip_leading_space(decode(ids))) if trim else decode,
        )

    def text_stop_criteria(self, stops: tuple[str, ...]) -> StopCriteria:
        """Return what ends the continuation of a text."""
        end_tokens = frozenset(self.tokenizer.eos_token_id)
        return StopCriteria(end_tokens, stops, self.tokenizer.decode)

    def step(self) -> None:
        """Read the next tokens of all answers that wait, together."""
        self._batch.step()

    def generate(
        self, request: GenerationRequest, draft: Draft
    ) -> Generator[Token | None, None, None]:
        """Generate the draft token by token; yield None where a `step` has to come first.

        If the draft's alpha is not 1, a second sequence reads the same tokens with no neuron
        scaled, and the scores come from it: thresholds were set on unscaled scores, and suppression
        must not make an answer look safer.
        """
        detokenizer = StreamingDetokenizer(self.tokenizer.piece, request.stop.strings, request.trim)
        grammar = (
            self.grammars.start(request.grammar, request.stop.tokens) if request.grammar else None
        )
        sampler = Sampler(request.sampling, request.prompt, grammar, request.top_logprobs)
        stopped = False
        with self._batch.answer(request.prompt, request.max_new_tokens, draft.alpha) as answer:
            while not stopped and len(draft.tokens) < request.max_new_tokens:
                while answer.waiting:
                    yield None
                sampled = sampler(answer.logits)
                ended = request.stop.split(tuple(sampler.sampled))
                stopped = ended is not None
                if ended is not None and len(ended[0]) < len(sampler.sampled):
                    break
                is_last = stopped or len(sampler.sampled) == request.max_new_tokens
                answer.append(sampled, is_last)
                while answer.waiting:
                    yield None
                assert answer.step is not None
                token = self._token(answer.step, detokenizer, sampler)
                draft.tokens.append(token)
                yield token
        # The sampled token that ended the answer is not part of it, but its text may begin with
        # the answer's last characters.
        rest = sampler.sampled[len(draft.tokens) :]
        draft.tail = "".join(map(detokenizer.add, rest)) + detokenizer.end()
        draft.finish_reason = "stop" if stopped else "length"

    def _warm_up(self) -> None:
        """Compile the probe's code and touch the memory, so that no request waits for it."""
        for alpha in (1.0, 0.0):
            with self._batch.answer((0,), 1, alpha) as answer:
                while answer.waiting:
                    self.step()
                answer.append(0, is_last=True)
                self.step()

    def _token(self, step: Step, detokenizer: StreamingDetokenizer, sampler: Sampler) -> Token:
        """The token of a step, which the sampler sampled last."""
        logprob = (
            self._piece_logprob(step.token, sampler.logprobs[-1]) if sampler.logprobs else None
        )
        return Token(detokenizer.add(step.token), self._reading(step), logprob)

    def _piece_logprob(self, token: int, sampled: SampledLogprobs) -> PieceLogprob:
        def named(
            token_id: int, logprob: float, top: tuple[PieceLogprob, ...] = ()
        ) -> PieceLogprob:
            piece = self.tokenizer.piece(token_id)
            name = piece or self._backend.model.piece(token_id, special=True)
            return PieceLogprob(name, logprob, not piece, top)

        return named(token, sampled.logprob, tuple(named(*pair) for pair in sampled.top))

    def _reading(self, step: Step) -> Reading:
        contributions: Float[np.ndarray, " k"] = (
            (step.cett - self._mean) / self._scale * self._weight
        )
        top = np.argsort(-np.abs(contributions), kind="stable")[:TOP_NEURONS]
        return Reading(
            token=step.token,
            token_score=step.token_score,
            score=step.score,
            confidence=step.confidence,
            neurons=[
                (*self._indices[k], float(step.cett[k]), float(contributions[k])) for k in top
            ],
        )


def _in_new_thread(work: Callable[[], _Result]) -> _Result:
    """Call a function that computes with llama.cpp in a thread that ends with it.

    OpenMP keeps a team of threads for each thread that computed. If there are more of them than
    cores, they sleep at every barrier, so only the engine's thread may have a team.
    """
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work).result()
