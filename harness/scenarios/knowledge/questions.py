"""Scenario `knowledge`: short questions from literature to units, with one right answer each."""

import tomllib
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from harness.judges.base import Question
from harness.judges.text import normalise
from harness.scenarios.questions import Limit, question_scenario
from harness.scenarios.short_answers import Fact, Relation, questions_on
from hq.errors import HQError

RELATIONS = files(__package__) / "relations"
"""One TOML file per relation; docs/knowledge.md explains the format."""


class RelationFile(BaseModel):
    """A file of `relations`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    question: str = Field(pattern=r"^[^{}]*\{\}[^{}]*\?$", description="{} stands for the subject")
    answers: str = Field(description="type of the answers, from which distractors are drawn")
    aliases: dict[str, tuple[str, ...]] = Field({}, description="other spellings of an answer")
    facts: dict[str, str | tuple[str, ...]] = Field(
        min_length=1, description="subject and answer, or the answer and what else is right there"
    )

    def relation(self) -> Relation:
        """Return the facts as questions."""
        return Relation([self._fact(subject) for subject in self.facts], self.answers)

    def _fact(self, subject: str) -> Fact:
        given = self.facts[subject]
        answer, *others = (given,) if isinstance(given, str) else given
        aliases = dict.fromkeys((answer, *self.aliases.get(answer, ()), *others))
        question = self.question.replace("{}", subject)
        return Fact(subject, question, tuple(aliases), f"subject:{normalise(subject)}")


def read_relation(file: Traversable) -> RelationFile:
    """Read a file of `relations`.

    Raises HQError if it is no valid TOML or has other keys.
    """
    try:
        return RelationFile.model_validate(tomllib.loads(file.read_text(encoding="utf-8")))
    except tomllib.TOMLDecodeError as error:
        raise HQError(f"{file.name} is not valid TOML ({error}): correct it.") from error
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise HQError(f"{file.name}: {place}: {first['msg']}.") from error


@cache
def relations() -> dict[str, Relation]:
    """Return all relations by name, in alphabetical order."""
    found = sorted(RELATIONS.iterdir(), key=lambda file: file.name)
    return {
        file.name.removesuffix(".toml"): read_relation(file).relation()
        for file in found
        if file.name.endswith(".toml")
    }


def load_knowledge(seed: int = 0, limit: Limit = None) -> list[Question]:
    """Return the questions of all relations, shuffled by `seed`, at most `limit` of them.

    Ids and wordings do not depend on the seed; the order and the distractors do.
    """
    return questions_on(relations(), seed, limit)


KNOWLEDGE = question_scenario("knowledge", load_knowledge)
