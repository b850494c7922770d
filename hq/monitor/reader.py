"""An answer that hq generates token by token, whatever engine computes it."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol

import numpy as np
from jaxtyping import Float

from hq.monitor.combination import Combination, uncertainty_of
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
    combination: Combination | None = None,
) -> Iterator[Step]:
    """Generate an answer; yields a step per token, without the token that ends it."""
    cett, logits = reader.read(prompt)
    scoring = _Scoring(neurons, cett, combination)
    ids: tuple[int, ...] = ()
    while len(ids) < max_new_tokens:
        predicted = logits
        ids = (*ids, choose(logits))
        ended = ending.split(ids)
        if ended is not None and len(ended[0]) < len(ids):
            return
        of_token, logits = reader.append(ids[-1])
        yield scoring.step(ids[-1], of_token, predicted)
        if ended is not None:
            return


def follow_steps(
    reader: AnswerReader,
    neurons: NeuronSet,
    prompt: Sequence[int],
    response: Iterable[int],
    combination: Combination | None = None,
) -> Iterator[Step]:
    """Read a response that is generated elsewhere; yields a step per token, as it comes."""
    cett, logits = reader.read(prompt)
    scoring = _Scoring(neurons, cett, combination)
    for token in response:
        predicted = logits
        of_token, logits = reader.append(token)
        yield scoring.step(token, of_token, predicted)


class _Scoring:
    """The scores of one answer, as its tokens come."""

    def __init__(
        self,
        neurons: NeuronSet,
        prompt: Float[np.ndarray, "token k"],
        combination: Combination | None,
    ) -> None:
        self._neurons, self._combination = neurons, combination
        self._running = Running(neurons.tokens, neurons.score_unchecked(prompt))

    def step(
        self, token: int, cett: Float[np.ndarray, " k"], predicted: Float[np.ndarray, " vocab"]
    ) -> Step:
        """Return the step of a token; `predicted` are the logits from which it was chosen."""
        decision = float(self._neurons.score_unchecked(cett[None])[0])
        if self._combination is not None:
            decision = self._combination.decide(decision, uncertainty_of(predicted, token))
        return Step(token, cett, decision, self._running.add(decision))
