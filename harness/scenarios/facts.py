"""Scenario `facts`: short-answer questions on countries, places, airports and elements.

Generated at run time from countryinfo, airportsdata and periodictable, from head to long tail.
"""

from collections import defaultdict
from collections.abc import Iterable
from functools import cache
from random import Random

from harness.judges.base import Question
from harness.judges.text import contains, normalise
from harness.scenarios.base import Limit, register
from harness.scenarios.facts_relations import RELATIONS, Fact

DISTRACTORS = 5
CONFUSABLE = 3  # of those, so many at most are names that contain the answer's


@register("facts")
def load(seed: int = 0, limit: Limit = None) -> list[Question]:
    """All facts in an order drawn by `seed`, or the first `limit` of them.

    Ids and wording do not depend on the seed; the order and the distractors do.
    """
    facts = {name: unambiguous(RELATIONS[name].facts()) for name in RELATIONS}
    pools: dict[str, _Pool] = defaultdict(_Pool)
    for name, stated in facts.items():
        pools[RELATIONS[name].answers].add(stated)
    questions = [
        _question(name, fact, pools[RELATIONS[name].answers], seed)
        for name, stated in facts.items()
        for fact in stated
    ]
    Random(seed).shuffle(questions)
    return questions[:limit]


def unambiguous(facts: Iterable[Fact]) -> list[Fact]:
    """Facts whose wording has one answer, and does not give it away.

    Capitals, demonyms and codes that several countries share go, and Singapore's capital.
    """
    by_wording: dict[str, list[Fact]] = defaultdict(list)
    for fact in facts:
        by_wording[normalise(fact.question)].append(fact)
    single = [same[0] for same in by_wording.values() if len(same) == 1]
    return [fact for fact in single if not _gives_itself_away(fact)]


def _gives_itself_away(fact: Fact) -> bool:
    wording = normalise(fact.question)
    long = (normalise(alias) for alias in fact.aliases if len(alias) > 2)
    return any(contains(wording, alias) for alias in long)


class _Pool:
    """Answers of one type, each with all its normalised spellings: wrong ones to draw from."""

    def __init__(self) -> None:
        self._spellings: dict[str, frozenset[str]] = {}
        self._wrong: dict[tuple[str, ...], tuple[list[str], list[str]]] = {}

    def add(self, facts: Iterable[Fact]) -> None:
        """Enter the answers of these facts."""
        self._spellings.update((f.aliases[0], _normal(f.aliases)) for f in facts)

    def draw(self, aliases: tuple[str, ...], lots: Random) -> tuple[str, ...]:
        """Wrong answers, those that could be mistaken for the truth first."""
        if aliases not in self._wrong:
            self._wrong[aliases] = self._sort_out(_normal(aliases))
        similar, others = self._wrong[aliases]
        first = lots.sample(similar, min(CONFUSABLE, len(similar)))
        return (*first, *lots.sample(others, min(DISTRACTORS - len(first), len(others))))

    def _sort_out(self, truth: frozenset[str]) -> tuple[list[str], list[str]]:
        """Wrong answers that hold the truth's words (Guinea-Bissau for Guinea), and the others."""
        wrong = [name for name in sorted(self._spellings) if self._is_wrong(name, truth)]
        similar = [name for name in wrong if self._holds(name, truth)]
        return similar, [name for name in wrong if name not in similar]

    def _is_wrong(self, name: str, truth: frozenset[str]) -> bool:
        return truth.isdisjoint(self._spellings[name])

    def _holds(self, name: str, truth: frozenset[str]) -> bool:
        return any(contains(own, part) for own in self._spellings[name] for part in truth)


@cache
def _normal(aliases: tuple[str, ...]) -> frozenset[str]:
    return frozenset(normalise(alias) for alias in aliases)


def _question(relation: str, fact: Fact, pool: _Pool, seed: int) -> Question:
    identity = f"{relation}:{fact.key}"
    return Question(
        id=identity,
        question=fact.question,
        aliases=fact.aliases,
        relation=relation,
        entities=(fact.entity,),
        distractors=pool.draw(fact.aliases, Random(f"{seed}:{identity}")),
    )
