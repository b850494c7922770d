"""One-token decodes in llama.cpp, timed in turns.

Where a context's memory happens to lie moves a token's time by 2% and more, which is what watching
or scaling costs. So there are several contexts of every kind, and they take turns token by token.
"""

import time
from collections.abc import Callable, Mapping

import numpy as np
from jaxtyping import Float

from hq.llamacpp.context import Context

PROMPT = 37  # tokens
STEPS = 24  # tokens a round
COPIES = 5  # contexts of each kind

Seconds = Float[np.ndarray, "copy round step"]


def several(kinds: Mapping[str, Callable[[], Context]]) -> dict[str, list[Context]]:
    """Contexts of every kind, made in turn, so that no kind has all the early memory."""
    made = [{name: make() for name, make in kinds.items()} for _ in range(COPIES)]
    return {name: [contexts[name] for contexts in made] for name in kinds}


def in_turns(
    contexts: dict[str, list[Context]],
    ids: np.ndarray,
    rounds: int,
    rng: np.random.Generator,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Seconds]:
    """Every token in each context in turn, in an order drawn anew, as what ran before matters."""
    every = [(name, copy) for name in contexts for copy in range(COPIES)]
    times = {name: np.empty((COPIES, rounds + 1, STEPS)) for name in contexts}
    for turn in range(rounds + 1):  # the first warms up
        for name, copy in every:
            context = contexts[name][copy]
            context.clear()
            context.decode(ids[:PROMPT], np.arange(PROMPT), np.zeros(PROMPT), np.ones(PROMPT))
        for step in range(STEPS):
            place = PROMPT + step
            for chosen in rng.permutation(len(every)):
                name, copy = every[chosen]
                started = clock()
                contexts[name][copy].decode(ids[place : place + 1], [place], [0], [1])
                times[name][copy, turn, step] = clock() - started
    return {name: seconds[:, 1:] for name, seconds in times.items()}


def typical(seconds: Seconds) -> float:
    """Median over contexts of each one's median: one with bad luck in memory decides nothing."""
    return float(np.median(np.median(seconds, axis=(1, 2))))


def by_copy(seconds: Seconds) -> str:
    """Each context's median, in milliseconds."""
    return ", ".join(f"{1e3 * np.median(copy):.2f}" for copy in seconds)
