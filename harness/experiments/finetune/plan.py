"""What a study of fine-tuning trains and evaluates on, known before a node runs.

All questions, trials and choices form one graph of components, linked by entities and wordings. A
random share of the components is for training. The rest is for evaluation, as are the reserved
questions, whatever their component; questions of their components are not trained on. Components
with a sample, on which neurons are identified, are neither trained on nor evaluated as trials.
"""

from collections.abc import Sequence
from functools import cached_property

import numpy as np

from harness.experiments.finetune.neutral import OPENINGS
from harness.experiments.finetune.section import FinetuneSection
from harness.experiments.mixtures import require_dense
from harness.experiments.sweep.plan import SweepPlan
from harness.experiments.sweep.section import SweepSection
from harness.scenarios.base import SCENARIOS
from harness.scenarios.choices import MultipleChoice, load_choices, prompt
from harness.stages import units
from harness.stages.materials import Materials
from harness.stages.samples import Prompted
from harness.studies.study import REFERENCE
from hq.errors import HQError
from hq.gguf.write import gguf_package
from hq.models.checkpoint import architecture_at, quantization_of, text_config
from hq.neurons.prompt_response import PromptResponse
from hq.precisions.gguf import GGUF_SOURCE, file_precision
from hq.tuning.adapter import require_peft, require_targets

ARMS = ("h-neurons", "matched", "plain")
"""What the penalty acts on: the H-Neurons, as many matched neurons, or nothing."""
BASE = "base"
"""The study's model, in tables."""


class FinetunePlan:
    """The section [finetune] of a study, and everything that it names, loaded."""

    def __init__(self, m: Materials) -> None:
        self.m = m
        values = m.study.sections.get("finetune", {})
        self.section = FinetuneSection.of(values, "the section [finetune]")

    def check(self) -> None:
        """Raises HQError if the model, a precision, a scenario or a package cannot be used."""
        m, section = self.m, self.section
        require_dense(m, "a LoRA changes linear layers, which its experts are not")
        require_peft()
        family = architecture_at(m.path)
        require_targets(family, section.targets, str(text_config(m.path).model_type))
        if family.conversion is not None:
            gguf_package()
        if quantization_of(m.path) is not None:
            raise HQError(
                f"{m.study.model} is quantized, and a LoRA is merged into dense weights only: name "
                "its source checkpoint as the model."
            )
        for precision in m.study.precisions:
            given = m.models.given(precision) is not None
            if given or file_precision(precision) == GGUF_SOURCE:
                raise HQError(
                    f"At {precision} the study gives a file of the untuned model, so a tuned model "
                    "cannot run there: leave it out of the precisions."
                )
        self.trials.check()
        _ = self.choices, self.neutral
        if not any(self.is_training(p.question.id) for p in self.m.prompted):
            raise HQError(
                f"No question lies in the components of finetune.share = {section.share:g}: raise "
                "it, or give more questions."
            )

    @cached_property
    def trials(self) -> SweepPlan:
        """The trials of the scenarios, with their judge, forms and lengths."""
        stated = SweepSection.of(self.m.study.sections.get("sweep", {}), "the section [sweep]")
        own = self.section
        behaviours = [name for name in SCENARIOS if SCENARIOS[name].questions is None]
        every = (self.m.study.scenario.name, *behaviours)
        return SweepPlan(
            self.m,
            stated.model_copy(
                update={
                    "scenarios": own.scenarios or stated.scenarios or every,
                    "trials": own.trials,
                    "questions": own.questions,
                }
            ),
        )

    @cached_property
    def component(self) -> dict[str, str]:
        """The component of each question, trial and choice, by id."""
        items: dict[str, units.Item] = {}
        for trials in self.trials.offered.values():
            items |= {trial.id: trial for trial in trials}
        items |= {choice.id: choice for choice in self._all_choices}
        items |= {question.id: question for question in self.m.questions}
        return units.components([*items.values()])

    @cached_property
    def training(self) -> frozenset[str]:
        """The components from which training data are taken, unless a sample lies in them."""
        names = np.array(sorted(set(self.component.values())))
        drawn = np.random.default_rng((self.m.study.seed, 1)).random(len(names))
        reserved = {self.component[p.question.id] for p in self.m.prompted if p.part != "sample"}
        return frozenset(names[drawn < self.section.share].tolist()) - reserved

    def is_training(self, id: str) -> bool:
        """Return whether a question, trial or choice is in a component for training."""
        return self.component[id] in self.training

    @property
    def questions(self) -> list[Prompted]:
        """Held-out questions, for the capability."""
        return self.m.held_out(self.section.questions)

    @property
    def texts(self) -> list[PromptResponse]:
        """Held-out texts, at most as many as questions."""
        return self.m.texts[: self.section.questions]

    @cached_property
    def choices(self) -> list[MultipleChoice]:
        """Four-way choices that are not in a component for training."""
        kept = [choice for choice in self._all_choices if not self.is_training(choice.id)]
        if not kept:
            raise HQError("All choices are in components for training: lower finetune.share.")
        return kept[: self.section.questions]

    @cached_property
    def choice_prompts(self) -> list[tuple[int, ...]]:
        """Prompts of the choices as token ids."""
        return [self.m.encode(prompt(choice)) for choice in self.choices]

    @cached_property
    def _all_choices(self) -> list[MultipleChoice]:
        source = self.trials.section.choices or None
        return load_choices(source, self.m.study.seed, None)

    @cached_property
    def neutral(self) -> list[PromptResponse]:
        """Pieces of the file of neutral text; none if the model continues openings instead."""
        if not self.section.text:
            return []
        pieces = self.m.file_texts("neutral", self.section.text, length=64)
        if len(pieces) < 4:
            raise HQError(
                f"The neutral text {self.section.text} has {len(pieces)} pieces of 64 tokens, and "
                "a fourth of them validates: give a longer text."
            )
        return pieces

    @cached_property
    def openings(self) -> list[tuple[int, ...]]:
        """Openings of neutral text as token ids, with the first token that the tokenizer adds."""
        return [tuple(self.m.tokenizer(text).input_ids) for text in OPENINGS]

    @property
    def precisions(self) -> Sequence[str]:
        """The precisions at which every arm is measured, the reference first."""
        others = (p for p in self.m.study.precisions if p != REFERENCE)
        return (REFERENCE, *others)
