"""The nodes of the experiment: answers in steps, and readings of their tokens at each precision."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from harness.experiments.steps.answers import (
    ANSWERS_FILE,
    Label,
    Range,
    Step,
    StepLabels,
    SteppedAnswer,
    first_wrong,
    statement,
    write_answers,
)
from harness.experiments.steps.chains import Chain
from harness.judges.rules import RuleJudge
from harness.judges.text import normalise
from harness.stages import mapping, readings, respond
from harness.stages.graph import Graph
from harness.stages.loading import SPELLING
from harness.stages.respond import GreedyResponse
from harness.stages.samples import write_tokens
from harness.stages.select import TOKENS_FILE
from harness.store.jsonl import LOG_FILE
from harness.store.node import Node, Stage, Work
from harness.store.progress import Task
from harness.store.store import digest
from harness.studies.study import REFERENCE
from hq.backends.opening import max_rows

if TYPE_CHECKING:
    from harness.experiments.steps.plan import StepsPlan
    from harness.stages.materials import Materials


class StepsNodes:
    """Declares the nodes of the experiment."""

    def __init__(self, plan: "StepsPlan") -> None:
        self.plan, self.m = plan, plan.m
        self.graph = Graph(plan.m)

    def answers(self) -> Node:
        """Declare the answers: the model's own to the chains, or the given ones."""
        return self._given() if self.plan.section.source else self._answered()

    def _given(self) -> Node:
        given = [answer.model_dump() for answer in self.plan.given]
        return Node(GIVEN, {"answers": digest(given)}, units=len(given))

    def _answered(self) -> Node:
        m, plan = self.m, self.plan
        return Node(
            ANSWERED,
            m.models.parameters(REFERENCE, SPELLING)
            | plan.criteria.parameters
            | {
                "chains": digest([[c.id, c.question] for c in plan.chains]),
                "prompts": digest(plan.first_prompts),
                "judge": RuleJudge.identity,
                "max_new_tokens": plan.section.max_new_tokens,
            },
            mapping.model_inputs(m, REFERENCE),
            REFERENCE,
            units=2 * len(plan.chains),
            unit="steps",
            memory=m.resident(REFERENCE),
        )

    def readings(self, precision: str) -> Node:
        """Declare the readings of every token of the answers at a precision."""
        tokens = self.answers().output(TOKENS_FILE)
        return readings.node(self.m, precision, tokens, self._answers)

    @property
    def _answers(self) -> int:
        return len(self.plan.given if self.plan.section.source else self.plan.chains)


def _plan(work: "Work[Materials]") -> "StepsPlan":
    from harness.experiments.steps.plan import StepsPlan

    return work.materials.of(StepsPlan)


def _make_given(work: "Work[Materials]") -> None:
    _write(work.folder, _plan(work).given)


def _make_answered(work: "Work[Materials]") -> None:
    """Write the model's answers to the chains, labelled.

    The frame of each step is given, and the model completes it: greedy, first the answers in the
    first steps of all chains, then those in the second steps, which name the first ones.
    """
    plan = _plan(work)
    chains, prompts = plan.chains, plan.first_prompts
    with work.task(2 * len(chains), "steps") as task:
        first = _complete(work, prompts, task)
        asked = [i for i, response in enumerate(first) if response.text.strip() and response.ids]
        task.advance(len(chains) - len(asked))
        seconds = [
            plan.second_prompt(chains[i], prompts[i], first[i].ids, first[i].text.strip())
            for i in asked
        ]
        second = _complete(work, seconds, task)
    labels = StepLabels(plan.hops)
    rows = zip(asked, seconds, second, strict=True)
    _write(
        work.folder,
        [
            _answer(chains[i], prompts[i], plan.prompt_lengths[i], first[i], prompt, reply, labels)
            for i, prompt, reply in rows
            if reply.ids
        ],
    )


def _complete(
    work: "Work[Materials]", prompts: Sequence[respond.Prompt], task: Task
) -> list[GreedyResponse]:
    """Return greedy responses from the log that all nodes share."""
    plan, log = _plan(work), respond.GREEDY_LOG
    new = plan.section.max_new_tokens
    if not prompts:
        return []
    for prompt in prompts:
        work.materials.require_length("A prompt", prompt, new)
    key = (
        work.materials.models.parameters(REFERENCE, SPELLING)
        | plan.criteria.parameters
        | {"max_new_tokens": new, "file": work.digests.get("file")}
    )
    with work.store.growing(log.name, log.version, key) as folder:
        return respond.respond(
            folder / LOG_FILE,
            partial(mapping.backend, work),
            prompts,
            [{}],
            plan.criteria,
            new,
            task,
            max_rows(REFERENCE),
        )[0]


def _answer(
    chain: Chain,
    prompt: tuple[int, ...],
    start: int,
    first: GreedyResponse,
    second_prompt: tuple[int, ...],
    second: GreedyResponse,
    labels: StepLabels,
) -> SteppedAnswer:
    """Return the answer to a chain; `start` is the number of tokens before the first step."""
    names = [first.text.strip(), second.text.strip()]
    of_steps: list[Label] = [
        labels.first(chain, first.text, first.truncated),
        labels.second(chain, names[0], second.text, second.truncated),
    ]
    middle, end = len(prompt) + len(first.ids), len(second_prompt) + len(second.ids)
    phrases = [chain.first.phrase(), chain.second.phrase(names[0])]
    tokens: list[Range] = [(0, middle - start), (middle - start, end - start)]
    of_answers: list[Range] = [
        (len(prompt) - start, middle - start),
        (len(second_prompt) - start, end - start),
    ]
    given = [normalise(name) for name in names]
    about = [(normalise(chain.first.subject), given[0]), (given[0], given[1])]
    steps = tuple(
        Step(
            text=f"{statement(phrases[k])} {names[k]}.",
            asked=phrases[k],
            answer=names[k],
            label=of_steps[k],
            tokens=tokens[k],
            answer_tokens=of_answers[k],
            sentences=(tokens[k],),
            names=about[k],
        )
        for k in range(2)
    )
    ids = second_prompt + second.ids
    known = {*chain.names, *given, chain.first.question.id, chain.second.question.id}
    return SteppedAnswer(
        id=chain.id,
        relation=chain.relation,
        question=chain.question,
        prompt_ids=ids[:start],
        response_ids=ids[start:],
        steps=steps,
        first_wrong=first_wrong(of_steps),
        names=(normalise(chain.first.subject), normalise(chain.second.subject), given[0]),
        known=tuple(sorted(known)),
    )


def _write(folder: Path, answers: Sequence[SteppedAnswer]) -> None:
    """Write the answers, and their token ids in a file of their own: labels change no readings."""
    write_answers(folder / ANSWERS_FILE, answers)
    write_tokens(folder / TOKENS_FILE, [answer.exchange for answer in answers])


_RUNS = ("hq.backends.opening",)
GIVEN = Stage("given-steps", _make_given)
ANSWERED = Stage("steps", _make_answered, sources=_RUNS)
