"""The model that is served: it writes answers, and reads in its own neurons what they are worth."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Float

from harness.models.gguf_tokenizer import GGUFTokenizer
from harness.scenarios.prompts import form
from harness.serve.conversation import CONVERSATIONS
from harness.serve.draft import Draft, Order, Token
from harness.serve.generation.grammar import Grammars
from harness.serve.generation.odds import Odds
from harness.serve.responses import Reading
from harness.serve.sampler import Likelihood, Sampler
from harness.serve.spelling import Spelling, after_lead
from hq.backends.llamacpp.backend import LlamaBackend
from hq.monitor import LlamaMonitor, Step
from hq.monitor.bundle import Bundle
from hq.neurons.neuron_set import NeuronSet
from hq.tracing.sampling import StopCriteria

TOP = 8  # neurons that are named at a token


class ServedModel:
    """A GGUF file and the bundle that was validated on it. A context manager; `close` frees it.

    `tokens` is what a prompt and its answer may have together. One thread writes at a time.
    Raises HQError for a bundle of another model, and a model that the form cannot be used with.
    """

    def __init__(
        self,
        gguf: Path,
        bundle: Bundle,
        tokens: int,
        form_name: str = "",
        threads: int = 1,
        n_gpu_layers: int = 0,
    ) -> None:
        self.bundle = bundle
        self.neurons: NeuronSet = bundle.neurons
        self._backend = LlamaBackend(gguf, threads=threads, n_gpu_layers=n_gpu_layers)
        try:
            bundle.require(self._backend.file)
            self.form = form_name or bundle.prompt
            CONVERSATIONS[self.form]  # one that cannot be had is said before anyone asks
            self.tokenizer = GGUFTokenizer(self._backend.file, self._backend.model)
            self.vocabulary = self._backend.model.vocabulary
            self.grammars = Grammars(self.tokenizer, self.vocabulary)
            self._form = form(self.form)
            self._stop_ids = self._form.stop_ids(self.tokenizer)
            length = self._backend.file.metadata.get(
                f"{self._backend.file.architecture}.context_length"
            )
            self.tokens = min(tokens, length) if isinstance(length, int) else tokens
            self._reader = LlamaMonitor(self._backend, self.neurons, self.tokens)
            self._writer = LlamaMonitor(self._backend, self.neurons, self.tokens)
            self._warm_up()
        except BaseException:
            self._backend.close()
            raise
        self._weight, self._mean, self._scale = (
            np.array([getattr(neuron, name) for neuron in self.neurons.neurons])
            for name in ("weight", "mean", "scale")
        )
        self._places = [(neuron.layer, neuron.index) for neuron in self.neurons.neurons]

    def __enter__(self) -> "ServedModel":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Frees contexts and weights; nothing happens the second time."""
        self._backend.close()

    @property
    def name(self) -> str:
        """The file's name, without its suffix."""
        return self._backend.file.path.stem

    @property
    def trims(self) -> bool:
        """Whether an answer begins with white space that belongs to the form."""
        return bool(self._form.stop_strings)

    def chat_ending(self, stops: tuple[str, ...], trim: bool) -> StopCriteria:
        """What ends an answer in a conversation, the client's own strings among it.

        With `trim`, no string is found in white space before the answer's first word.
        """
        decode = self.tokenizer.decode
        strings = (*self._form.stop_strings, *stops)
        return StopCriteria(
            self._stop_ids, strings, (lambda ids: after_lead(decode(ids))) if trim else decode
        )

    def text_ending(self, stops: tuple[str, ...]) -> StopCriteria:
        """What ends the continuation of a text."""
        ends = frozenset(self.tokenizer.eos_token_id)
        return StopCriteria(ends, stops, self.tokenizer.decode)

    def write(self, order: Order, draft: Draft) -> Iterator[Token]:
        """Writes the draft, token by token.

        Where its α is not 1, a second context reads the same tokens with nothing scaled, and the
        scores are that one's: thresholds were set on such, and a silenced neuron accuses nobody.
        """
        spelling = Spelling(self.tokenizer.piece, order.ending.strings, order.trim)
        grammar = self.grammars.begin(order.grammar, order.ending.tokens) if order.grammar else None
        sampler = Sampler(order.drawing, order.prompt, grammar, order.likely)
        for step in self._steps(order, draft.alpha, sampler):
            told = sampler.likelihoods[len(draft.tokens)] if sampler.likelihoods else None
            odds = self._odds(step.token, told) if told else None
            token = Token(spelling.add(step.token), self._reading(step), odds)
            draft.tokens.append(token)
            yield token
        # What ended the answer is no token of it, but may begin with the last of its text.
        rest = sampler.drawn[len(draft.tokens) :]
        draft.tail = "".join(map(spelling.add, rest)) + spelling.end()
        ended = order.ending.split(tuple(sampler.drawn))
        draft.finish = "length" if ended is None else "stop"

    def _warm_up(self) -> None:
        """Compiles what reads the neurons, and touches memory: nobody waits for that later."""
        ending = StopCriteria(frozenset(), (), self.tokenizer.decode)
        for monitor in (self._reader, self._writer):
            for _ in monitor.answer((0,), ending, 1):
                pass

    def _steps(self, order: Order, alpha: float, sampler: Sampler) -> Iterator[Step]:
        asked = (order.prompt, order.ending, order.max_new_tokens, sampler)
        if alpha == 1:
            return self._reader.answer(*asked)
        return self._reader.follow(order.prompt, self._scaled(self._writer.answer(*asked), alpha))

    def _scaled(self, steps: Iterator[Step], alpha: float) -> Iterator[int]:
        """The tokens of an answer; the scale is in force only while the model writes one."""
        factors = {(neuron.layer, neuron.index): alpha for neuron in self.neurons.positive}
        while True:
            with self._backend.scale(factors):
                step = next(steps, None)
            if step is None:
                return
            yield step.token

    def _odds(self, token: int, told: Likelihood) -> Odds:
        def odds(each: int, logprob: float, top: tuple[Odds, ...] = ()) -> Odds:
            piece = self.tokenizer.piece(each)
            named = piece or self._backend.model.piece(each, special=True)
            return Odds(named, logprob, not piece, top)

        return odds(token, told.logprob, tuple(odds(*each) for each in told.top))

    def _reading(self, step: Step) -> Reading:
        parts: Float[np.ndarray, " k"] = (step.cett - self._mean) / self._scale * self._weight
        top = np.argsort(-np.abs(parts), kind="stable")[:TOP]
        return Reading(
            token=step.token,
            token_score=step.token_score,
            score=step.score,
            confidence=step.confidence,
            neurons=[(*self._places[k], float(step.cett[k]), float(parts[k])) for k in top],
        )
