"""Timing of one-token decodes in llama.cpp, in several contexts that take turns.

The memory address of a context changes the time of a token by 2% and more, which is as much as
watching or scaling costs. Therefore each kind has several contexts, interleaved token by token.
"""

import time
from collections.abc import Callable, Mapping

import numpy as np
from jaxtyping import Float

from harness.bench.base import BenchRow
from hq.llamacpp.model import Context

PROMPT = 37  # tokens
STEPS = 24  # tokens per round
COPIES = 5  # contexts of each kind

Seconds = Float[np.ndarray, "copy round step"]


def make_contexts(kinds: Mapping[str, Callable[[], Context]]) -> dict[str, list[Context]]:
    """Make `COPIES` contexts of every kind, alternating kinds so that addresses are mixed."""
    rounds = [{name: make() for name, make in kinds.items()} for _ in range(COPIES)]
    return {name: [contexts[name] for contexts in rounds] for name in kinds}


def time_decodes(
    contexts: dict[str, list[Context]],
    ids: np.ndarray,
    rounds: int,
    rng: np.random.Generator,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Seconds]:
    """Time each token in every context, in random order, as the previous run affects the next.

    Args:
        contexts: Contexts by kind.
        ids: `PROMPT` tokens that are read first, then `STEPS` tokens that are timed.
        rounds: Timed rounds, after one to warm up.
        rng: Draws the order.
        clock: Returns seconds.
    """
    every = [(name, copy) for name in contexts for copy in range(COPIES)]
    times = {name: np.empty((COPIES, rounds + 1, STEPS)) for name in contexts}
    for turn in range(rounds + 1):
        for name, copy in every:
            context = contexts[name][copy]
            context.clear()
            context.decode(ids[:PROMPT], np.arange(PROMPT), np.zeros(PROMPT), np.ones(PROMPT))
        for step in range(STEPS):
            position = PROMPT + step
            for chosen in rng.permutation(len(every)):
                name, copy = every[chosen]
                started = clock()
                contexts[name][copy].decode(ids[position : position + 1], [position], [0], [1])
                times[name][copy, turn, step] = clock() - started
    return {name: seconds[:, 1:] for name, seconds in times.items()}


def decode_ratio(
    name: str, seconds: Seconds, plain: Seconds, goal: str | None, what: str = "ms a token"
) -> BenchRow:
    """Return the row of a kind's time per token as a ratio to that of plain decoding."""
    return BenchRow(
        name=name,
        value=_typical(seconds) / _typical(plain),
        unit="x",
        goal=goal,
        note=f"{by_context(seconds)} {what} in {COPIES} contexts; plain {by_context(plain)}",
    )


def _typical(seconds: Seconds) -> float:
    """Median over contexts of their medians, which one badly placed context does not change."""
    return float(np.median(np.median(seconds, axis=(1, 2))))


def by_context(seconds: Seconds) -> str:
    """Return the median of each context, in milliseconds."""
    return ", ".join(f"{1e3 * np.median(copy):.2f}" for copy in seconds)
