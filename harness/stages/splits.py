"""Splits into train, calibration and test, with no entity in two splits."""

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
    """A member of a component: a question, a trial or a choice."""

    @property
    def id(self) -> str:
        """The unique id."""
        ...

    @property
    def entities(self) -> tuple[str, ...]:
        """Entities that must not be in two splits."""
        ...

    @property
    def wording(self) -> str:
        """The text that is asked; items of the same wording are in one component too."""
        ...


def components(questions: Sequence[Item]) -> dict[str, str]:
    """Map each question id to its component: questions linked by shared entities.

    The normalised wording counts as an entity, so copies of a question with other ids or answers
    are in one component. The name of a component is its smallest id, whatever the order.
    """
    if not questions:
        return {}
    labels = _labels(questions)
    names: dict[int, str] = {}
    for question, label in zip(questions, labels.tolist(), strict=True):
        names[label] = min(names.get(label, question.id), question.id)
    return {q.id: names[label] for q, label in zip(questions, labels.tolist(), strict=True)}


def _labels(questions: Sequence[Item]) -> Int[np.ndarray, " question"]:
    """Connected components of the bipartite graph of questions and entities."""
    shared = [_shared(question) for question in questions]
    entities = {e: i for i, e in enumerate(dict.fromkeys(e for keys in shared for e in keys))}
    links = [(row, entities[e]) for row, keys in enumerate(shared) for e in keys]
    rows, columns = np.array(links, dtype=np.int64).reshape(-1, 2).T
    n = len(questions)
    size = n + len(entities)
    graph = coo_array((np.ones(len(links), dtype=np.int8), (rows, columns + n)), (size, size))
    labels: Int[np.ndarray, " node"] = connected_components(graph, directed=False)[1]
    return labels[:n]


def _shared(question: Item) -> list[tuple[str, str]]:
    """What links a question to others: its entities and its wording, as two kinds of keys."""
    wording = normalise(question.wording)
    keys = [("entity", entity) for entity in question.entities]
    return [*keys, ("wording", wording)] if wording else keys


def assign(
    questions: Sequence[Question], fractions: Mapping[str, float], seed: int
) -> dict[str, str]:
    """Map each question id to a split; components are not divided.

    The shares of each relation are close to `fractions`. Components are shuffled by `seed`, then
    assigned from the largest to the smallest, each to the split in which its relations are furthest
    below their share. The order of `questions` has no effect. Raises HQError if fractions are not
    positive or do not add up to 1, or if an id appears twice.
    """
    _check(questions, fractions)
    ordered = sorted(questions, key=lambda q: q.id)
    component_of = components(ordered)
    names = sorted(set(component_of.values()))
    counts = _counts(ordered, component_of, names)
    order = np.random.default_rng(seed).permutation(len(names))
    order = order[np.argsort(-counts.sum(axis=1)[order], kind="stable")]
    assigned = _place(counts, np.array(list(fractions.values())), order)
    splits = dict(zip(names, (list(fractions)[split] for split in assigned), strict=True))
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
    """Return the index of each component's split, by greedy assignment."""
    total = counts.sum(axis=0)
    missing = np.outer(fractions, total)
    # Relations of every size, and splits of every share, have equal weight.
    weight = 1 / np.outer(fractions, total)
    assigned = [0] * len(order)
    for component in order.tolist():
        need = (weight * missing) @ (counts[component] / total)
        assigned[component] = int(np.argmax(need))
        missing[assigned[component]] -= counts[component]
    return assigned


def _check(questions: Sequence[Question], fractions: Mapping[str, float]) -> None:
    shares = list(fractions.values())
    if not shares or min(shares) <= 0 or abs(sum(shares) - 1) > 1e-6:
        stated = ", ".join(f"{name} {share:g}" for name, share in fractions.items()) or "none"
        raise HQError(f"The split fractions are {stated}: give positive ones that add up to 1.")
    seen: set[str] = set()
    for question in questions:
        if question.id in seen:
            raise HQError(f"Question id {question.id!r} appears twice: make the ids unique.")
        seen.add(question.id)
