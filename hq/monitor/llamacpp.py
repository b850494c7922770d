"""A live monitor of llama.cpp, which generates here as well."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
from jaxtyping import Float

from hq.backends.llamacpp.backend import LlamaBackend
from hq.errors import HQError
from hq.llamacpp.context import Context
from hq.llamacpp.observer import GraphObserver
from hq.monitor.step import Running, Step
from hq.neurons.neuron_set import NeuronSet
from hq.tracing.sampling import StopCriteria

Choose = Callable[[Float[np.ndarray, " vocab"]], int]  # the next token from its logits
_BATCH = 512  # tokens of a prompt that one decode reads


class LlamaMonitor:
    """Watches a NeuronSet while a model answers; nothing but these neurons and sums is read.

    A context manager. Several may share a backend, or run on backends of their own. Every answer
    has a context of its own: the monitor keeps one, and each further answer that runs at the same
    time takes the memory of one more (`tokens` keys and values in F32) until it ends.

    Raises HQError for a set of another model.
    """

    def __init__(self, backend: LlamaBackend, neurons: NeuronSet, tokens: int = 2048) -> None:
        neurons.require(backend.identity)
        if not neurons.neurons:
            raise HQError("The neuron set is empty: there is nothing to watch.")
        self.neurons = neurons
        self._capacity = tokens
        self._backend = backend
        self._open = True
        self._idle: list[_Reader] = [self._reader()]
        self._busy: list[_Reader] = []

    def __enter__(self) -> "LlamaMonitor":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Frees keys and values, also those of answers that have not ended."""
        self._open = False
        for reader in (*self._idle, *self._busy):
            reader.context.close()
        self._idle = []

    def answer(
        self,
        prompt: Sequence[int],
        ending: StopCriteria,
        max_new_tokens: int = 64,
        choose: Choose = lambda logits: int(logits.argmax()),
    ) -> Iterator[Step]:
        """Reads the prompt and streams the response, without the token that ends it.

        Raises HQError for a prompt that is empty or leaves no room for the response.
        """
        self._require_room(len(prompt), max_new_tokens)
        with self._watched() as reader:
            decisions, logits = reader.read(prompt)
            running = Running(self.neurons.tokens, decisions)
            ids: tuple[int, ...] = ()
            while len(ids) < max_new_tokens:
                ids = (*ids, choose(logits))
                ended = ending.split(ids)
                if ended is not None and len(ended[0]) < len(ids):
                    return
                logits = reader.decode(ids[-1:], len(prompt) + len(ids) - 1)
                yield self._step(ids[-1], reader, running)
                if ended is not None:
                    return

    def follow(self, prompt: Sequence[int], response: Iterable[int]) -> Iterator[Step]:
        """Reads a response that is written elsewhere, each token as it comes.

        So an answer whose neurons are scaled is judged as the model itself reads it: thresholds
        are set on what nobody scaled. Raises HQError for a prompt that is empty or has no room, and
        for a token that has none.
        """
        self._require_room(len(prompt), 0)
        with self._watched() as reader:
            decisions, _ = reader.read(prompt)
            running = Running(self.neurons.tokens, decisions)
            for place, token in enumerate(response, len(prompt)):
                self._require_room(place, 1)
                reader.decode((token,), place)
                yield self._step(token, reader, running)

    def _require_room(self, old: int, new: int) -> None:
        if not old or old + new > self._capacity:
            raise HQError(
                f"A prompt of {old} tokens and {new} new ones do not fit into "
                f"{self._capacity}: shorten them, or open the monitor with more tokens."
            )
        self._backend.require_length(old + new)

    def _step(self, token: int, reader: "_Reader", running: Running) -> Step:
        cett = reader.cett(1)
        decision = float(self.neurons.score_unchecked(cett)[0])
        return Step(token, cett[0], decision, running.add(decision))

    def _reader(self) -> "_Reader":
        context, tap = self._backend.context(self._capacity, 1, min(self._capacity, _BATCH))
        return _Reader(context, tap, self.neurons)

    @contextmanager
    def _watched(self) -> Iterator["_Reader"]:
        """The reader of one answer, which nothing else uses until that ends."""
        if not self._open:
            raise HQError("This monitor is closed: open another.")
        reader = self._idle.pop() if self._idle else self._reader()
        self._busy.append(reader)
        try:
            with reader.watching():
                yield reader
        finally:
            self._busy.remove(reader)
            if self._idle or not self._open:
                reader.context.close()
            else:
                self._idle.append(reader)


class _Reader:
    """A context that reads one answer after another, and what it watches in it."""

    def __init__(self, context: Context, tap: GraphObserver, neurons: NeuronSet) -> None:
        self.context = context
        self._tap, self._neurons = tap, neurons
        self._places = [(n.layer, n.index) for n in neurons.neurons]

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Forgets the last answer, and watches the next while this lasts."""
        self.context.clear()
        with self._tap.watched(self._places, self._neurons.cett) as self._watch:
            yield

    def cett(self, tokens: int) -> Float[np.ndarray, "token k"]:
        """CETT of the neurons at each of the tokens that were decoded last."""
        return self._watch.cett(tokens)

    def read(
        self, prompt: Sequence[int]
    ) -> tuple[Float[np.ndarray, " token"], Float[np.ndarray, " vocab"]]:
        """Decision values at the prompt's tokens, and the logits after it."""
        found = []
        for begin in range(0, len(prompt), self.context.batch):
            piece = prompt[begin : begin + self.context.batch]
            logits = self.decode(piece, begin)
            found.append(self._neurons.score_unchecked(self.cett(len(piece))))
        return np.concatenate(found), logits

    def decode(self, ids: Sequence[int], start: int) -> Float[np.ndarray, " vocab"]:
        """Logits after the last of the tokens; every one is an output, as each is watched."""
        count = len(ids)
        positions, sequence = start + np.arange(count), np.zeros(count)
        found = self.context.decode(ids, positions, sequence, np.ones(count))
        logits: Float[np.ndarray, " vocab"] = found[-1].copy()  # `choose` may keep them
        return logits
