"""Answers in steps: the tokens of each step and sentence, and which steps are wrong."""

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from harness.experiments.steps.chains import Chain, Hop
from harness.experiments.steps.relations import RELATIONS
from harness.judges.base import Verdict
from harness.judges.rules import RuleJudge
from harness.judges.text import normalise
from harness.store.jsonl import parse
from hq.neurons.prompt_response import PromptResponse
from hq.storage.atomic import write_whole

ANSWERS_FILE = "answers.jsonl"
ALL_RIGHT = -1  # in place of the index of the first wrong step, as in ProcessBench
Range = tuple[int, int]  # of response tokens: first, and the one after the last
Label = Literal["right", "wrong", "unknown"]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Step(_Record):
    """One step: its texts, its label and its tokens."""

    text: str
    asked: str  # what the step answers
    answer: str  # what the model wrote after the frame of the step; or the text itself
    label: Label  # given the steps before it
    tokens: Range
    answer_tokens: Range
    sentences: tuple[Range, ...]
    names: tuple[str, ...]  # normalised: what is asked about, and the answer


class SteppedAnswer(_Record):
    """An answer in steps, as token ids."""

    id: str
    relation: str
    question: str
    prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...]
    steps: tuple[Step, ...]
    first_wrong: int | None  # index from 0, ALL_RIGHT, or None if a step has no verdict
    names: tuple[str, ...]  # normalised: answers that share one are not independent
    known: tuple[str, ...]  # names and question ids that a probe must not have seen

    @property
    def exchange(self) -> PromptResponse:
        """Its token ids."""
        return PromptResponse(self.prompt_ids, self.response_ids)


def write_answers(path: Path, answers: Iterable[SteppedAnswer]) -> None:
    """Write one answer per line."""
    write_whole(path, "".join(answer.model_dump_json() + "\n" for answer in answers))


def read_answers(path: Path) -> list[SteppedAnswer]:
    """Read a file that `write_answers` wrote."""
    return parse(path.read_text(encoding="utf-8"), SteppedAnswer)


def statement(phrase: str) -> str:
    """Return the beginning of a step's sentence, which the answer completes."""
    return f"{phrase[0].upper()}{phrase[1:]} is"


class StepLabels:
    """Labels of the two steps of a chain, by the rule judge.

    The second step is judged by the question on what the model itself answered first, if the second
    relation has that subject: the capital of the country that it named. So a wrong first step can
    be followed by a right one. Without such a question, its label is unknown.
    """

    def __init__(self, hops: Sequence[Hop]) -> None:
        self._judge = RuleJudge()
        self._by_subject: dict[tuple[str, str], Hop] = {}
        self._names: dict[tuple[str, str], set[str]] = defaultdict(set)
        for hop in hops:
            self._by_subject.setdefault((hop.relation, normalise(hop.subject)), hop)
            for alias in hop.question.aliases:
                kind = RELATIONS[hop.relation].answer
                self._names[kind, normalise(alias)].add(normalise(hop.answer))

    def first(self, chain: Chain, answer: str, truncated: bool) -> Label:
        """Return the label of the first step."""
        return self._label(chain.first, answer, truncated)

    def second(self, chain: Chain, first: str, answer: str, truncated: bool) -> Label:
        """Return the label of the second step, given the answer in the first one."""
        hop = self.asked(chain, first)
        return "unknown" if hop is None else self._label(hop, answer, truncated)

    def asked(self, chain: Chain, first: str) -> Hop | None:
        """Return the second question about the answer in the first step; None if there is none.

        The answer may be another spelling of one subject: an accepted answer of some question
        whose canonical answer is that subject ("USA").
        """
        if self._label(chain.first, first, False) == "right":
            spelled = self._by_subject.get((chain.second.relation, normalise(first)))
            return spelled or chain.second
        kind = RELATIONS[chain.second.relation].subject
        names = {normalise(first)}
        if (chain.second.relation, normalise(first)) not in self._by_subject:
            names = self._names.get((kind, normalise(first)), set())
        asked = [self._by_subject.get((chain.second.relation, name)) for name in names]
        return asked[0] if len(asked) == 1 else None

    def _label(self, hop: Hop, answer: str, truncated: bool) -> Label:
        verdict = self._judge.judge(answer, hop.question, truncated)
        labels: dict[Verdict, Label] = {Verdict.RIGHT: "right", Verdict.WRONG: "wrong"}
        return labels.get(verdict, "unknown")


def first_wrong(labels: Sequence[Label]) -> int | None:
    """Return the index of the first wrong step, ALL_RIGHT, or None if it depends on an unknown."""
    for index, label in enumerate(labels):
        if label != "right":
            return index if label == "wrong" else None
    return ALL_RIGHT


_SENTENCE_END = re.compile(
    r"(?<=[.!?])(?<!\b[A-Z]\.)(?<!\be\.g\.)(?<!\bi\.e\.)[\"'”’)\]]*\s+(?=\S)|\n+\s*(?=\S)"
)


def split_sentences(text: str) -> list[str]:
    """Return the sentences of a text, each with the space before it; joined, they are the text.

    A sentence ends at a line break, and after ".", "!" or "?" and a space. It does not end after an
    initial ("J. Smith"), "e.g." or "i.e.".
    """
    starts = [0]
    for match in _SENTENCE_END.finditer(text):
        space = match.start() + len(match[0]) - len(re.sub(r"^[\"'”’)\]]*", "", match[0]))
        starts.append(space)
    bounds = [*starts, len(text)]
    return [text[a:b] for a, b in pairwise(bounds) if text[a:b]]
