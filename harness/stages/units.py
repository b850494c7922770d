"""Units of samples, cross-validation folds of whole units, and the questions that are reserved.

The graph of units has one node per sample. An edge links two samples that have a key in common.
The keys of a sample are

- the answer that the model gave, normalised, whether it is right or wrong;
- every entity that the question is about (`Question.entities`);
- the wording of the question, normalised.

A unit is a connected component of this graph, named by its smallest id. Two samples of one unit may
have no key in common: a chain of samples links them. Units are independent of each other, so
intervals resample units. A fold holds whole units, so no answer, entity or wording is in two folds:
a probe that is fitted without a fold has seen none of those it is then scored on.

Questions, trials and choices have no given answer. Their components come from the same graph with
the two other keys.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, Protocol

import numpy as np
from jaxtyping import Float, Int
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from harness.judges.base import Question
from harness.judges.text import normalise
from hq.errors import HQError

Part = Literal["sample", "calibration", "held-out"]
LARGEST_UNIT = 0.2  # largest share of the samples in one unit
Key = tuple[str, str]  # kind and value


class Item(Protocol):
    """A member of a component: a question, a trial or a choice."""

    @property
    def id(self) -> str:
        """The unique id."""
        ...

    @property
    def entities(self) -> tuple[str, ...]:
        """What it is about."""
        ...

    @property
    def wording(self) -> str:
        """The text that is asked."""
        ...


def components(items: Sequence[Item]) -> dict[str, str]:
    """Map the id of each item to its component: items linked by entities and wordings.

    The name of a component is its smallest id, whatever the order of the items.
    """
    return _components({item.id: _keys(item) for item in items})


def assign_units(items: Sequence[Item], answers: Mapping[str, str]) -> dict[str, str]:
    """Map the id of each item to its unit: items linked by answers, entities and wordings.

    `answers` are the normalised answers that the model gave, by id; empty ones link nothing.
    """
    return _components({item.id: linking_keys(item, answers[item.id]) for item in items})


def linking_keys(item: Item, answer: str) -> list[Key]:
    """Return the keys of a sample: two samples with a key in common are in one unit."""
    return [*_keys(item), *_texts("answer", answer)]


def require_small_units(units: Sequence[str]) -> None:
    """Raises HQError if the largest unit holds more than 20% of the samples.

    Args:
        units: The unit of each sample.
    """
    sizes = sorted(Counter(units).values(), reverse=True)
    if sizes and sizes[0] > LARGEST_UNIT * len(units):
        largest = ", ".join(map(str, sizes[:5]))
        raise HQError(
            f"One unit (samples linked by answers, entities or wordings) holds {sizes[0]} of the "
            f"{len(units)} samples, more than {LARGEST_UNIT:.0%}, and the largest units hold "
            f"{largest}: ask more questions, or questions with more different answers."
        )


def _components(keys: Mapping[str, Iterable[Key]]) -> dict[str, str]:
    """Map each id to the smallest id in its component of the graph of ids and keys."""
    ids = sorted(keys)
    columns: dict[Key, int] = {}
    links = [
        (row, columns.setdefault(key, len(columns)))
        for row, id in enumerate(ids)
        for key in keys[id]
    ]
    rows, of_keys = np.array(links, dtype=np.int64).reshape(-1, 2).T
    size = len(ids) + len(columns)
    graph = coo_array((np.ones(len(links), np.int8), (rows, len(ids) + of_keys)), (size, size))
    labels: list[int] = connected_components(graph, directed=False)[1].tolist() if ids else []
    names: dict[int, str] = {}
    return {id: names.setdefault(label, id) for id, label in zip(ids, labels, strict=False)}


def _keys(item: Item) -> list[Key]:
    entities = [("entity", entity) for entity in item.entities]
    return [*entities, *_texts("wording", normalise(item.wording))]


def _texts(kind: str, text: str) -> list[Key]:
    """The key of a text; none if the text has no words."""
    return [(kind, text)] if text else []


def assign_folds(
    units: Sequence[str],
    labels: Sequence[bool],
    relations: Sequence[str],
    count: int,
    seed: int,
) -> list[int]:
    """Return the fold of each sample, from 0; units are not divided.

    The folds have about equal numbers of samples, of either label, and of each relation. The order
    of the samples has no effect.

    Args:
        units: The unit of each sample.
        labels: Whether each sample is hallucinated.
        relations: The relation of each sample.
        count: The number of folds.
        seed: Seed of the order of equally large units.

    Raises:
        HQError: If a fold lacks a label.
    """
    names, unit = np.unique(np.array(units), return_inverse=True)
    counts = _counts(unit, len(names), [np.array(labels), np.array(relations)])
    fold_of = np.array(_place(counts, np.full(count, 1 / count), seed))
    folds: list[int] = fold_of[unit].tolist()
    require_both_labels(folds, labels, count)
    return folds


def require_both_labels(folds: Sequence[int], labels: Sequence[bool], count: int = 0) -> None:
    """Raises HQError unless every fold has right and hallucinated samples.

    The folds are 0 to `count` - 1; without a count, 0 to the highest in `folds`, and at least two.
    """
    count = count or max(2, *(fold + 1 for fold in folds))
    sizes = Counter(zip(folds, map(bool, labels), strict=True))
    if any(not sizes[fold, label] for fold in range(count) for label in (False, True)):
        listed = ", ".join(f"{sizes[k, False]} and {sizes[k, True]}" for k in range(min(count, 9)))
        more = ", …" if count > 9 else ""
        raise HQError(
            f"Every fold needs right and hallucinated samples, but the {count} folds have "
            f"{listed}{more} of them: ask more questions, or use fewer folds."
        )


def assign_parts(
    questions: Sequence[Question], shares: Mapping[Part, float], seed: int
) -> dict[str, Part]:
    """Map each question id to "sample", or to the part of the reserve that the question is in.

    Components are not divided. The shares of each relation are close to `shares`; what they leave
    is "sample". The order of `questions` has no effect. Raises HQError if an id appears twice.
    """
    repeated = [id for id, times in Counter(q.id for q in questions).items() if times > 1]
    if repeated:
        raise HQError(f"Question id {repeated[0]!r} appears twice: make the ids unique.")
    component_of = components(questions)
    names, component = np.unique([component_of[q.id] for q in questions], return_inverse=True)
    counts = _counts(component, len(names), [np.array([q.relation for q in questions])])
    parts: dict[Part, float] = {"sample": 1 - sum(shares.values()), **shares}
    assigned = _place(counts, np.array(list(parts.values())), seed)
    part_of = [list(parts)[part] for part in assigned]
    return {q.id: part_of[group] for q, group in zip(questions, component.tolist(), strict=True)}


def _counts(
    group: Int[np.ndarray, " row"], groups: int, categories: Sequence[np.ndarray]
) -> Float[np.ndarray, "group column"]:
    """Count the rows of each group: all, then those of each value of each category."""
    columns = [np.ones(len(group))]
    columns += [(values == value) * 1.0 for values in categories for value in np.unique(values)]
    return np.array([np.bincount(group, column, groups) for column in columns]).T


def _place(
    counts: Float[np.ndarray, "group column"], shares: Float[np.ndarray, " part"], seed: int
) -> list[int]:
    """Return the index of the part of each group, by greedy assignment.

    Groups are shuffled by the seed, and then placed from the largest to the smallest. Each is
    placed where its columns are furthest below their share, among the parts that have room for it
    if there are any.
    """
    if not len(counts):
        return []
    order = np.random.default_rng(seed).permutation(len(counts))
    order = order[np.argsort(-counts[order, 0], kind="stable")]
    total = counts.sum(axis=0)
    missing = np.outer(shares, total)
    weight = 1 / missing  # columns of every size, and parts of every share, have equal weight
    assigned = [0] * len(order)
    for group in order.tolist():
        need = (weight * missing) @ (counts[group] / total)
        has_room = missing[:, 0] + 0.5 >= counts[group, 0]
        assigned[group] = int(np.argmax(np.where(has_room | ~has_room.any(), need, -np.inf)))
        missing[assigned[group]] -= counts[group]
    return assigned
