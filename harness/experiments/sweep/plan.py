"""What a sweep asks, known before anything is computed: trials, choices, questions and texts."""

from functools import cached_property

from harness.experiments.sweep.asking import label, scenario
from harness.experiments.sweep.section import SweepSection
from harness.scenarios import choices, prompts
from harness.scenarios.base import SCENARIOS, Trial
from harness.stages.materials import Materials
from harness.stages.samples import Prompted
from hq.errors import HQError
from hq.neurons.prompt_response import PromptResponse

_LETTERS = (" A", " B", " C", " D")


class SweepPlan:
    """The section [sweep] of a study, and all that it names, loaded."""

    def __init__(self, m: Materials) -> None:
        self.m = m
        self._prompts: dict[str, list[tuple[int, ...]]] = {}
        values = m.study.sections.get("sweep", {})
        self.section = SweepSection.of(values, "the section [sweep]")

    def check(self) -> None:
        """Raises HQError for scenarios, sources, choices or prompt forms that cannot be used."""
        for name in self.offered:
            self.m.stop_criteria_of(self.form(name))
        _ = self.choices
        self._require_lengths()

    @cached_property
    def offered(self) -> dict[str, list[Trial]]:
        """Every trial of each scenario. Raises HQError for an unknown scenario or source."""
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
        """What the tables call the trials: each kind of each scenario."""
        return [
            label(name, kind)
            for name, trials in self.offered.items()
            for kind in sorted({trial.kind for trial in trials})
        ]

    def form(self, name: str) -> prompts.PromptForm:
        """The form in which the trials of a scenario, or of a kind of it, are put."""
        return prompts.form(self.form_name(name))

    def form_name(self, name: str) -> str:
        """The name of that form."""
        return self.section.form or SCENARIOS[scenario(name)].form

    def prompts(self, name: str) -> list[tuple[int, ...]]:
        """Token ids of a scenario's trials, as they are asked without an earlier dialogue."""
        if name not in self._prompts:
            form, tokenizer = self.form(name), self.m.tokenizer
            self._prompts[name] = [
                tuple(form.encode(tokenizer, trial.prompt)) for trial in self.offered[name]
            ]
        return self._prompts[name]

    @cached_property
    def questions(self) -> list[Prompted]:
        """The study's held-out questions that costs are measured on."""
        return self.m.held_out(self.section.questions)

    @property
    def texts(self) -> list[PromptResponse]:
        """As many pieces of held-out text."""
        return self.m.texts[: self.section.questions]

    @cached_property
    def choices(self) -> list[choices.MultipleChoice]:
        """Questions with four answers to choose from."""
        source = self.section.choices or None
        return choices.load_choices(source, self.m.study.seed, self.section.questions)

    @cached_property
    def choice_prompts(self) -> list[tuple[int, ...]]:
        """Their prompts as token ids."""
        return [self.m.encode(choices.prompt(choice)) for choice in self.choices]

    @property
    def letters(self) -> list[int]:
        """The token ids of the four answers."""
        return [self.m.encode(letter)[-1] for letter in _LETTERS]

    def _require_lengths(self) -> None:
        """Raises HQError for a trial that leaves no room for an answer.

        What a dialogue adds depends on the first answer, and is checked when it is asked.
        """
        new = self.section.max_new_tokens
        for name, trials in self.offered.items():
            for trial, ids in zip(trials, self.prompts(name), strict=True):
                self.m.require_length(f"Trial {trial.id!r} of {name}", ids, new)
