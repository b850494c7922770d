"""What the experiment scores: chains to be answered, or solutions of a file."""

from functools import cached_property
from pathlib import Path

from harness.experiments.steps import chains
from harness.experiments.steps.answers import Step, SteppedAnswer, split_sentences, statement
from harness.experiments.steps.chains import Chain, Hop
from harness.experiments.steps.problems import Problem, read_problems
from harness.experiments.steps.section import StepsSection
from harness.judges.text import normalise
from harness.scenarios.prompts import FewShot
from harness.stages.materials import Materials
from hq.errors import HQError
from hq.models.encoding import Encoder
from hq.tracing.sampling import StopCriteria

_ENDS = (". Step", ".\n", "\n")  # of the answer in a step


class StepsPlan:
    """The section [steps] of a study, with its chains or solutions loaded."""

    def __init__(self, m: Materials) -> None:
        self.m = m
        self.section = StepsSection.of(m.study.sections.get("steps", {}), "the section [steps]")
        self.form = FewShot(chains.SHOTS)

    def check(self) -> None:
        """Raises HQError if the file cannot be used, or if a text is too long for the model."""
        if self.section.source:
            for answer in self.given:
                self.m.require_length(f"Solution {answer.id!r}", answer.exchange.ids)
            return
        longest = max(self.first_prompts, key=len)
        self.m.require_length("The longest two-hop question", longest, 4 * self._new)

    @property
    def _new(self) -> int:
        return self.section.max_new_tokens

    @cached_property
    def composed(self) -> list[Chain]:
        """All chains."""
        return chains.compose(self.m.study.seed)

    @cached_property
    def chains(self) -> list[Chain]:
        """The chains that are asked."""
        return chains.chosen(self.composed, self.section.chains, self.m.study.seed)

    @property
    def hops(self) -> list[Hop]:
        """All questions of the relations of chains."""
        return [hop for of in chains.hops(self.m.study.seed).values() for hop in of]

    @cached_property
    def first_prompts(self) -> list[tuple[int, ...]]:
        """The prompts of all chains as token ids, up to the answer in the first step."""
        return [
            tuple(self.form.encode(self.m.tokenizer, c.question, begun=_frame(1, c.first.phrase())))
            for c in self.chains
        ]

    @cached_property
    def prompt_lengths(self) -> list[int]:
        """The numbers of their tokens that precede the first step."""
        return [
            _common(tuple(self.form.encode(self.m.tokenizer, chain.question)), prompt)
            for chain, prompt in zip(self.chains, self.first_prompts, strict=True)
        ]

    def second_prompt(
        self, chain: Chain, first_prompt: tuple[int, ...], ids: tuple[int, ...], answer: str
    ) -> tuple[int, ...]:
        """Return the prompt up to the answer in the second step; ids are those of the first."""
        frame = f". {_frame(2, chain.second.phrase(answer))}"
        return first_prompt + ids + tuple(Encoder(self.m.tokenizer).continuation(frame))

    @property
    def criteria(self) -> StopCriteria:
        """What ends the answer in a step."""
        study = self.m.stop_criteria_of(self.form)
        return StopCriteria(study.tokens, _ENDS, study.decode)

    @cached_property
    def given(self) -> list[SteppedAnswer]:
        """The solutions of the file, in the study's own prompt form."""
        problems = read_problems(Path(self.section.source))
        folds, units = self.m.study.identify.folds, len({normalise(p.problem) for p in problems})
        if units < folds:
            raise HQError(
                f"The solutions in {self.section.source} are of {units} different problems, but "
                f"thresholds are chosen in {folds} folds of whole problems: give more problems."
            )
        return [self._encoded(problem) for problem in problems]

    def _encoded(self, problem: Problem) -> SteppedAnswer:
        """Encode a solution sentence by sentence, so that steps begin and end between tokens."""
        encoder, ids, steps = Encoder(self.m.tokenizer), list[int](), list[Step]()
        for index, text in enumerate(problem.steps):
            begin, sentences = len(ids), []
            for sentence in split_sentences((" " if index == 0 else "\n") + text.strip()):
                start = len(ids)
                ids += encoder.continuation(sentence)
                sentences.append((start, len(ids)))
            wrong = index == problem.label
            # Steps after the first wrong one have no label, as in ProcessBench.
            known = problem.label < 0 or index <= problem.label
            steps.append(
                Step(
                    text=text.strip(),
                    asked=problem.problem,
                    answer=text.strip(),
                    label="wrong" if wrong else "right" if known else "unknown",
                    tokens=(begin, len(ids)),
                    answer_tokens=(begin, len(ids)),
                    sentences=tuple(sentences),
                    names=(normalise(problem.problem),),
                )
            )
        return SteppedAnswer(
            id=problem.id,
            relation="",
            question=problem.problem,
            prompt_ids=tuple(self.m.form.encode(self.m.tokenizer, problem.problem)),
            response_ids=tuple(ids),
            steps=tuple(steps),
            first_wrong=problem.label,
            names=(normalise(problem.problem),),
            known=(),
        )


def _frame(number: int, phrase: str) -> str:
    return f"Step {number}: {statement(phrase)}"


def _common(first: tuple[int, ...], second: tuple[int, ...]) -> int:
    """Return the length of the prefix that two lists of token ids share."""
    pairs = zip(first, second, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(first), len(second)))
