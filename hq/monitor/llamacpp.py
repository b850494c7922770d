"""A live monitor of llama.cpp, which also generates the answers."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

import numpy as np
from jaxtyping import Float

from hq.backends.llamacpp.backend import LlamaBackend
from hq.errors import HQError
from hq.llamacpp.context import Context
from hq.llamacpp.observer import GraphObserver
from hq.monitor.combination import Combination
from hq.monitor.reader import Choose, follow_steps, generate_steps
from hq.monitor.step import Step
from hq.neurons.cett import Measure
from hq.neurons.neuron_set import NeuronSet
from hq.tracing.sampling import StopCriteria

_BATCH = 512  # tokens of a prompt that one decode reads


class LlamaMonitor:
    """Watches a NeuronSet while a model answers; only these neurons and layer sums are read.

    A context manager. Several monitors may share a backend. Every answer has its own context: the
    monitor keeps one, and each further answer that runs at the same time takes the memory of one
    more (`tokens` keys and values, in the types of the backend's precision) until it ends.

    With a `combination`, scores are those of H-Neurons and token probabilities together.

    Raises HQError for a set of another model, for an empty set, and for a combination with a set
    that reads other tokens than the answer's.
    """

    def __init__(
        self,
        backend: LlamaBackend,
        neurons: NeuronSet,
        tokens: int = 2048,
        combination: Combination | None = None,
    ) -> None:
        require_watchable(backend, neurons, combination)
        self.neurons = neurons
        self._combination = combination
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
        """Free keys and values, also those of answers that have not ended."""
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
        """Generate an answer; yields a step per token, without the token that ends it.

        Raises HQError for a prompt that is empty or leaves no room for the answer.
        """
        self._require_room(len(prompt), max_new_tokens)
        with self._watched() as reader:
            yield from generate_steps(
                reader,
                self.neurons,
                prompt,
                ending,
                max_new_tokens,
                choose,
                self._combination,
            )

    def follow(self, prompt: Sequence[int], response: Iterable[int]) -> Iterator[Step]:
        """Read a response that is generated elsewhere; yields a step per token, as it comes.

        An answer that was generated with scaled neurons is scored here as the unscaled model reads
        it, on which thresholds are set. Raises HQError for a prompt that is empty, and for tokens
        that have no room.
        """
        self._require_room(len(prompt), 0)
        with self._watched() as reader:
            yield from follow_steps(reader, self.neurons, prompt, response, self._combination)

    def scale(self, alpha: float) -> AbstractContextManager[None]:
        """h_i ← α·h_i for the H-Neurons of the set, in every context of the model.

        Raises HQError if α is negative or not a number.
        """
        positions = [neuron.position for neuron in self.neurons.positive]
        return self._backend.scale(dict.fromkeys(positions, alpha))

    def _require_room(self, old: int, new: int) -> None:
        if not old or old + new > self._capacity:
            raise HQError(
                f"A prompt of {old} tokens and {new} new ones do not fit into "
                f"{self._capacity}: shorten them, or open the monitor with more tokens."
            )
        self._backend.require_length(old + new)

    def _reader(self) -> "_Reader":
        context, observer = self._backend.context(self._capacity, 1, min(self._capacity, _BATCH))
        positions = self._backend.in_layers(self.neurons.flat)
        return _Reader(context, observer, positions, self.neurons.cett, self._require_room)

    @contextmanager
    def _watched(self) -> Iterator["_Reader"]:
        """The reader of one answer, which nothing else uses until the answer ends."""
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


def require_watchable(
    backend: LlamaBackend, neurons: NeuronSet, combination: Combination | None
) -> None:
    """Raises HQError if the set belongs to another model, is empty, or cannot be combined."""
    neurons.require(backend.identity)
    if not neurons.neurons:
        raise HQError("The neuron set is empty: there is nothing to watch.")
    if combination is not None and neurons.tokens != "answer":
        raise HQError(
            f"The neuron set reads the span {neurons.tokens!r}, and probabilities are combined "
            "with sets that read 'answer': use the set without a combination."
        )


class _Reader:
    """A context that reads one answer after another, and what it watches in it."""

    def __init__(
        self,
        context: Context,
        observer: GraphObserver,
        positions: list[tuple[int, int]],
        measure: Measure,
        require_room: Callable[[int, int], None],
    ) -> None:
        self.context = context
        self._observer, self._positions, self._measure = observer, positions, measure
        self._require_room = require_room
        self._length = 0

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Forget the last answer, and watch the next one while the context lasts."""
        self.context.clear()
        self._length = 0
        with self._observer.watched(self._positions, self._measure) as self._watch:
            yield

    def read(
        self, prompt: Sequence[int]
    ) -> tuple[Float[np.ndarray, "token k"], Float[np.ndarray, " vocab"]]:
        """Read a prompt: CETT at each of its tokens, and the logits after it."""
        parts = []
        for begin in range(0, len(prompt), self.context.batch):
            cett, logits = self._decode(prompt[begin : begin + self.context.batch])
            parts.append(cett)
        return np.concatenate(parts), logits

    def append(self, token: int) -> tuple[Float[np.ndarray, " k"], Float[np.ndarray, " vocab"]]:
        """Read one more token: CETT at it, and the logits after it. HQError without room."""
        self._require_room(self._length, 1)
        cett, logits = self._decode((token,))
        return cett[0], logits

    def _decode(
        self, ids: Sequence[int]
    ) -> tuple[Float[np.ndarray, "token k"], Float[np.ndarray, " vocab"]]:
        """Every token is an output, because each is watched."""
        count = len(ids)
        positions, sequence = self._length + np.arange(count), np.zeros(count)
        logits = self.context.decode(ids, positions, sequence, np.ones(count))
        self._length += count
        last: Float[np.ndarray, " vocab"] = logits[-1].copy()  # `choose` may keep them
        return self._watch.cett(count), last
