"""Two-hop questions, composed from the embedded question sets, and their prompts.

A chain joins two questions: the right answer of the first is the subject of the second. "Which
composer wrote the opera Aida?" and "Which country was the composer Giuseppe Verdi from?" become
"What is the home country of the composer of the opera Aida?", which is answered in two steps.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from random import Random

from harness.experiments.steps.relations import RELATIONS
from harness.judges.base import Question
from harness.judges.text import contains, normalise
from harness.scenarios.prompts import Shots
from harness.scenarios.questions import load_questions

_SETS = ("knowledge", "facts")
# Largest numbers of chains with one subject, one join and one final answer: more of them would be
# one unit.
_PER_SUBJECT, _PER_JOIN, _PER_FINAL = 2, 3, 4


@dataclass(frozen=True, slots=True)
class Hop:
    """One question of a set, with its subject as it is written in the question."""

    subject: str
    question: Question

    @property
    def relation(self) -> str:
        """The name of its relation."""
        return self.question.relation

    @property
    def answer(self) -> str:
        """The canonical right answer."""
        return self.question.aliases[0]

    def phrase(self, subject: str | None = None) -> str:
        """Name the answer, by the hop's own subject or another name for it."""
        return RELATIONS[self.relation].phrase.replace("{}", subject or self.subject)


@dataclass(frozen=True, slots=True)
class Chain:
    """A two-hop question: the answer of `first` is the subject of `second`."""

    first: Hop
    second: Hop

    @property
    def id(self) -> str:
        """The first question and the second relation, which determine the chain."""
        return f"{self.first.question.id} > {self.second.relation}"

    @property
    def relation(self) -> str:
        """The pair of relations."""
        return f"{self.first.relation} > {self.second.relation}"

    @property
    def question(self) -> str:
        """The composed question."""
        return f"What is {self.second.phrase(self.first.phrase())}?"

    @property
    def wording(self) -> str:
        """The composed question."""
        return self.question

    @property
    def entities(self) -> tuple[str, ...]:
        """Subject, join and final answer; chains that share one are in one unit."""
        names = (self.first.subject, self.second.subject, self.second.answer)
        return tuple(f"name:{normalise(name)}" for name in names)

    @property
    def names(self) -> frozenset[str]:
        """Every normalised name that the chain is about, with all accepted spellings."""
        given = (self.first.subject, *self.first.question.aliases, self.second.subject)
        return frozenset(normalise(name) for name in (*given, *self.second.question.aliases))


def _shot(question: str, *statements: str) -> tuple[str, str]:
    return question, " ".join(f"Step {k}: {text}" for k, text in enumerate(statements, 1))


SHOTS: Shots = (
    _shot(
        "What is the capital of the home country of the dish rösti?",
        "The home country of the dish rösti is Switzerland.",
        "The capital of Switzerland is Bern.",
    ),
    _shot(
        "What is the home country of the author of the novel Bambi?",
        "The author of the novel Bambi is Felix Salten.",
        "The home country of Felix Salten is Austria.",
    ),
    _shot(
        "What is the chemical symbol of the metal of the ore cassiterite?",
        "The metal of the ore cassiterite is tin.",
        "The chemical symbol of tin is Sn.",
    ),
    _shot(
        "What is the river of the city of the San Mamés Stadium?",
        "The city of the San Mamés Stadium is Bilbao.",
        "The river of Bilbao is Nervión.",
    ),
)
"""Solved examples, which show the form of the steps."""


def subjects(questions: Sequence[Question]) -> list[str]:
    """Return the subject of each question of one relation.

    The ids of `knowledge` end with it. In `facts`, it is what differs between the wordings: the
    frame that they share is cut at whole words.
    """
    if all(question.id.partition(":")[2] in question.question for question in questions):
        return [question.id.partition(":")[2] for question in questions]
    wordings = [question.question for question in questions]
    before = _shared_start(wordings)
    before = before[: before.rfind(" ") + 1]
    after = _shared_start([wording[::-1] for wording in wordings])[::-1]
    after = after[next((i for i, char in enumerate(after) if not char.isalnum()), len(after)) :]
    return [wording[len(before) : len(wording) - len(after)] for wording in wordings]


def _shared_start(texts: Sequence[str]) -> str:
    first, last = min(texts), max(texts)  # the two with the shortest shared start
    pairs = enumerate(zip(first, last, strict=False))
    return first[: next((i for i, (a, b) in pairs if a != b), len(first))]


@cache
def hops(seed: int = 0) -> dict[str, list[Hop]]:
    """Return the questions of all relations of `RELATIONS` as hops, in the order of their ids."""
    by_relation: dict[str, list[Question]] = defaultdict(list)
    for name in _SETS:
        for question in load_questions(name, seed=seed):
            if question.relation in RELATIONS:
                by_relation[question.relation].append(question)
    return {
        relation: _hops(sorted(by_relation[relation], key=lambda q: q.id)) for relation in RELATIONS
    }


def _hops(questions: Sequence[Question]) -> list[Hop]:
    return [Hop(*pair) for pair in zip(subjects(questions), questions, strict=True)]


def compose(seed: int = 0) -> list[Chain]:
    """Return all chains, in a fixed order.

    Left out are joins that are not unique (two questions of a relation on one subject), composed
    questions that contain the join or the final answer, and composed questions with two answers.
    """
    relations = hops(seed)
    by_subject = {relation: _unique(of) for relation, of in relations.items()}
    chains = [
        Chain(first, second)
        for first in (hop for of in by_subject.values() for hop in of.values())
        for relation in _following(first.relation)
        if (second := by_subject[relation].get(normalise(first.answer)))
    ]
    chains = [chain for chain in chains if not _tells(chain)]
    wordings = Counter(normalise(chain.question) for chain in chains)
    return [chain for chain in chains if wordings[normalise(chain.question)] == 1]


def _unique(of: Iterable[Hop]) -> dict[str, Hop]:
    """Map normalised subjects to hops, without subjects that two questions are about."""
    by_subject: dict[str, list[Hop]] = defaultdict(list)
    for hop in of:
        by_subject[normalise(hop.subject)].append(hop)
    return {subject: same[0] for subject, same in by_subject.items() if len(same) == 1}


@cache
def _following(relation: str) -> tuple[str, ...]:
    kind = RELATIONS[relation].answer
    return tuple(name for name, other in RELATIONS.items() if other.subject == kind)


def _tells(chain: Chain) -> bool:
    """Whether the question contains the join or the final answer, or both are the same."""
    wording = normalise(chain.first.phrase())
    answers = (*chain.first.question.aliases, *chain.second.question.aliases)
    told = any(contains(wording, normalise(answer)) for answer in answers)
    return told or normalise(chain.second.answer) == normalise(chain.second.subject)


def chosen(chains: Sequence[Chain], count: int, seed: int) -> list[Chain]:
    """Return at most `count` chains, of as many pairs of relations and names as possible.

    Pairs of relations take turns, each in an order that the seed determines. No subject, join or
    final answer occurs often, and none that the solved examples mention occurs at all.
    """
    shown = normalise(" ".join(text for shot in SHOTS for text in shot))
    offered = [c for c in chains if not any(contains(shown, name) for name in c.names)]
    Random(seed).shuffle(offered)
    used: tuple[Counter[str], ...] = (Counter(), Counter(), Counter())
    limits = (_PER_SUBJECT, _PER_JOIN, _PER_FINAL)
    selected: list[Chain] = []
    for chain in _in_turn(offered):
        if all(u[e] < limit for u, e, limit in zip(used, chain.entities, limits, strict=True)):
            for of_kind, entity in zip(used, chain.entities, strict=True):
                of_kind[entity] += 1
            selected.append(chain)
    return selected[:count]


def _in_turn(chains: Sequence[Chain]) -> Iterator[Chain]:
    """Yield the first chain of each pair of relations, then the second of each, and so on."""
    by_pair: dict[str, list[Chain]] = defaultdict(list)
    for chain in chains:
        by_pair[chain.relation].append(chain)
    for rank in range(max(map(len, by_pair.values()), default=0)):
        yield from (of[rank] for _, of in sorted(by_pair.items()) if rank < len(of))


def by_relation(chains: Sequence[Chain]) -> Mapping[str, int]:
    """Return the number of chains of each pair of relations."""
    return Counter(chain.relation for chain in chains)
