"""Facts with one right answer, as questions with distractors of the same type."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from random import Random

from harness.judges.base import Question
from harness.judges.text import contains, normalise
from harness.scenarios.questions import Limit

DISTRACTORS = 5
CONFUSABLE = 3  # at most so many distractors contain the answer's words


@dataclass(frozen=True, slots=True)
class Fact:
    """One question; `key` is unique within its relation, `aliases[0]` is the answer.

    `entity` is what the question is about. For a place or an airport, it is not the country that is
    the right answer: all right answers "Japan" would then share an entity and the wrong ones would
    not, so groups by entity would separate right and wrong answers of the same text. A country and
    its capital, nationality or domain have one entity, as their questions ask the same fact in two
    directions.
    """

    key: str
    question: str
    aliases: tuple[str, ...]
    entity: str


@dataclass(frozen=True, slots=True)
class Relation:
    """The facts of a relation, and the type of their answers."""

    facts: Sequence[Fact]
    answers: str


def unambiguous(facts: Iterable[Fact]) -> list[Fact]:
    """Return the facts with a unique wording that does not contain the answer.

    This removes capitals, demonyms and codes that several countries share, and Singapore's capital.
    """
    by_wording: dict[str, list[Fact]] = defaultdict(list)
    for fact in facts:
        by_wording[normalise(fact.question)].append(fact)
    single = [same[0] for same in by_wording.values() if len(same) == 1]
    return [fact for fact in single if not contains_its_answer(fact)]


def contains_its_answer(fact: Fact) -> bool:
    """Return whether the question contains a right answer of more than two characters."""
    wording = normalise(fact.question)
    long = (normalise(alias) for alias in fact.aliases if len(alias) > 2)
    return any(contains(wording, alias) for alias in long)


def questions_on(relations: Mapping[str, Relation], seed: int, limit: Limit) -> list[Question]:
    """Return the questions on all facts, shuffled by `seed`, at most `limit` of them.

    Ids and wordings do not depend on the seed; the order and the distractors do.
    """
    answers: dict[str, _Answers] = defaultdict(_Answers)
    for relation in relations.values():
        answers[relation.answers].add(relation.facts)
    questions = [
        _question(name, fact, answers[relation.answers], seed)
        for name, relation in relations.items()
        for fact in relation.facts
    ]
    Random(seed).shuffle(questions)
    return questions[:limit]


class _Answers:
    """Answers of one type with their normalised spellings, from which distractors are drawn."""

    def __init__(self) -> None:
        self._spellings: dict[str, frozenset[str]] = {}
        self._wrong: dict[tuple[str, ...], tuple[list[str], list[str]]] = {}

    def add(self, facts: Iterable[Fact]) -> None:
        """Add the answers of these facts, with the spellings that are right for all of them."""
        for fact in facts:
            name, spellings = fact.aliases[0], _normal(fact.aliases)
            self._spellings[name] = self._spellings.get(name, spellings) & spellings

    def distractors(self, aliases: tuple[str, ...], random: Random) -> tuple[str, ...]:
        """Draw wrong answers, first those that contain the right answer's words."""
        if aliases not in self._wrong:
            self._wrong[aliases] = self._wrong_answers(_normal(aliases))
        similar, others = self._wrong[aliases]
        first = random.sample(similar, min(CONFUSABLE, len(similar)))
        return (*first, *random.sample(others, min(DISTRACTORS - len(first), len(others))))

    def _wrong_answers(self, right: frozenset[str]) -> tuple[list[str], list[str]]:
        """Wrong answers with the right answer's words (Guinea-Bissau for Guinea), and the rest."""
        wrong = [name for name in sorted(self._spellings) if self._is_wrong(name, right)]
        similar = [name for name in wrong if self._has_words_of(name, right)]
        return similar, [name for name in wrong if name not in similar]

    def _is_wrong(self, name: str, right: frozenset[str]) -> bool:
        return right.isdisjoint(self._spellings[name])

    def _has_words_of(self, name: str, right: frozenset[str]) -> bool:
        return any(contains(own, part) for own in self._spellings[name] for part in right)


@cache
def _normal(aliases: tuple[str, ...]) -> frozenset[str]:
    return frozenset(normalise(alias) for alias in aliases)


def _question(relation: str, fact: Fact, answers: _Answers, seed: int) -> Question:
    identity = f"{relation}:{fact.key}"
    return Question(
        id=identity,
        question=fact.question,
        aliases=fact.aliases,
        relation=relation,
        entities=(fact.entity,),
        distractors=answers.distractors(fact.aliases, Random(f"{seed}:{identity}")),
    )
