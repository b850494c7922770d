"""The trials, choices, questions and texts of a sweep, known before a node runs."""

from dataclasses import asdict
from functools import cached_property

from harness.experiments.sweep.section import SweepSection
from harness.experiments.sweep.trials import label, scenario
from harness.scenarios import choices, prompts
from harness.scenarios.base import SCENARIOS, Scenario, Trial
from harness.scenarios.judging import TrialJudge, make_trial_judge
from harness.stages.materials import Materials
from harness.stages.samples import Prompted
from harness.store.store import digest
from hq.errors import HQError
from hq.neurons.prompt_response import PromptResponse

_LETTERS = (" A", " B", " C", " D")
_ENCODED = 64


class SweepPlan:
    """The section [sweep] of a study, and everything that it names, loaded."""

    def __init__(self, m: Materials, section: SweepSection | None = None) -> None:
        """Load what the section names; default: the study's section [sweep]."""
        self.m = m
        self._prompts: dict[str, dict[str, tuple[int, ...]]] = {}
        self._digests: dict[str, str] = {}
        values = m.study.sections.get("sweep", {})
        self.section = section or SweepSection.of(values, "the section [sweep]")

    @property
    def scenarios(self) -> tuple[str, ...]:
        """The scenarios of the section; by default as `SweepSection.scenarios_of`."""
        return self.section.scenarios_of(self.m.study.scenario.name)

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
        section = self.section
        behaviours = {name: SCENARIOS[name] for name in self.scenarios}
        for name in section.sources:
            if name not in behaviours:
                _ = SCENARIOS[name]
                raise HQError(
                    f"There is a source for {name!r}, which is not among the scenarios "
                    f"({', '.join(behaviours)}): add it to them, or leave the source out."
                )
        return {name: self._trials(behaviour) for name, behaviour in behaviours.items()}

    def _trials(self, behaviour: Scenario) -> list[Trial]:
        """Return the trials on the study's questions, or else those of the source.

        Of the study's questions, those are used that are asked for samples; a set of other
        questions keeps its own.
        """
        source = self.section.sources.get(behaviour.name)
        is_other_set = behaviour.questions and behaviour.name != self.m.study.scenario.name
        if source is None and not is_other_set:
            asked = (p.question for p in self.m.prompted if p.part == "sample")
            trials = behaviour.load_on(asked)
            if trials:
                return trials
        return behaviour.load(source, self.m.study.seed, None)

    def trials_digest(self, name: str) -> str:
        """Return a digest of a scenario's trials."""
        if name not in self._digests:
            self._digests[name] = digest([asdict(trial) for trial in self.offered[name]])
        return self._digests[name]

    def max_new_tokens(self, name: str) -> int:
        """Return the token limit of a scenario's responses; short answers have the study's."""
        limit = self.section.max_new_tokens
        is_short = SCENARIOS[name].questions is not None
        return min(limit, self.m.study.sampling.max_new_tokens) if is_short else limit

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

    def longest_prompts(self, name: str) -> dict[str, tuple[int, ...]]:
        """Return the longest prompts of a scenario as token ids, without an earlier dialogue.

        By trial id; there can be tens of thousands of trials, so only `_ENCODED` are encoded.
        """
        if name not in self._prompts:
            form, tokenizer = self.form(name), self.m.tokenizer
            longest = sorted(self.offered[name], key=lambda trial: -len(trial.prompt))[:_ENCODED]
            self._prompts[name] = {
                trial.id: tuple(form.encode(tokenizer, trial.prompt)) for trial in longest
            }
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
        for name in self.offered:
            new = self.max_new_tokens(name)
            for id, ids in self.longest_prompts(name).items():
                self.m.require_length(f"Trial {id!r} of {name}", ids, new)
