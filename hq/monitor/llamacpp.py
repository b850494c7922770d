"""A live monitor of llama.cpp, which generates here as well."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
from jaxtyping import Float

from hq.backends.llamacpp import LlamaBackend
from hq.errors import HQError
from hq.llama.tap import Watch
from hq.monitor.step import Running, Step
from hq.neurons import NeuronSet
from hq.sampling import Ending

Choose = Callable[[Float[np.ndarray, " vocab"]], int]  # the next token from its logits
_BATCH = 512  # tokens of a prompt that one decode reads


class Monitor:
    """Watches a NeuronSet while a model answers; nothing but these neurons and sums is read.

    A context manager. Several may share a backend, or run on backends of their own.
    Raises HQError for a set of another model.
    """

    def __init__(self, backend: LlamaBackend, neurons: NeuronSet, tokens: int = 2048) -> None:
        neurons.require(backend.identity)
        if not neurons.neurons:
            raise HQError("The neuron set is empty: there is nothing to watch.")
        self.neurons = neurons
        self._capacity = tokens
        self._backend = backend
        self._context, self._tap = backend.context(tokens, 1, min(tokens, _BATCH))

    def __enter__(self) -> "Monitor":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Frees its keys and values."""
        self._context.close()

    def answer(
        self,
        prompt: Sequence[int],
        ending: Ending,
        max_new_tokens: int = 64,
        choose: Choose = lambda logits: int(logits.argmax()),
    ) -> Iterator[Step]:
        """Reads the prompt and streams the response, without the token that ends it.

        Raises HQError for a prompt that is empty or leaves no room for the response.
        """
        self._require_room(len(prompt), max_new_tokens)
        with self._watched() as watch:
            decisions, logits = self._read(prompt, watch)
            running = Running(self.neurons.tokens, decisions)
            ids: tuple[int, ...] = ()
            while len(ids) < max_new_tokens:
                ids = (*ids, choose(logits))
                ended = ending.split(ids)
                if ended is not None and len(ended[0]) < len(ids):
                    return
                logits = self._decode(ids[-1:], len(prompt) + len(ids) - 1)
                yield self._step(ids[-1], watch, running)
                if ended is not None:
                    return

    def follow(self, prompt: Sequence[int], response: Iterable[int]) -> Iterator[Step]:
        """Reads a response that is written elsewhere, each token as it comes.

        So an answer whose neurons are scaled is judged as the model itself reads it: thresholds
        are set on what nobody scaled. Raises HQError for a prompt that is empty or has no room, and
        for a token that has none.
        """
        self._require_room(len(prompt), 0)
        with self._watched() as watch:
            decisions, _ = self._read(prompt, watch)
            running = Running(self.neurons.tokens, decisions)
            for place, token in enumerate(response, len(prompt)):
                self._require_room(place, 1)
                self._decode((token,), place)
                yield self._step(token, watch, running)

    def _require_room(self, old: int, new: int) -> None:
        if not old or old + new > self._capacity:
            raise HQError(
                f"A prompt of {old} tokens and {new} new ones do not fit into "
                f"{self._capacity}: shorten them, or open the monitor with more tokens."
            )
        self._backend.require_length(old + new)

    def _step(self, token: int, watch: Watch, running: "Running") -> Step:
        cett = watch.cett(1)
        decision = float(self.neurons.score_unchecked(cett)[0])
        return Step(token, cett[0], decision, running.add(decision))

    @contextmanager
    def _watched(self) -> Iterator[Watch]:
        places = [(n.layer, n.index) for n in self.neurons.neurons]
        self._context.clear()
        with self._tap.watched(places, self.neurons.cett) as watch:
            yield watch

    def _read(
        self, prompt: Sequence[int], watch: Watch
    ) -> tuple[Float[np.ndarray, " token"], Float[np.ndarray, " vocab"]]:
        """Decision values at the prompt's tokens, and the logits after it."""
        found = []
        for begin in range(0, len(prompt), self._context.batch):
            piece = prompt[begin : begin + self._context.batch]
            logits = self._decode(piece, begin)
            found.append(self.neurons.score_unchecked(watch.cett(len(piece))))
        return np.concatenate(found), logits

    def _decode(self, ids: Sequence[int], start: int) -> Float[np.ndarray, " vocab"]:
        """Logits after the last of the tokens; every one is an output, as each is watched."""
        count = len(ids)
        positions, sequence = start + np.arange(count), np.zeros(count)
        logits: Float[np.ndarray, " vocab"] = self._context.decode(
            ids, positions, sequence, np.ones(count)
        )[-1]
        return logits
