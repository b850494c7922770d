"""Batches of exchanges: a shared prefix, computed once, and the other tokens sorted by length."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from hq.errors import HQError
from hq.neurons.cett import SPANS, Span
from hq.neurons.prompt_response import PromptResponse


@dataclass(frozen=True, slots=True)
class Plan:
    """The prefix that all prompts share, and the rows of each batch, shortest texts first."""

    prefix: tuple[int, ...]
    batches: tuple[Int[np.ndarray, " batch"], ...]


def shared_prefix(prompts: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """The longest token prefix of all prompts that leaves each at least one token of its own."""
    first, last = min(prompts), max(prompts)  # the two with the shortest common prefix
    limit = min(len(prompt) for prompt in prompts) - 1
    length = 0
    while length < limit and first[length] == last[length]:
        length += 1
    return first[:length]


def plan(
    exchanges: Sequence[PromptResponse], token_budget: int, max_rows: float = math.inf
) -> Plan:
    """Batches of at most `max_rows` rows and `token_budget` tokens after the prefix.

    Padding counts, and a batch has at least one row. The order depends on lengths and positions
    only, so a resumed trace has the same batches, and variants are compared on equal shapes.
    """
    if not exchanges:
        return Plan((), ())
    prefix = shared_prefix([exchange.prompt for exchange in exchanges])
    lengths = np.array([len(exchange) for exchange in exchanges]) - len(prefix)
    batches: list[Int[np.ndarray, " batch"]] = []
    rows: list[int] = []
    for row in np.argsort(lengths, kind="stable"):
        full = len(rows) >= max_rows or (len(rows) + 1) * lengths[row] > token_budget
        if rows and full:
            batches.append(np.array(rows))
            rows = []
        rows.append(int(row))
    batches.append(np.array(rows))
    return Plan(prefix, tuple(batches))


def span_weights(
    batch: Sequence[PromptResponse], start: int, length: int, spans: tuple[Span, ...]
) -> Float[np.ndarray, "batch span seq"]:
    """Weights of the tokens after `start`, with which weighted sums are means over each span.

    Raises HQError for a span that does not exist or is named twice.
    """
    if not set(spans) <= set(SPANS) or len(set(spans)) < len(spans):
        raise HQError(f"The spans are {', '.join(SPANS)}, each at most once, not {spans}.")
    weights = np.zeros((len(batch), len(spans), length), dtype=np.float32)
    for b, exchange in enumerate(batch):
        prompt, end = len(exchange.prompt) - start, len(exchange) - start
        for s, span in enumerate(spans):
            if span == "answer":
                weights[b, s, prompt:end] = 1 / (end - prompt)
            elif span == "prompt":
                weights[b, s, prompt - 1] = 1
            else:
                weights[b, s, :prompt] = 1 / len(exchange.prompt)
    return weights
