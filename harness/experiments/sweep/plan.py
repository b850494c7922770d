"""The trials, choices, questions and texts of a sweep, known before a node runs."""

from functools import cached_property

from harness.experiments.sweep.section import SweepSection
from harness.experiments.sweep.trials import label, scenario
from harness.scenarios import choices, prompts
from harness.scenarios.base import SCENARIOS, Trial
from harness.scenarios.judging import TrialJudge, make_trial_judge
from harness.stages.materials import Materials
from harness.stages.samples import Prompted
from hq.errors import HQError
from hq.neurons.prompt_response import PromptResponse

_LETTERS = (" A", " B", " C", " D")


class SweepPlan:
    """The section [sweep] of a study, and everything that it names, loaded."""

    def __init__(self, m: Materials) -> None:
        self.m = m
        self._prompts: dict[str, list[tuple[int, ...]]] = {}
        values = m.study.sections.get("sweep", {})
        self.section = SweepSection.of(values, "the section [sweep]")

    def check(self) -> None:
        """Raises HQError if scenarios, sources, judge, choices or prompt forms cannot be used."""
        _ = self.judge
        for name in self.offered:
            self.m.stop_criteria_of(self.form(name))
        _ = self.choices
        self._require_lengths()

    @cached_property
    def offered(self) -> dict[str, list[Trial]]:
        """All trials of each scenario. Raises HQError if a scenario or source is unknown."""
        section, seed = self.section, self.m.study.seed
        behaviours = {name: SCENARIOS[name] for name in section.scenarios}
        for name in section.sources:
            if name not in behaviours:
                _ = SCENARIOS[name]
                raise HQError(
                    f"There is a source for {name!r}, which is not among the scenarios "
                    f"({', '.join(behaviours)}): add it to them, or leave the source out."
                )
        return {
            name: behaviour.load(section.sources.get(name), seed, None)
            for name, behaviour in behaviours.items()
        }

    @property
    def labels(self) -> list[str]:
        """The names of trials in tables: one per kind of each scenario."""
        return [
            label(name, kind)
            for name, trials in self.offered.items()
            for kind in sorted({trial.kind for trial in trials})
        ]

    @cached_property
    def judge(self) -> TrialJudge:
        """The judge of the trials. Raises HQError if it is unknown or cannot be used."""
        return make_trial_judge(self.section.judge)

    def judge_label(self, label: str) -> str:
        """Return the judge's name in tables, for the trials of a label."""
        name, _, kind = label.partition(":")
        return self.judge.label(SCENARIOS[name], kind, self.section.sources.get(name))

    def form(self, name: str) -> prompts.PromptForm:
        """Return the prompt form of a scenario, given its name or a label of it."""
        return prompts.form(self.form_name(name))

    def form_name(self, name: str) -> str:
        """Return the name of that form."""
        return self.section.form or SCENARIOS[scenario(name)].form

    def prompts(self, name: str) -> list[tuple[int, ...]]:
        """Return the prompts of a scenario's trials as token ids, without an earlier dialogue."""
        if name not in self._prompts:
            form, tokenizer = self.form(name), self.m.tokenizer
            self._prompts[name] = [
                tuple(form.encode(tokenizer, trial.prompt)) for trial in self.offered[name]
            ]
        return self._prompts[name]

    @cached_property
    def questions(self) -> list[Prompted]:
        """Held-out questions of the study, for the accuracy."""
        return self.m.held_out(self.section.questions)

    @property
    def texts(self) -> list[PromptResponse]:
        """Held-out texts, at most as many as questions."""
        return self.m.texts[: self.section.questions]

    @cached_property
    def choices(self) -> list[choices.MultipleChoice]:
        """Four-way choices."""
        source = self.section.choices or None
        return choices.load_choices(source, self.m.study.seed, self.section.questions)

    @cached_property
    def choice_prompts(self) -> list[tuple[int, ...]]:
        """Prompts of the choices as token ids."""
        return [self.m.encode(choices.prompt(choice)) for choice in self.choices]

    @property
    def letters(self) -> list[int]:
        """The token ids of the four answers."""
        return [self.m.encode(letter)[-1] for letter in _LETTERS]

    def _require_lengths(self) -> None:
        """Raises HQError if a trial leaves no room for a response.

        The length of an earlier dialogue depends on the first answer, and is checked later.
        """
        new = self.section.max_new_tokens
        for name, trials in self.offered.items():
            for trial, ids in zip(trials, self.prompts(name), strict=True):
                self.m.require_length(f"Trial {trial.id!r} of {name}", ids, new)
