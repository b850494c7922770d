"""Which consistent questions are kept: as many wrong as right within each group, first come first.

Questions are met in one fixed order. A consistent one waits in its group until the first of the
opposite label comes by; the two are then kept. What is kept after k pairs depends only on the
questions up to there, so sampling may stop at the quota without changing what full sampling keeps.
"""

from collections import defaultdict, deque
from collections.abc import Hashable, Iterable
from itertools import islice
from typing import NamedTuple


class Candidate(NamedTuple):
    """A consistent question: where it stands, the group it is balanced in, its label."""

    id: str
    group: Hashable
    hallucinated: bool


def pairs(candidates: Iterable[Candidate], quota: int) -> list[tuple[str, str]]:
    """The first `quota` (right, hallucinated) pairs of ids, in the order in which they close."""
    return list(islice(_pairs(candidates), quota))


def _pairs(candidates: Iterable[Candidate]) -> Iterable[tuple[str, str]]:
    waiting: dict[tuple[Hashable, bool], deque[str]] = defaultdict(deque)
    for candidate in candidates:
        opposite = waiting[candidate.group, not candidate.hallucinated]
        if not opposite:
            waiting[candidate.group, candidate.hallucinated].append(candidate.id)
        elif candidate.hallucinated:
            yield opposite.popleft(), candidate.id
        else:
            yield candidate.id, opposite.popleft()
