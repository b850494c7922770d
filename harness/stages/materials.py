"""The model, questions, prompts and texts of a study: everything known before a node runs."""

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from harness.judges.base import Judge
from harness.judges.registry import make_judge
from harness.models.requirements import packages_to_make, require_packages
from harness.models.sources import gguf_of, resolve_model
from harness.scenarios import prompts
from harness.scenarios.questions import QuestionSet, load_questions
from harness.stages import served, units
from harness.stages.loading import Models
from harness.stages.recorded import Recorded, load
from harness.stages.samples import Prompted
from harness.stages.units import Part
from harness.store.node import Output
from harness.studies.study import SAMPLERS, PromptSection, Study
from hq.backends.base import require_length
from hq.backends.streamed.backend import require_streamable
from hq.errors import HQError
from hq.models.architectures.llama_cpp import head_width
from hq.models.auto import context_length
from hq.models.checkpoint import (
    checkpoint_identity,
    end_tokens,
    resolve,
    text_config,
    whole_config,
)
from hq.models.tokenizer import load_tokenizer
from hq.neurons.cett import Measure, Span
from hq.neurons.neuron_set import ModelIdentity
from hq.neurons.prompt_response import PromptResponse
from hq.precisions.gguf import GGUF_SOURCE, PLUS, file_precision, require_head_widths
from hq.precisions.packed import NATIVE, recipe_of
from hq.tracing.sampling import Sampling, StopCriteria

T = TypeVar("T")


class Materials:
    """The model, questions, prompts and texts of a study. Properties are computed on first use."""

    def __init__(
        self, study: Study, beside: "Materials | None" = None, other_model: bool = False
    ) -> None:
        """Prepare the materials of a study.

        Args:
            study: The study.
            beside: Materials of the same model with other questions, whose loaded model and
                calibration texts are used.
            other_model: Whether `beside` has another model, which is freed before this one loads.
        """
        self.study = study
        self.scope = "" if beside is None else study.name
        """Part of the names of nodes that depend on the questions; empty for the study of a run."""
        self.model_scope = study.name if other_model else ""
        """Part of the names of nodes that depend on the model only; empty for that of a run."""
        self._beside = None if other_model else beside
        self._other = beside if other_model else None
        self.made: Output | None = None
        """The output with the checkpoint, if a node makes it."""
        self._added: dict[Callable[..., Any], Any] = {}

    def __enter__(self) -> "Materials":
        return self

    def __exit__(self, *_: object) -> None:
        if "models" in vars(self):
            self.models.close()

    def of(self, kind: Callable[["Materials"], T]) -> T:
        """Return the materials of one experiment, `kind(self)`, which is called once."""
        if kind not in self._added:
            self._added[kind] = kind(self)
        added: T = self._added[kind]
        return added

    def of_variant(self, name: str, checkpoint: Output) -> "Materials":
        """Return the materials of a checkpoint that a node makes from the study's.

        It has the same neurons, config and tokenizer. Its weights are known when the node is
        finished, so `model` is still the study's model.
        """
        variant = Materials(self.study, beside=self)
        variant.scope = variant.model_scope = name
        variant.made = checkpoint
        return variant

    def with_questions_of(self, name: str) -> "Materials":
        """Return the materials of another study's questions, prompts and sampling.

        Everything else is of this study: the model, its precisions, the settings of identification
        and the seed. Raises HQError if there is no such study, or if its questions are the same.
        """
        other, own = Study.load(name), self.study
        if (other.scenario, other.prompt) == (own.scenario, own.prompt):
            raise HQError(
                f"The study {name} asks the questions of {own.name} in the same form: name a study "
                "of another scenario."
            )
        parts = {
            part: getattr(other, part)
            for part in ("scenario", "prompt", "sampling", "reserve", "responses")
        }
        return Materials(own.model_copy(update={"name": other.name, **parts}), beside=self)

    def with_model(self, model: str, name: str, prompt: PromptSection) -> "Materials":
        """Return the materials of another model, which is asked the same questions.

        Its nodes have `name` in their names. Packed checkpoints and responses that the study gives
        are of its own model, so they are left out. Raises HQError if an endpoint samples, which
        serves the study's own model.
        """
        if self.study.sampling.sampler == served.SAMPLER:
            raise HQError(
                f"The experiment also asks {model}, which the endpoint does not serve: use the "
                "sampler torch or llamacpp."
            )
        given = {"checkpoints": {}, "responses": ""}
        changes = {"name": name, "model": model, "prompt": prompt, **given}
        return Materials(self.study.model_copy(update=changes), beside=self, other_model=True)

    def check(self) -> None:
        """Validate the study before the first node runs.

        This covers questions, prompt form, template, held-out and calibration text, lengths, judge,
        and for each precision its packages and the files that the study gives. Raises HQError.
        """
        study = self.study
        made = {p.removesuffix(NATIVE) for p in study.precisions if packages_to_make(p)}
        if study.stream == "always":
            for precision in study.precisions:
                require_streamable(self.models.given(precision) or self.path, precision)
        sampled = [SAMPLERS[s] for s in (study.sampling.sampler,) if s in SAMPLERS]
        require_packages((*study.precisions, *sampled), study.checkpoints)
        for name in {p.removesuffix(NATIVE) for p in study.precisions} & set(study.checkpoints):
            resolve(study.checkpoints[name])
        if GGUF_SOURCE in map(file_precision, study.precisions):
            gguf_of(study.model)
        for precision in study.precisions:
            if PLUS in precision:
                width = head_width(text_config(self.path))
                require_head_widths(precision, (width,), study.model)
        self.check_questions()
        for number, text in enumerate(self.texts):
            self.require_length(f"Held-out text {number}", text.ids)
        calibrated = {p for p in made if recipe_of(p)}
        if calibrated - set(study.checkpoints):
            _ = self.calibrations
        if study.pack.makings > 1 and (given := sorted(calibrated & set(study.checkpoints))):
            raise HQError(
                f"The study gives one checkpoint of {given[0]} and sets pack.makings to "
                f"{study.pack.makings}: set it to 1, or remove {given[0]} from [checkpoints]."
            )

    def check_questions(self) -> None:
        """Validate the judge, the questions, the lengths of their prompts, and given responses.

        Raises HQError.
        """
        _ = self.judge, self.stop_criteria
        self._require_room()
        if self.recorded is None and self.study.sampling.sampler == served.SAMPLER:
            _ = self.served_model

    @cached_property
    def path(self) -> Path:
        """The checkpoint's folder."""
        return resolve_model(self.study.model)

    @cached_property
    def model(self) -> ModelIdentity:
        """Name, fingerprint and shape of the checkpoint."""
        if self._beside is not None:
            return self._beside.model
        return checkpoint_identity(self.path)

    @property
    def weights(self) -> int:
        """Number of weights of the checkpoint, by the size of its files at 16 bits per weight."""
        return self.models.weights

    def resident(self, precision: str) -> int:
        """Estimate the bytes of the loaded model: float32 on a CPU, 16 bits elsewhere."""
        return self.models.resident(precision)

    @cached_property
    def models(self) -> Models:
        """The checkpoint at each precision, with at most one loaded model."""
        if self._beside is not None:
            return self._beside.models
        other = None if self._other is None else self._other.models
        return Models(self.study, self.path, self.model, other)

    @cached_property
    def tokenizer(self) -> Any:
        """The checkpoint's tokenizer. Raises HQError if the checkpoint has none."""
        return load_tokenizer(self.path)

    @cached_property
    def form(self) -> prompts.PromptForm:
        """The form of the prompts."""
        return prompts.form(self.study.prompt.form, self.study.prompt.shots)

    @cached_property
    def questions(self) -> QuestionSet:
        """The questions of the scenario, in a fixed order."""
        section = self.study.scenario
        return load_questions(section.name, seed=self.study.seed, **section.options)

    @cached_property
    def prompted(self) -> list[Prompted]:
        """Every question of the scenario, in a fixed order, as token ids, with its part."""
        questions, reserve = self.questions, self.study.reserve
        shares: dict[Part, float] = {
            "calibration": reserve.calibration,
            "held-out": reserve.held_out,
        }
        part_of = units.assign_parts(questions, shares, self.study.seed)
        component = units.components(questions)
        return [
            Prompted(
                question=question,
                ids=tuple(self.form.encode(self.tokenizer, question.question)),
                part=part_of[question.id],
                component=component[question.id],
            )
            for question in questions
        ]

    def held_out(self, count: int) -> list[Prompted]:
        """Return the first `count` held-out questions. Raises HQError if there are none."""
        return self._reserved("held-out")[:count]

    @property
    def sampling(self) -> Sampling:
        """Settings of the sampler."""
        return self.study.sampling.settings(self.study.seed)

    @cached_property
    def judge(self) -> Judge:
        """The judge that labels the responses."""
        return make_judge(self.study.sampling.judge)

    @cached_property
    def recorded(self) -> Recorded | None:
        """The responses in the study's file; None if they are sampled. Raises HQError."""
        return load(self)

    @cached_property
    def served_model(self) -> str:
        """The name of the model at the study's endpoint. Raises HQError if it is not known."""
        return served.find_model(self)

    @property
    def measures(self) -> tuple[Measure, ...]:
        """The CETT that identifies neurons, and the contribution that is compared."""
        return (self.study.identify.cett, "contribution")

    @property
    def spans(self) -> tuple[Span, ...]:
        """The token spans that are traced."""
        section = self.study.identify
        return (section.tokens, "other") if section.labels == "3-vs-1" else (section.tokens,)

    @cached_property
    def texts(self) -> list[PromptResponse]:
        """Held-out texts for perplexity and KL: pieces of a file, or questions and answers."""
        section = self.study.compare
        texts = self.file_texts("held-out", section.text) if section.text else self._true_answers()
        ends = np.cumsum([len(text.response) for text in texts])
        return texts[: int(np.searchsorted(ends, section.text_tokens)) + 1]

    @property
    def text_components(self) -> list[str] | None:
        """The component of each text; None for pieces of a file, which are independent."""
        if self.study.compare.text:
            return None
        return [p.component for p in self.held_out(len(self.texts))]

    @cached_property
    def calibrations(self) -> list[list[tuple[int, ...]]]:
        """Texts that calibrate each making: pieces of a file, or reserved questions with answers.

        Making 0 has the first texts, a further one a random draw of as many. Raises HQError if
        draws would share more than half of their texts on average.
        """
        if self._beside is not None:
            return self._beside.calibrations
        section, seed = self.study.pack, self.study.seed
        if section.text:
            pool = [e.ids for e in self.file_texts("calibration", section.text)]
        else:
            reserved = self._reserved("calibration")
            pool = [p.ids + self.encode(f" {p.question.aliases[0]}") for p in reserved]
        if section.makings > 1 and len(pool) < 2 * section.texts:
            more = "give a longer pack.text" if section.text else "raise reserve.calibration"
            raise HQError(
                f"There are {len(pool)} calibration texts, of which pack.makings = "
                f"{section.makings} draws {section.texts} for each checkpoint; draws from fewer "
                f"than twice as many are nearly the same: {more}, or lower pack.texts."
            )
        draws = [
            np.sort(np.random.default_rng((seed, making)).permutation(len(pool))[: section.texts])
            for making in range(1, section.makings)
        ]
        return [pool[: section.texts], *([pool[i] for i in draw] for draw in draws)]

    @cached_property
    def stop_criteria(self) -> StopCriteria:
        """Stop criteria of responses in the study's own prompt form."""
        return self.stop_criteria_of(self.form)

    def stop_criteria_of(self, form: prompts.PromptForm) -> StopCriteria:
        """Return the stop criteria: tokens and strings of the prompt form, tokens of the model."""
        stops = form.stop_ids(self.tokenizer) | end_tokens(self.path)
        return StopCriteria(stops, form.stop_strings, self._decode)

    def require_length(self, text: str, ids: Sequence[int], new: int = 0) -> None:
        """Raises HQError, naming the text, if it and `new` tokens exceed the model's limit."""
        require_length(text, len(ids), self._context_length, self.path.name, new)

    def encode(self, text: str) -> tuple[int, ...]:
        """Return the token ids of a text, without special tokens around them."""
        return tuple(self.tokenizer(text, add_special_tokens=False).input_ids)

    def _require_room(self) -> None:
        """Raises HQError if the longest question leaves no room for a response."""
        for longest in sorted(self.prompted, key=lambda p: -len(p.ids))[:1]:
            question, new = f"Question {longest.question.id!r}", self.study.sampling.max_new_tokens
            self.require_length(question, longest.ids, new)

    @cached_property
    def _context_length(self) -> int | None:
        return context_length(whole_config(self.path))

    def _true_answers(self) -> list[PromptResponse]:
        answered = ((p.ids, p.question.aliases[0]) for p in self._reserved("held-out"))
        return [PromptResponse(ids, self.encode(f" {answer}")) for ids, answer in answered]

    def _reserved(self, part: Part) -> list[Prompted]:
        reserved = [p for p in self.prompted if p.part == part]
        if not reserved:
            groups = len({p.component for p in self.prompted})
            raise HQError(
                f"No question is reserved as {part}, of {len(self.prompted)} in {groups} groups "
                "that share an entity or a wording: raise "
                f"reserve.{part.replace('-', '_')}, or give more questions."
            )
        return reserved

    def file_texts(self, use: str, path: str, length: int = 256) -> list[PromptResponse]:
        """Return the pieces of a text file, each of at most `length` tokens.

        Raises HQError, naming the `use` of the text, if it cannot be read or is empty.
        """
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise HQError(f"The {use} text {path} cannot be read: {error}.") from error
        ids = self.encode(text)
        if len(ids) < 2:
            raise HQError(f"The {use} text {path} is empty: give a file with some prose.")
        pieces = [ids[start : start + length] for start in range(0, len(ids) - 1, length)]
        return [PromptResponse(piece[:1], piece[1:]) for piece in pieces if len(piece) > 1]

    def _decode(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(ids)))
