"""The training data of a study: trials to evaluate, and texts to train on."""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, Literal, get_args

from harness.experiments.finetune.plan import FinetunePlan
from harness.experiments.finetune.targets import UNKNOWN, Resisting, is_over_compliance, resisting
from harness.experiments.sweep.trials import (
    AskedTrial,
    counted_trials,
    first_counted,
    near_the_decision,
)
from harness.scenarios.base import SCENARIOS, Trial, TrialOutcome
from harness.stages.respond import GreedyResponse, Prompt
from hq.errors import HQError
from hq.neurons.prompt_response import PromptResponse
from hq.storage.atomic import write_whole
from hq.tuning.data import TuningData

DATA_FILE = "data.json"
ASKED_FILE = "asked.json"
Use = Literal["penalised", "right", "refusals", "neutral", "validation"]
USES: tuple[Use, ...] = get_args(Use)
_VALIDATES = 4  # every fourth neutral prompt is for validation
_SHORTEST = 8  # tokens of a continuation

Answer = Callable[[str, Sequence[Prompt]], list[GreedyResponse]]
"""Returns responses of the study's model to prompts of a scenario."""


@dataclass
class Examples:
    """Texts by use, each with the scenario that it is from."""

    texts: dict[Use, list[tuple[str, PromptResponse]]] = field(
        default_factory=lambda: {use: [] for use in USES}
    )

    def add(self, use: Use, scenario: str, prompt: Prompt, response: Iterable[int]) -> None:
        """Add a text, unless the response is empty."""
        ids = tuple(response)
        if ids:
            self.texts[use].append((scenario, PromptResponse(prompt, ids)))

    def write(self, path: Path, seed: int) -> None:
        """Write the texts of each use in an order that is drawn by the seed."""
        content: dict[str, list[list[Any]]] = {}
        for use, texts in self.texts.items():
            Random(f"{seed}:{use}").shuffle(texts)
            content[use] = [[scenario, text.prompt, text.response] for scenario, text in texts]
        write_whole(path, json.dumps(content) + "\n")


def read_data(folder: Path) -> TuningData:
    """Read the texts of a finished node."""
    content = _read(folder / DATA_FILE)
    return TuningData(
        **{use: [PromptResponse(tuple(p), tuple(r)) for _, p, r in content[use]] for use in USES}
    )


def read_counts(folder: Path) -> dict[str, dict[str, int]]:
    """Return the number of texts by use and scenario."""
    content = _read(folder / DATA_FILE)
    return {use: dict(sorted(Counter(s for s, _, _ in content[use]).items())) for use in USES}


def read_asked(folder: Path, plan: FinetunePlan) -> dict[str, dict[str, list[AskedTrial]]]:
    """Read the trials to evaluate, by scenario and label."""
    return {
        name: {
            label: [
                AskedTrial(trials[id], tuple(ids), component, mixed)
                for id, ids, component, mixed in of_label
            ]
            for label, of_label in by_label.items()
        }
        for name, by_label in _read(folder / ASKED_FILE).items()
        for trials in [{trial.id: trial for trial in plan.trials.offered[name]}]
    }


class Builder:
    """Divides trials between training and evaluation, and makes texts of the former."""

    def __init__(
        self, plan: FinetunePlan, samples: set[str], mixed: set[str], answer: Answer
    ) -> None:
        """Prepare to build.

        Args:
            plan: The plan of the study.
            samples: Ids of the questions on which neurons are identified.
            mixed: Ids of the questions with right and wrong sampled responses.
            answer: Returns responses of the study's model.
        """
        self.plan, self.mixed, self.answer = plan, mixed, answer
        self.taken = {plan.component[id] for id in samples}
        self.examples = Examples()
        self.asked: dict[str, dict[str, list[AskedTrial]]] = {}

    def add_scenario(self, name: str) -> None:
        """Add the trials of a scenario. Raises HQError if none is left to evaluate."""
        plan = self.plan
        free = [t for t in plan.trials.offered[name] if plan.component[t.id] not in self.taken]
        training = [trial for trial in free if plan.is_training(trial.id)]
        evaluated = [trial for trial in free if not plan.is_training(trial.id)]
        if not evaluated:
            raise HQError(
                f"All {len(plan.trials.offered[name])} trials of {name!r} share an entity or a "
                "wording with a sample or with training data: lower finetune.share, give the "
                "scenario a file with others, or leave it out."
            )
        form, tokenizer = plan.trials.form(name), plan.m.tokenizer

        def answer(prompts: Sequence[Prompt]) -> list[GreedyResponse]:
            return self.answer(name, prompts) if prompts else []

        self.asked[name] = counted_trials(
            name,
            near_the_decision(evaluated, self.mixed),
            form,
            tokenizer,
            answer,
            plan.section.trials,
            self.mixed,
        )
        counted = first_counted(training, form, tokenizer, answer, plan.section.examples)
        trained = [trial for of_kind in counted.values() for trial in of_kind]
        responses = answer([trial.ids for trial in trained])
        for trial, response in zip(trained, responses, strict=True):
            self._add(name, trial, response)

    def _add(self, name: str, asked: AskedTrial, response: GreedyResponse) -> None:
        """Add the response if it over-complies, and the one that resists."""
        scenario, trial = SCENARIOS[name], asked.trial
        outcome = self.plan.trials.judge.judge(scenario, response.text, trial, response.truncated)
        end = () if response.truncated else self._end(name)
        if outcome is TrialOutcome.COMPLIED and is_over_compliance(name, trial):
            self.examples.add("penalised", name, asked.ids, (*response.ids, *end))
        if scenario.questions is None:
            target = resisting(name, trial)
        else:
            target = self._answer_of(trial, outcome)
        if target is not None:
            space = " " if self.plan.trials.form(name).stop_strings else ""
            ids = self.plan.m.encode(space + target.text)
            use: Use = "refusals" if target.refusal else "right"
            self.examples.add(use, name, asked.ids, (*ids, *self._end(name)))

    def _answer_of(self, trial: Trial, outcome: TrialOutcome | None) -> Resisting | None:
        """The right answer if the model can give it, and else that it does not know."""
        if outcome is TrialOutcome.RESISTED or trial.question in self.mixed:
            return Resisting(trial.aliases[0], refusal=False)
        return Resisting(UNKNOWN, refusal=True) if outcome is TrialOutcome.COMPLIED else None

    def _end(self, name: str) -> tuple[int, ...]:
        """The tokens that end a response in the form of a scenario."""
        form, m = self.plan.trials.form(name), self.plan.m
        if form.stop_strings:
            return m.encode(form.stop_strings[0])
        stops = form.stop_ids(m.tokenizer)
        special = stops - {m.tokenizer.eos_token_id} or stops
        return tuple(sorted(special)[:1])

    def add_neutral(self, texts: Iterable[tuple[Prompt, Iterable[Sequence[int]]]]) -> None:
        """Add continuations of prompts; those of every fourth prompt are for validation."""
        for number, (prompt, continuations) in enumerate(texts):
            use: Use = "validation" if number % _VALIDATES == 0 else "neutral"
            for ids in continuations:
                if len(ids) >= _SHORTEST:
                    self.examples.add(use, "", prompt, ids)

    def write(self, folder: Path, seed: int) -> None:
        """Write both files."""
        asked = {
            name: {
                label: [[one.trial.id, one.ids, one.component, one.mixed] for one in trials]
                for label, trials in by_label.items()
            }
            for name, by_label in self.asked.items()
        }
        write_whole(folder / ASKED_FILE, json.dumps(asked) + "\n")
        self.examples.write(folder / DATA_FILE, seed)


def _read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content
