"""Scenario `facts`: short questions with one right answer, from well-known to rare."""

from harness.judges.base import Question
from harness.scenarios.facts.relations import RELATIONS
from harness.scenarios.questions import Limit, question_scenario
from harness.scenarios.short_answers import Relation, questions_on, unambiguous


def load_facts(seed: int = 0, limit: Limit = None) -> list[Question]:
    """Return the questions on all facts, shuffled by `seed`, at most `limit` of them.

    Ids and wordings do not depend on the seed; the order and the distractors do.
    """
    relations = {
        name: Relation(unambiguous(relation.facts()), relation.answers)
        for name, relation in RELATIONS.items()
    }
    return questions_on(relations, seed, limit)


FACTS = question_scenario("facts", load_facts)
