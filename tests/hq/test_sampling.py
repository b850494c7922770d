"""Sampling as a tree: the right distribution, and the same responses whatever is beside or skipped."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from zlib import crc32

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare
from transformers import (
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from hq.backends.transformers.backend import TorchBackend
from hq.errors import HQError
from hq.tracing.sampling import (
    SampledResponse,
    Sampling,
    StopCriteria,
    TokenChooser,
    Tree,
    sample,
    truncated_cdf,
)

Prompts = list[tuple[str, tuple[int, ...]]]
SEEDS = st.integers(0, 2**31)
END = 0


def letters(ids: Sequence[int]) -> str:
    """A decoder: token 1 is "a"."""
    return "".join(chr(96 + token) for token in ids)


class Random:
    """A model whose logits are fixed random numbers for each text: rows cannot touch each other."""

    def __init__(self, vocabulary: int = 8) -> None:
        self.vocabulary = vocabulary
        self.rows: list[tuple[int, ...]] = []
        self.read: list[list[tuple[int, ...]]] = []  # the rows of each call

    def share(self, prompts: Sequence[Sequence[int]]) -> None:
        """Nothing to compute."""

    def start(self, prompts: Sequence[Sequence[int]]) -> torch.Tensor:
        """The first rows."""
        self.rows = [tuple(prompt) for prompt in prompts]
        return self.logits()

    def step(self, parents: np.ndarray, tokens: np.ndarray) -> torch.Tensor:
        """Each parent goes on by a token."""
        pairs = zip(parents, tokens, strict=True)
        self.rows = [(*self.rows[parent], int(token)) for parent, token in pairs]
        return self.logits()

    def logits(self) -> torch.Tensor:
        """One row a text."""
        self.read.append(self.rows)
        return torch.stack([self.of(row) for row in self.rows])

    def of(self, text: tuple[int, ...]) -> torch.Tensor:
        """Normal logits, seeded by the text."""
        rng = np.random.default_rng(crc32(bytes(text)))
        return torch.from_numpy(1.5 * rng.standard_normal(self.vocabulary)).float()


ENDING = StopCriteria(frozenset({END}), (), letters)
SHORT = Sampling(responses=10, top_k=5, top_p=0.9, max_new_tokens=5)
LONG = replace(SHORT, max_new_tokens=20)
PROMPTS: Prompts = [(f"q{i}", (i, 7)) for i in range(8)]


def responses(tree: Tree) -> list[SampledResponse]:
    """In the order of their first members."""
    return sorted(tree.finished, key=lambda response: response.members)


def grown(
    prompts: Prompts, how: Sampling, wanted: Callable[[Tree], bool] = lambda tree: True
) -> list[Tree]:
    """Trees of the random model."""
    return list(sample(Random(), prompts, how, ENDING, wanted))


# --- the distribution


@given(
    SEEDS,
    st.sampled_from([0.3, 1.0, 2.5]),
    st.sampled_from([0, 1, 5, 50, 500]),
    st.sampled_from([0.05, 0.5, 0.9, 0.999, 1.0]),
)
def test_the_distribution_is_that_of_transformers(
    seed: int, temperature: float, top_k: int, top_p: float
) -> None:
    logits = 3 * torch.randn(4, 100, generator=torch.Generator().manual_seed(seed)).double()
    warpers = LogitsProcessorList([TemperatureLogitsWarper(temperature)])
    if top_k:
        warpers.append(TopKLogitsWarper(top_k))
    warpers.append(TopPLogitsWarper(top_p))
    expected = torch.softmax(warpers(torch.zeros(4, 1), logits.clone()), dim=-1).numpy()
    how = Sampling(temperature=temperature, top_k=top_k, top_p=top_p)
    tokens, cdf = truncated_cdf(logits, how)
    assert (cdf[:, -1] == np.inf).all()
    shares = np.diff(np.minimum(cdf, 1), axis=1, prepend=0)
    found = np.zeros_like(expected)
    np.put_along_axis(found, tokens, shares, axis=1)
    np.testing.assert_allclose(found, expected, atol=1e-12)
    # The very same tokens can be drawn, the last one by any number below 1.
    last = [tokens[row, np.searchsorted(cdf[row], 1 - 1e-16, "right")] for row in range(4)]
    assert (expected[np.arange(4), last] > 0).all()


@pytest.mark.parametrize("temperature", [0.0, 0.5])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_logits_that_are_not_finite_are_an_error(temperature: float, value: float) -> None:
    class Damaged(Random):
        def logits(self) -> torch.Tensor:
            logits = super().logits()
            logits[-1, 3] = value
            return logits

    how = Sampling(responses=1, temperature=temperature, top_k=2)
    ending = StopCriteria(frozenset(), (), letters)
    with pytest.raises(HQError, match="not finite"):
        list(sample(Damaged(), [("p", (1, 2)), ("q", (4, 7))], how, ending))
    with pytest.raises(HQError, match="not finite"):
        TokenChooser("q", how)(np.array([0, value, 1], dtype=np.float32))


def test_frequencies_follow_the_distribution_over_two_tokens() -> None:
    how = Sampling(responses=20000, top_k=3, top_p=1.0, max_new_tokens=2, seed=3)
    (tree,) = sample(Random(), [("q", (4, 7))], how, StopCriteria(frozenset(), (), letters))
    counts = {r.ids: len(r.members) for r in tree.finished}

    def shares(text: tuple[int, ...]) -> dict[int, float]:
        top, tokens = torch.topk(Random().of(text).double(), 3)
        return dict(zip(tokens.tolist(), torch.softmax(top, -1).tolist(), strict=True))

    expected = {
        (a, b): 20000 * pa * pb
        for a, pa in shares((4, 7)).items()
        for b, pb in shares((4, 7, a)).items()
    }
    assert set(counts) <= set(expected)
    observed = [counts.get(ids, 0) for ids in expected]
    assert chisquare(observed, list(expected.values())).pvalue > 1e-3


def test_temperature_zero_is_greedy_generation(checkpoint: Callable[[str], Path]) -> None:
    prompts = [(5, 6, 7, 8), (5, 6, 9, 10), (99, 3, 2, 1)]
    how = Sampling(responses=3, temperature=0, max_new_tokens=12)
    with TorchBackend(checkpoint("llama"), device="cpu") as backend:
        greedy = backend.model.generate(
            torch.tensor(prompts),
            attention_mask=torch.ones(3, 4, dtype=torch.long),
            do_sample=False,
            max_new_tokens=12,
            eos_token_id=None,
            pad_token_id=0,
        )[:, 4:].tolist()
        named = [(str(i), prompt) for i, prompt in enumerate(prompts)]
        trees = sample(backend.decoding(), named, how, StopCriteria(frozenset(), (), letters))
        for tree, expected in zip(trees, greedy, strict=True):
            (response,) = tree.finished
            assert response.ids == tuple(expected)
            assert response.members == (0, 1, 2)
            assert response.truncated


# --- what a response depends on


@given(SEEDS)
def test_neither_neighbours_nor_order_change_a_tree(seed: int) -> None:
    how = replace(SHORT, seed=seed)
    together = {tree.key: responses(tree) for tree in grown(PROMPTS, how)}
    backwards = {tree.key: responses(tree) for tree in grown(PROMPTS[::-1], how)}
    alone = {key: responses(grown([(key, prompt)], how)[0]) for key, prompt in PROMPTS}
    assert together == backwards == alone


@given(SEEDS)
def test_more_responses_begin_with_the_same_ones(seed: int) -> None:
    def texts(how: Sampling) -> dict[int, tuple[int, ...]]:
        (tree,) = grown(PROMPTS[:1], how)
        return {member: r.ids for r in tree.finished for member in r.members}

    few, many = replace(SHORT, seed=seed, responses=4), replace(SHORT, seed=seed, responses=10)
    assert texts(few).items() <= texts(many).items()


def test_real_rows_are_the_same_alone(checkpoint: Callable[[str], Path]) -> None:
    """Up to float rounding, which at these seeds moves no draw across a border."""
    how = Sampling(responses=6, max_new_tokens=6)
    prompts = [(f"q{i}", (5, 6, 20 + i)) for i in range(6)]
    with TorchBackend(checkpoint("llama"), device="cpu") as backend:
        together = list(sample(backend.decoding(), prompts, how, ENDING))
        for tree in together:
            (alone,) = sample(backend.decoding(), [(tree.key, tree.prompt)], how, ENDING)
            assert responses(alone) == responses(tree)


def test_seed_and_key_both_matter() -> None:
    prompt = PROMPTS[0][1]
    base = responses(grown([("a", prompt)], SHORT)[0])
    assert responses(grown([("a", prompt)], SHORT)[0]) == base
    assert responses(grown([("b", prompt)], SHORT)[0]) != base
    assert responses(grown([("a", prompt)], replace(SHORT, seed=1))[0]) != base


@given(SEEDS)
def test_every_sample_is_in_one_response(seed: int) -> None:
    for tree in grown(PROMPTS, replace(SHORT, seed=seed)):
        members = Counter(member for r in tree.finished for member in r.members)
        assert members == Counter(range(10))
        assert len({(r.ids, r.truncated) for r in tree.finished}) == len(tree.finished)


# --- stopping early


def right(response: SampledResponse) -> bool:
    """An artificial judge."""
    return crc32(response.text.encode()) % 3 == 0


def consistent(tree: Tree) -> bool:
    """The rule of the article: all responses right, or all wrong."""
    return len({right(response) for response in tree.finished}) == 1


@settings(max_examples=200)
@given(SEEDS, st.integers(1, 6))
def test_stopping_early_keeps_exactly_what_full_sampling_keeps(seed: int, count: int) -> None:
    how = replace(SHORT, seed=seed, responses=count)
    full = {t.key: responses(t) for t in grown(PROMPTS, how) if consistent(t)}
    early = grown(PROMPTS, how, consistent)
    assert {t.key: responses(t) for t in early if not t.abandoned} == full


def test_stopping_early_saves_tokens() -> None:
    full, early = grown(PROMPTS, LONG), grown(PROMPTS, LONG, consistent)
    assert any(tree.abandoned for tree in early)
    assert sum(t.generated for t in early) < 0.7 * sum(t.generated for t in full)


def test_an_abandoned_tree_is_computed_no_further() -> None:
    model = Random()
    asked: list[str] = []

    def wanted(tree: Tree) -> bool:
        asked.append(tree.key)
        return tree.key != "q0"

    trees = list(sample(model, PROMPTS[:2], SHORT, ENDING, wanted))
    assert asked.count("q0") == 1
    assert [tree.abandoned for tree in trees] == [True, False]
    first = min(len(response.ids) for response in trees[0].finished)
    for rows in model.read[first + 1 :]:
        assert not any(row[0] == 0 for row in rows)
    assert {m for r in trees[1].finished for m in r.members} == set(range(10))


# --- endings and counts


class Spelling(Random):
    """A model that says one thing."""

    def __init__(self, says: Sequence[int]) -> None:
        super().__init__()
        self.says = says

    def of(self, text: tuple[int, ...]) -> torch.Tensor:
        """All weight on the next token; the prompt has two."""
        logits = torch.full((self.vocabulary,), -1e9)
        logits[self.says[len(text) - 2]] = 0
        return logits


def said(
    says: Sequence[int], ending: StopCriteria, tokens: int = 6
) -> tuple[Tree, SampledResponse]:
    """The one response to one prompt."""
    how = Sampling(responses=4, max_new_tokens=tokens)
    (tree,) = sample(Spelling(says), [("q", (1, 1))], how, ending)
    (response,) = tree.finished
    return tree, response


def test_a_token_ends_a_response_and_is_not_in_it() -> None:
    tree, response = said([1, 2, END], ENDING)
    assert response == SampledResponse((1, 2), "ab", (0, 1, 2, 3), truncated=False)
    assert (tree.generated, tree.naive) == (3, 12)


def test_nothing_is_computed_once_every_tree_has_ended() -> None:
    model = Spelling([1, END])
    assert len(list(sample(model, PROMPTS, SHORT, ENDING))) == len(PROMPTS)
    assert len(model.read) == 2


def test_a_string_ends_a_response_even_across_tokens() -> None:
    _, response = said([1, 2, 3, 4], StopCriteria(frozenset(), ("bc", "x"), letters))
    assert response == SampledResponse((1,), "a", (0, 1, 2, 3), truncated=False)


def test_a_token_that_holds_text_and_end_stays() -> None:
    _, response = said(
        [1, 2, 3, 4],
        StopCriteria(frozenset(), ("\n",), lambda ids: letters(ids).replace("b", "b\n")),
    )
    assert response == SampledResponse((1, 2), "ab", (0, 1, 2, 3), truncated=False)


def test_the_earliest_string_cuts_the_text() -> None:
    ending = StopCriteria(frozenset(), ("d", "cd"), letters)
    assert said([1, 2, 3, 4], ending)[1].text == "ab"


def test_a_response_that_does_not_end_is_truncated() -> None:
    tree, response = said([1, 2, 3, 4], ENDING, tokens=3)
    assert response == SampledResponse((1, 2, 3), "abc", (0, 1, 2, 3), truncated=True)
    assert (tree.generated, tree.naive) == (3, 12)


def test_an_ending_at_the_very_limit_is_not_truncated() -> None:
    tree, response = said([1, 2, END], ENDING, tokens=3)
    assert not response.truncated
    assert (tree.generated, tree.naive) == (3, 12)


def test_a_response_may_be_empty() -> None:
    assert said([END], ENDING)[1] == SampledResponse((), "", (0, 1, 2, 3), truncated=False)


@given(SEEDS)
def test_generated_counts_distinct_texts_and_naive_counts_all(seed: int) -> None:
    for tree in grown(PROMPTS, replace(SHORT, seed=seed)):
        read = {r.ids[:n] for r in tree.finished for n in range(len(r.ids) + (not r.truncated))}
        assert tree.generated == len(read)
        lengths = [len(r.ids) + (not r.truncated) for r in tree.finished for _ in r.members]
        assert tree.naive == sum(lengths) >= tree.generated
