"""Train, calibration and test, split so that no entity stands on two sides."""

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
from jaxtyping import Float, Int
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from harness.judges.base import Question
from harness.judges.text import normalise
from hq.errors import HQError


class Item(Protocol):
    """What a component is made of: a question, a trial or a choice."""

    @property
    def id(self) -> str:
        """Unique among them."""
        ...

    @property
    def entities(self) -> tuple[str, ...]:
        """What two sides of a split must not share."""
        ...

    @property
    def wording(self) -> str:
        """What is asked; two items of one wording are never on two sides either."""
        ...


def components(questions: Sequence[Item]) -> dict[str, str]:
    """Question id to component: questions that share an entity, directly or through others.

    The normalised wording counts as an entity: a question that a file has twice, with other ids or
    answers, is in one component. A component is named by its smallest id, so the names do not
    depend on the order.
    """
    if not questions:
        return {}
    labels = _labels(questions)
    names: dict[int, str] = {}
    for question, label in zip(questions, labels.tolist(), strict=True):
        names[label] = min(names.get(label, question.id), question.id)
    return {q.id: names[label] for q, label in zip(questions, labels.tolist(), strict=True)}


def _labels(questions: Sequence[Item]) -> Int[np.ndarray, " question"]:
    """Connected components of the graph whose nodes are the questions and their entities."""
    shared = [_shared(question) for question in questions]
    entities = {e: i for i, e in enumerate(dict.fromkeys(e for named in shared for e in named))}
    links = [(row, entities[e]) for row, named in enumerate(shared) for e in named]
    rows, columns = np.array(links, dtype=np.int64).reshape(-1, 2).T
    n = len(questions)
    size = n + len(entities)
    graph = coo_array((np.ones(len(links), dtype=np.int8), (rows, columns + n)), (size, size))
    labels: Int[np.ndarray, " node"] = connected_components(graph, directed=False)[1]
    return labels[:n]


def _shared(question: Item) -> list[tuple[str, str]]:
    """What links a question to others: its entities and its wording, told apart."""
    wording = normalise(question.wording)
    named = [("entity", entity) for entity in question.entities]
    return [*named, ("wording", wording)] if wording else named


def assign(
    questions: Sequence[Question], fractions: Mapping[str, float], seed: int
) -> dict[str, str]:
    """Question id to split, whole components at a time, near `fractions` within each relation.

    Components are shuffled by `seed`, the large ones placed first, each where its relations lack
    most. The order of `questions` has no influence. Raises HQError for fractions that are not
    positive or do not add up to 1, and for an id that stands twice.
    """
    _check(questions, fractions)
    ordered = sorted(questions, key=lambda q: q.id)
    component_of = components(ordered)
    names = sorted(set(component_of.values()))
    counts = _counts(ordered, component_of, names)
    order = np.random.default_rng(seed).permutation(len(names))
    order = order[np.argsort(-counts.sum(axis=1)[order], kind="stable")]
    places = _place(counts, np.array(list(fractions.values())), order)
    splits = dict(zip(names, (list(fractions)[place] for place in places), strict=True))
    return {q.id: splits[component_of[q.id]] for q in questions}


def _counts(
    questions: Sequence[Question], component_of: Mapping[str, str], names: Sequence[str]
) -> Float[np.ndarray, "component relation"]:
    rows = {name: row for row, name in enumerate(names)}
    relations = {r: column for column, r in enumerate(sorted({q.relation for q in questions}))}
    counts = np.zeros((len(rows), len(relations)))
    for question in questions:
        counts[rows[component_of[question.id]], relations[question.relation]] += 1
    return counts


def _place(
    counts: Float[np.ndarray, "component relation"],
    fractions: Float[np.ndarray, " split"],
    order: Int[np.ndarray, " component"],
) -> list[int]:
    """For each component the split whose relations lack most of their share (greedy)."""
    total = counts.sum(axis=0)
    lacking = np.outer(fractions, total)
    # A relation weighs the same whatever its size, a split whatever its share.
    weight = 1 / np.outer(fractions, total)
    places = [0] * len(order)
    for component in order.tolist():
        need = (weight * lacking) @ (counts[component] / total)
        places[component] = int(np.argmax(need))
        lacking[places[component]] -= counts[component]
    return places


def _check(questions: Sequence[Question], fractions: Mapping[str, float]) -> None:
    shares = list(fractions.values())
    if not shares or min(shares) <= 0 or abs(sum(shares) - 1) > 1e-6:
        stated = ", ".join(f"{name} {share:g}" for name, share in fractions.items()) or "none"
        raise HQError(f"Split fractions must be positive and add up to 1; these are: {stated}.")
    seen: set[str] = set()
    for question in questions:
        if question.id in seen:
            raise HQError(f"Question id {question.id!r} stands twice: make the ids unique.")
        seen.add(question.id)
