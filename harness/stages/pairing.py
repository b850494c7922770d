"""Pairs of a right and a hallucinated response, so that the text does not give the label away."""

from collections import Counter, defaultdict, deque
from collections.abc import Hashable, Iterable, Iterator, Sequence
from itertools import islice
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from hq.probe.text import text_only

CALIPER = 0.5
"""Largest difference within a pair of any text-only score, in standard deviations of the score."""
MOST_OF_UNIT = 20
"""Most samples of one unit that text matching keeps.

On the study smollm2-knowledge, one answer in 4% of the samples doubled the interval of the AUROC.
"""
_FORBIDDEN = 1e6  # cost of a pair beyond the caliper, above the sum of all others


class Candidate(NamedTuple):
    """A question with consistent responses, the group in which it is balanced, and its label."""

    id: str
    group: Hashable
    hallucinated: bool


class TextCandidate(NamedTuple):
    """A question with consistent responses, and everything that text matching compares."""

    id: str
    relation: str
    question: str
    response: str
    hallucinated: bool
    unit: str
    fold: int


def pairs(candidates: Iterable[Candidate], quota: int) -> list[tuple[str, str]]:
    """Return the ids of the first `quota` (right, hallucinated) pairs, in the order of completion.

    Candidates come in a fixed order, and each is paired with the first waiting candidate of the
    same group and the opposite label. The first k pairs depend only on the candidates up to the
    k-th pair, so sampling may stop at the quota without changing which samples are kept.
    """
    return list(islice(_pairs(candidates), quota))


def _pairs(candidates: Iterable[Candidate]) -> Iterator[tuple[str, str]]:
    waiting: dict[tuple[Hashable, bool], deque[str]] = defaultdict(deque)
    for candidate in candidates:
        opposite = waiting[candidate.group, not candidate.hallucinated]
        if not opposite:
            waiting[candidate.group, candidate.hallucinated].append(candidate.id)
        elif candidate.hallucinated:
            yield opposite.popleft(), candidate.id
        else:
            yield candidate.id, opposite.popleft()


def text_pairs(candidates: Sequence[TextCandidate], quota: int) -> list[tuple[str, str]]:
    """Return the ids of (right, hallucinated) pairs whose texts predict the label alike.

    At most `quota` of them, the most similar ones.

    The scores of the text-only controls (`hq.probe.text`) are cross-fitted over the folds on all
    candidates. Within a relation and fold, as many pairs as possible are formed whose scores all
    differ by at most the caliper, with the smallest sum of largest differences: optimal matching
    on propensity scores (Rosenbaum & Rubin 1985; Rosenbaum 1989).

    Pairs do not cross folds. If they did, a relation with too many right answers in one fold would
    have too many hallucinated ones in the others, and classifiers would learn the opposite of what
    holds for the held-out fold (AUROCs below 0.5).

    Of these pairs, the most similar ones come first, and those that would bring a unit above
    `MOST_OF_UNIT` samples are left out. The order of the candidates has no effect.
    """
    # scipy.optimize takes half a second to import.
    from scipy.optimize import linear_sum_assignment

    candidates = sorted(candidates)
    scores = _text_scores(candidates)
    groups: dict[tuple[str, int], tuple[list[int], list[int]]] = defaultdict(lambda: ([], []))
    for row, candidate in enumerate(candidates):
        groups[candidate.relation, candidate.fold][candidate.hallucinated].append(row)
    matched: list[tuple[float, TextCandidate, TextCandidate]] = []
    for right, wrong in groups.values():
        distance = np.abs(scores[right][:, None] - scores[wrong][None]).max(axis=-1, initial=0)
        cost = np.where(distance <= CALIPER, distance, _FORBIDDEN)
        for i, j in zip(*linear_sum_assignment(cost), strict=True):
            if distance[i, j] <= CALIPER:
                pair = candidates[right[i]], candidates[wrong[j]]
                matched.append((float(distance[i, j]), *pair))
    chosen = islice(_of_small_units(sorted(matched)), quota)
    return [(right.id, wrong.id) for right, wrong in chosen]


def _of_small_units(
    matched: Iterable[tuple[float, TextCandidate, TextCandidate]],
) -> Iterator[tuple[TextCandidate, TextCandidate]]:
    sizes: Counter[str] = Counter()
    for _, *pair in matched:
        after = sizes + Counter(candidate.unit for candidate in pair)
        if all(after[candidate.unit] <= MOST_OF_UNIT for candidate in pair):
            sizes = after
            yield pair[0], pair[1]


def _text_scores(candidates: Sequence[TextCandidate]) -> Float[np.ndarray, "n control"]:
    """Return the cross-fitted scores of all text-only controls, in standard deviations.

    A fold is left at zero if the others lack a label.
    """
    y: Int[np.ndarray, " n"] = np.array([c.hallucinated for c in candidates], dtype=np.int64)
    folds = np.array([c.fold for c in candidates])
    questions, responses = [c.question for c in candidates], [c.response for c in candidates]
    columns: dict[str, Float[np.ndarray, " n"]] = defaultdict(lambda: np.zeros(len(y)))
    for fold in np.unique(folds).tolist():
        seen, held_out = np.flatnonzero(folds != fold), folds == fold
        if len(np.unique(y[seen])) == 2:
            for name, values in text_only(questions, responses, y, seen).items():
                columns[name][held_out] = values[held_out]
    table = np.column_stack([*columns.values()]) if columns else np.zeros((len(y), 0))
    spread = table.std(axis=0)
    return table / np.where(spread > 0, spread, 1)
