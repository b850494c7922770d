"""An answer that hq generates token by token, whatever engine computes it."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol

import numpy as np
from jaxtyping import Float

from hq.monitor.step import Running, Step
from hq.neurons.neuron_set import NeuronSet
from hq.tracing.sampling import StopCriteria

Choose = Callable[[Float[np.ndarray, " vocab"]], int]  # the next token from its logits


class AnswerReader(Protocol):
    """Reads the tokens of one answer, and the CETT of a set's neurons at each of them."""

    def read(
        self, prompt: Sequence[int]
    ) -> tuple[Float[np.ndarray, "token k"], Float[np.ndarray, " vocab"]]:
        """Read a prompt: CETT at each of its tokens, and the logits after it."""
        ...

    def append(self, token: int) -> tuple[Float[np.ndarray, " k"], Float[np.ndarray, " vocab"]]:
        """Read one more token: CETT at it, and the logits after it."""
        ...


def generate_steps(
    reader: AnswerReader,
    neurons: NeuronSet,
    prompt: Sequence[int],
    ending: StopCriteria,
    max_new_tokens: int,
    choose: Choose,
) -> Iterator[Step]:
    """Generate an answer; yields a step per token, without the token that ends it."""
    cett, logits = reader.read(prompt)
    running = Running(neurons.tokens, neurons.score_unchecked(cett))
    ids: tuple[int, ...] = ()
    while len(ids) < max_new_tokens:
        ids = (*ids, choose(logits))
        ended = ending.split(ids)
        if ended is not None and len(ended[0]) < len(ids):
            return
        of_token, logits = reader.append(ids[-1])
        yield _step(ids[-1], of_token, neurons, running)
        if ended is not None:
            return


def follow_steps(
    reader: AnswerReader, neurons: NeuronSet, prompt: Sequence[int], response: Iterable[int]
) -> Iterator[Step]:
    """Read a response that is generated elsewhere; yields a step per token, as it comes."""
    cett, _ = reader.read(prompt)
    running = Running(neurons.tokens, neurons.score_unchecked(cett))
    for token in response:
        of_token, _ = reader.append(token)
        yield _step(token, of_token, neurons, running)


def _step(token: int, cett: Float[np.ndarray, " k"], neurons: NeuronSet, running: Running) -> Step:
    decision = float(neurons.score_unchecked(cett[None])[0])
    return Step(token, cett, decision, running.add(decision))
