"""Facts as statements, so that a wrong answer can be stated as if it were true.

`WORDINGS` has for every relation of `facts` the question, the same fact as a statement, and
follow-up questions that presuppose the statement.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from harness.judges.base import Question
from harness.judges.text import contains, normalise
from harness.scenarios.facts.questions import load_facts
from harness.scenarios.facts.records import countries

FACTS_PER_RELATION = 100  # without this limit regions and cities would be most of the facts


@dataclass(frozen=True, slots=True)
class Wording:
    """How a relation is asked and stated; `state` and `follow` start in lower case."""

    ask: str
    state: str
    follow: tuple[str, ...]


WORDINGS: dict[str, Wording] = {
    "capital": Wording(
        "What is the capital of {subject}?",
        "the capital of {subject} is {answer}",
        (
            "which river flows through the capital of {subject}?",
            "which famous building should a visitor see in the capital of {subject}?",
            "how many people live in {answer}?",
        ),
    ),
    "capital_of": Wording(
        "{subject} is the capital of which country?",
        "{subject} is the capital of {answer}",
        (
            "why was {subject} chosen as the capital of {answer}?",
            "which ministries of {answer} have their seat in {subject}?",
        ),
    ),
    "province_of": Wording(
        "In which country is the region of {subject}?",
        "the region of {subject} is in {answer}",
        (
            "how do people travel from the capital of {answer} to {subject}?",
            "what does {subject} contribute to the economy of {answer}?",
        ),
    ),
    "city_country": Wording(
        "In which country is the city of {subject}?",
        "the city of {subject} is in {answer}",
        (
            "how long is the journey from the capital of {answer} to {subject}?",
            "why do people from other parts of {answer} visit {subject}?",
        ),
    ),
    "airport_city": Wording(
        "Which city has the airport with the code {subject}?",
        "the airport with the code {subject} serves the city of {answer}",
        ("how do travellers get from {subject} to the centre of {answer}?",),
    ),
    "airport_country": Wording(
        "In which country is the airport with the code {subject}?",
        "the airport with the code {subject} is in {answer}",
        ("which airlines of {answer} fly from {subject}?",),
    ),
    "nationality": Wording(
        "What is the nationality of a person from {subject}?",
        "a person from {subject} is {answer} by nationality",
        ("which {answer} traditions do people from {subject} keep?",),
    ),
    "nationality_of": Wording(
        "Which country does a person of {subject} nationality come from?",
        "a person of {subject} nationality comes from {answer}",
        (
            "which dishes of {answer} does a person of {subject} nationality grow up with?",
            "which school does a child of {subject} nationality go to in {answer}?",
        ),
    ),
    "continent": Wording(
        "On which continent is {subject}?",
        "{subject} is on the continent of {answer}",
        (
            "how does the climate of {subject} compare with the rest of {answer}?",
            "when did people from other parts of {answer} first settle in {subject}?",
        ),
    ),
    "currency": Wording(
        "What is the currency of {subject}?",
        "the currency of {subject} is the {answer}",
        (
            "what can a visitor to {subject} buy with one {answer}?",
            "who is pictured on the banknotes of the {answer} in {subject}?",
        ),
    ),
    "domain": Wording(
        "What is the internet top-level domain of {subject}?",
        "the internet top-level domain of {subject} is {answer}",
        (
            "who in {subject} may register a name under {answer}?",
            "which newspaper of {subject} has a website under {answer}?",
        ),
    ),
    "domain_of": Wording(
        "Which country has the internet top-level domain {subject}?",
        "the internet top-level domain {subject} belongs to {answer}",
        ("who in {answer} may register a name under {subject}?",),
    ),
    "calling_code": Wording(
        "What is the international calling code of {subject}?",
        "the international calling code of {subject} is {answer}",
        ("how does a caller from abroad use {answer} to dial a number in {subject}?",),
    ),
    "symbol": Wording(
        "What is the chemical symbol for {subject}?",
        "the chemical symbol for {subject} is {answer}",
        ("where does the symbol {answer} of {subject} come from?",),
    ),
    "element": Wording(
        "Which chemical element has the symbol {subject}?",
        "the chemical element with the symbol {subject} is {answer}",
        (
            "why does {answer} have the symbol {subject}?",
            "what is {answer}, the element with the symbol {subject}, used for?",
        ),
    ),
    "atomic_number": Wording(
        "What is the atomic number of {subject}?",
        "the atomic number of {subject} is {answer}",
        (
            "why does an atom of {subject} have {answer} protons?",
            "which element comes after {subject} and its {answer} protons?",
        ),
    ),
    "atomic_number_of": Wording(
        "Which chemical element has the atomic number {subject}?",
        "the chemical element with the atomic number {subject} is {answer}",
        ("what is {answer}, with the {subject} protons of its atoms, used for?",),
    ),
}


@dataclass(frozen=True, slots=True)
class FalseStatement:
    """A fact with one of its wrong answers stated as true; `statement` has no capital or stop."""

    fact: Question
    wrong: str
    statement: str
    follow: tuple[str, ...]

    @property
    def sentence(self) -> str:
        """The statement as a sentence."""
        return f"{self.statement[0].upper()}{self.statement[1:]}."


def sampled_facts(seed: int) -> list[Question]:
    """Return at most `FACTS_PER_RELATION` facts of every relation, drawn by `seed`."""
    count: Counter[str] = Counter()
    facts = []
    for fact in load_facts(seed):
        count[fact.relation] += 1
        if count[fact.relation] <= FACTS_PER_RELATION:
            facts.append(fact)
    return facts


def false_statements(questions: Iterable[Question]) -> Iterator[FalseStatement]:
    """State each fact among the questions with its `wrong_answer`, if it has one."""
    for question in questions:
        wrong = wrong_answer(question)
        if wrong is not None and question.relation in WORDINGS:
            yield _state(question, wrong)


def wrong_answer(question: Question) -> str | None:
    """Return the first distractor that is clearly different from the right answers, or None."""
    return next((name for name in question.distractors if _is_distinct(name, question)), None)


def _is_distinct(name: str, fact: Question) -> bool:
    """Whether the name shares no words with the right answers and is not in the question."""
    plain = normalise(name)
    right = [normalise(alias) for alias in fact.aliases]
    alike = any(contains(plain, alias) or contains(alias, plain) for alias in right)
    return not alike and not contains(normalise(fact.question), plain)


def _state(fact: Question, wrong: str) -> FalseStatement:
    wording = WORDINGS[fact.relation]
    values = {"subject": subject_of(fact), "answer": _phrase(wrong, fact.relation)}
    return FalseStatement(
        fact=fact,
        wrong=wrong,
        statement=wording.state.format(**values),
        follow=tuple(question.format(**values) for question in wording.follow),
    )


def subject_of(fact: Question) -> str:
    """Return the name that the fact's question asks about."""
    before, after = WORDINGS[fact.relation].ask.split("{subject}")
    match = re.fullmatch(f"{re.escape(before)}(.+){re.escape(after)}", fact.question)
    assert match is not None, f"{fact.question!r} is not worded as {before}…{after}"
    return match[1]


def _phrase(answer: str, relation: str) -> str:
    """The answer as it appears within a sentence: "the Netherlands"."""
    if relation == "capital":  # there Singapore and Monaco are cities
        return answer
    return next((c.phrase for c in countries().values() if c.name == answer), answer)
