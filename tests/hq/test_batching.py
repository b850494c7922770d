"""Batches: every row once, within the budgets, in an order that content cannot change."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hq.backends.batching import plan, shared_prefix
from hq.errors import HQError
from hq.neurons.prompt_response import PromptResponse

TOKENS = st.lists(st.integers(0, 3), min_size=1, max_size=8).map(tuple)
EXCHANGES = st.lists(st.builds(PromptResponse, TOKENS, TOKENS), min_size=1, max_size=20)


@given(st.lists(TOKENS, min_size=1))
def test_the_prefix_is_shared_and_leaves_each_prompt_a_token(
    prompts: list[tuple[int, ...]],
) -> None:
    prefix = shared_prefix(prompts)
    assert all(prompt[: len(prefix)] == prefix and len(prompt) > len(prefix) for prompt in prompts)


@given(st.lists(TOKENS, min_size=1))
def test_no_longer_prefix_would_do(prompts: list[tuple[int, ...]]) -> None:
    longer = prompts[0][: len(shared_prefix(prompts)) + 1]
    shared = all(prompt[: len(longer)] == longer for prompt in prompts)
    assert not shared or any(len(prompt) == len(longer) for prompt in prompts)


@given(EXCHANGES, st.integers(1, 64), st.integers(1, 8))
def test_every_row_once_within_the_budgets(
    exchanges: list[PromptResponse], budget: int, rows: int
) -> None:
    layout = plan(exchanges, budget, rows)
    assert sorted(np.concatenate(layout.batches)) == list(range(len(exchanges)))
    for batch in layout.batches:
        longest = max(len(exchanges[row]) for row in batch) - len(layout.prefix)
        assert len(batch) == 1 or (len(batch) <= rows and len(batch) * longest <= budget)


@given(EXCHANGES)
def test_shortest_first(exchanges: list[PromptResponse]) -> None:
    lengths = [len(exchanges[row]) for batch in plan(exchanges, 16).batches for row in batch]
    assert lengths == sorted(lengths)


@given(EXCHANGES, st.integers(1, 64))
def test_the_layout_depends_on_lengths_alone(exchanges: list[PromptResponse], budget: int) -> None:
    same = [
        PromptResponse((9, *e.prompt[1:]), tuple(t + 1 for t in e.response)) for e in exchanges
    ]  # may share a longer prefix: compare what is laid out after none
    bare = [PromptResponse((i, *e.prompt), e.response) for i, e in enumerate(exchanges)]
    also = [PromptResponse((i, *e.prompt), e.response) for i, e in enumerate(same)]
    for one, other in zip(plan(bare, budget).batches, plan(also, budget).batches, strict=True):
        np.testing.assert_array_equal(one, other)


def test_no_exchanges_make_no_batches() -> None:
    assert plan([], 64).batches == ()


@pytest.mark.parametrize(("prompt", "response"), [((), (1,)), ((1,), ())])
def test_an_exchange_without_prompt_or_response_is_refused(
    prompt: tuple[int, ...], response: tuple[int, ...]
) -> None:
    with pytest.raises(HQError, match="need a token each at least"):
        PromptResponse(prompt, response)
