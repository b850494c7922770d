"""The one way through: from a study to its tables, each stage built once and found again."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from harness import scenarios
from harness.experiments.detect.compare import Comparison
from harness.judges import base as judges
from harness.models.requirements import packages_to_make, require_packages
from harness.models.sources import gguf_of, resolve_model
from harness.scenarios import prompts
from harness.stages import identify, mapping, sample, splits, trace, uncertainty
from harness.stages.samples import Sample, require_origin, samples_digest
from harness.stages.variants import SPELLING, Variants
from harness.store.environment import FIT, machine_class, versions
from harness.store.progress import Progress
from harness.store.store import Store, digest
from harness.studies.study import REFERENCE, SAMPLERS, Study
from harness.tables.schema import KINDS, Row
from hq.backends.base import Backend, require_length
from hq.backends.opening import max_rows
from hq.errors import HQError
from hq.models.auto import context_length
from hq.models.checkpoint import checkpoint_identity, end_tokens, resolve, whole_config
from hq.models.tokenizer import load_tokenizer
from hq.neurons.cett import Measure, Span
from hq.neurons.neuron_set import ModelIdentity, NeuronSet
from hq.neurons.prompt_response import PromptResponse
from hq.precisions.gguf import SOURCE as GGUF_SOURCE
from hq.precisions.packed import NATIVE, recipe_of
from hq.tracing.sampling import Sampling, StopCriteria
from hq.tracing.traces import Traces, exchanges_digest


@dataclass
class Pipeline:
    """A study's stages, in a store. Models are loaded when a stage needs one, one at a time."""

    study: Study
    store: Store
    progress: Progress

    def __enter__(self) -> "Pipeline":
        return self

    def __exit__(self, *_: object) -> None:
        if "variants" in vars(self):
            self.variants.close()

    def tables(self) -> dict[str, list[Row]]:
        """The rows of every precision, table by table."""
        self.check()
        tables: dict[str, list[Row]] = {name: [] for name in KINDS["study"]}
        for precision in self.study.precisions:
            for name, rows in self.comparison(precision).tables().items():
                tables[name] += rows
            probe = [(n.layer, n.index) for n in self.neurons(REFERENCE).neurons]
            tables["mapping"].append(
                mapping.summary(self.variants.mapping(precision), precision, probe)
            )
        return tables

    def check(self) -> None:
        """Raises HQError for what is wrong with the study, before hours of work.

        Questions, prompt form, template, held-out and calibration text, lengths, judge, and what
        each precision needs: its packages, and the files that the study names for it, whose
        neurons have to be the model's.
        """
        study = self.study
        made = {p.removesuffix(NATIVE) for p in study.precisions if packages_to_make(p)}
        require_packages((*study.precisions, SAMPLERS[study.sampling.sampler]), study.checkpoints)
        for name in made & set(study.checkpoints):
            resolve(study.checkpoints[name])
        if GGUF_SOURCE in study.precisions:
            gguf_of(study.model)
        _ = self.judge, self.ending
        self._require_room()
        for number, text in enumerate(self.texts):
            self.require_length(f"Held-out text {number}", text.ids)
        if study.pack.text and any(recipe_of(p) for p in made - set(study.checkpoints)):
            _ = self._calibration
        self.variants.require_given()

    def comparison(self, precision: str) -> Comparison:
        """A precision beside the reference."""
        neurons, reference = self.neurons(REFERENCE), self.traces(REFERENCE)
        require_origin(neurons, self.samples, reference)
        self.require_probe(precision)
        return Comparison(
            samples=self.samples,
            neurons=neurons,
            reference=reference,
            variant=self.traces(precision),
            again=self.neurons(precision),
            uncertainty=self.uncertainty(precision),
            section=self.study.compare,
            seed=self.study.seed,
            text_components=self.text_components,
        )

    @cached_property
    def path(self) -> Path:
        """The checkpoint's folder."""
        return resolve_model(self.study.model)

    @cached_property
    def model(self) -> ModelIdentity:
        """Who the checkpoint is."""
        return checkpoint_identity(self.path)

    @cached_property
    def tokenizer(self) -> Any:
        """The checkpoint's tokenizer. Raises HQError for a checkpoint without one."""
        return load_tokenizer(self.path)

    @cached_property
    def form(self) -> prompts.PromptForm:
        """How a question is put."""
        return prompts.form(self.study.prompt.form, self.study.prompt.shots)

    @cached_property
    def questions(self) -> scenarios.Questions:
        """The scenario's questions in their fixed order."""
        section = self.study.scenario
        return scenarios.load(section.name, seed=self.study.seed, **section.options)

    @cached_property
    def prompted(self) -> list[sample.Prompted]:
        """Every question of the scenario in its fixed order, as tokens, with its split."""
        questions = self.questions
        side = splits.assign(questions, self.study.split.model_dump(), self.study.seed)
        component = splits.components(questions)
        return [
            sample.Prompted(
                question=question,
                ids=tuple(self.form.encode(self.tokenizer, question.question)),
                split=side[question.id],
                component=component[question.id],
            )
            for question in questions
        ]

    @cached_property
    def responses(self) -> Path:
        """Stage `sample`: what was asked for this quota in these splits, out of a log for any."""
        section, settings, judge = self.study.sampling, self._sampling, self.judge
        asked = [p.model_dump(mode="json", exclude={"split", "component"}) for p in self.prompted]
        precision = SAMPLERS[section.sampler]
        responses = self.generates_on(precision, self.ending) | {
            "questions": digest(asked),
            "sampling": asdict(settings),
            "judge": judge.identity,
        }
        inputs = {
            "responses": responses,
            "quota": section.quota,
            "splits": digest([[p.split, p.component] for p in self.prompted]),
        }

        def make(folder: Path) -> None:
            with (
                self.store.growing(sample.RESPONSES, responses) as log,
                self.progress.task("sample responses", len(self.prompted), "questions") as task,
            ):
                records = sample.collect(
                    log / sample.LOG_FILE,
                    lambda: self.backend(precision).decoding(),
                    self.prompted,
                    settings,
                    self.ending,
                    judge,
                    section.quota,
                    task,
                    max_rows(precision),
                )
            sample.write_records(folder, records)

        return self.store.build(sample.STAGE, inputs, make)

    def require_length(self, text: str, ids: Sequence[int], new: int = 0) -> None:
        """Raises HQError, naming the text, where it and `new` tokens exceed the model's limit."""
        require_length(text, len(ids), self._context_length, self.path.name, new)

    def _require_room(self) -> None:
        """Raises HQError where the longest question leaves no room for a response."""
        for longest in sorted(self.prompted, key=lambda p: -len(p.ids))[:1]:
            question, new = f"Question {longest.question.id!r}", self.study.sampling.max_new_tokens
            self.require_length(question, longest.ids, new)

    @cached_property
    def _context_length(self) -> int | None:
        return context_length(whole_config(self.path))

    @property
    def _sampling(self) -> Sampling:
        return self.study.sampling.settings(self.study.seed)

    @cached_property
    def judge(self) -> judges.Judge:
        """Whose verdicts label the responses."""
        return judges.judge(self.study.sampling.judge)

    @cached_property
    def samples(self) -> list[Sample]:
        """The balanced, consistent samples."""
        return sample.retain(self.responses, self.prompted, self.study.sampling.quota)

    @cached_property
    def exchanges(self) -> list[PromptResponse]:
        """The samples' token ids."""
        return [sample.exchange for sample in self.samples]

    @property
    def measures(self) -> tuple[Measure, ...]:
        """What is traced: the CETT that identifies, and the contribution that is compared."""
        return (self.study.identify.cett, "contribution")

    @property
    def spans(self) -> tuple[Span, ...]:
        """Where it is traced."""
        section = self.study.identify
        return (section.tokens, "other") if section.labels == "3-vs-1" else (section.tokens,)

    def traces(self, precision: str) -> Traces:
        """Stage `trace` at one precision."""
        return Traces.open(self.traces_folder(precision))

    def traces_folder(self, precision: str) -> Path:
        """The folder of stage `trace`, of the samples."""
        return self.trace(precision, self.exchanges, self.measures, self.spans)

    def trace(
        self,
        precision: str,
        exchanges: Sequence[PromptResponse],
        measures: tuple[Measure, ...],
        spans: tuple[Span, ...],
    ) -> Path:
        """The folder of stage `trace`, of any exchanges."""
        inputs = self._cell(precision, exchanges) | {
            "measures": measures,
            "spans": spans,
            "storage": self.study.identify.storage,
        }

        def make(folder: Path) -> None:
            with self.progress.task(f"trace {precision}", len(exchanges), "texts") as task:
                backend = self.backend(precision)
                trace.trace(folder, backend, exchanges, measures, spans, task)

        return self.store.build(trace.STAGE, inputs, make)

    def neurons(self, precision: str) -> NeuronSet:
        """Stage `identify` at one precision."""
        return NeuronSet.load(self.neurons_folder(precision) / identify.NEURONS_FILE, self.model)

    def neurons_folder(self, precision: str) -> Path:
        """The folder of stage `identify`: neurons.json and path.csv."""
        traces, section, seed = self.traces(precision), self.study.identify, self.study.seed
        inputs = {
            "packages": versions(*FIT),
            "machine": machine_class(),
            "traces": traces.folder.name,
            "samples": samples_digest(self.samples),
            "identify": section.model_dump(),
            "prompt": self.study.prompt.form,
            "seed": seed,
        }

        def make(folder: Path) -> None:
            with self.progress.task(f"identify {precision}", 1, "fits") as task:
                form = self.study.prompt.form
                identify.find_neurons(folder, traces, self.samples, section, seed, form)
                task.advance(1)

        return self.store.build(identify.STAGE, inputs, make)

    def uncertainty(self, precision: str) -> uncertainty.Uncertainty:
        """Stage `uncertainty` at one precision."""
        return uncertainty.read(self.uncertainty_folder(precision))

    def uncertainty_folder(self, precision: str) -> Path:
        """The folder of stage `uncertainty`."""
        reference = None if precision == REFERENCE else self.uncertainty_folder(REFERENCE)
        inputs = self._cell(precision, self.exchanges) | {
            "texts": exchanges_digest(self.texts),
            "reference": None if reference is None else reference.name,
        }

        def make(folder: Path) -> None:
            total = len(self.exchanges) + len(self.texts)
            with self.progress.task(f"logits {precision}", total, "texts") as task:
                uncertainty.measure(
                    folder,
                    self.backend(precision),
                    self.exchanges,
                    self.texts,
                    reference,
                    task,
                )

        return self.store.build(uncertainty.STAGE, inputs, make)

    @cached_property
    def texts(self) -> list[PromptResponse]:
        """Held-out text, up to the study's number of tokens, in the order that it is met."""
        section = self.study.compare
        texts = self._file_texts(section.text) if section.text else self._true_answers()
        ends = np.cumsum([len(text.response) for text in texts])
        return texts[: int(np.searchsorted(ends, section.text_tokens)) + 1]

    @cached_property
    def ending(self) -> StopCriteria:
        """What ends a response in the study's own prompt form."""
        return self.ending_of(self.form)

    def ending_of(self, form: prompts.PromptForm) -> StopCriteria:
        """What ends a response: the prompt form's tokens and strings, and the model's tokens."""
        stops = form.stop_ids(self.tokenizer) | end_tokens(self.path)
        return StopCriteria(stops, form.stop_strings, self._decode)

    @cached_property
    def variants(self) -> Variants:
        """The model at each precision."""
        return Variants(
            self.study, self.store, self.progress, self.path, self.model, lambda: self._calibration
        )

    def require_probe(self, precision: str) -> None:
        """Raises HQError where a neuron of the reference's set is not found at a precision."""
        if precision != REFERENCE:
            folder = self.variants.mapping(precision)
            mapping.require(folder, precision, self.neurons(REFERENCE))

    def backend(self, precision: str) -> Backend:
        """The model at a precision; the one loaded before is freed."""
        return self.variants.backend(precision)

    @cached_property
    def _calibration(self) -> list[tuple[int, ...]]:
        """Texts that quantizers see: of training questions, never of the test split."""
        section = self.study.pack
        if section.text:
            return [e.ids for e in self._file_texts(section.text)][: section.texts]
        trained = [p for p in self.prompted if p.split == "train"][: section.texts]
        return [p.ids + self.encode(f" {p.question.aliases[0]}") for p in trained]

    def _cell(self, precision: str, exchanges: Sequence[PromptResponse]) -> dict[str, object]:
        return self.variants.runs_on(precision) | {"exchanges": exchanges_digest(exchanges)}

    def generates_on(self, precision: str, ending: StopCriteria) -> dict[str, object]:
        """What a response depends on, besides its prompt and how it is drawn."""
        return self.variants.runs_on(precision, SPELLING) | {
            "stop_strings": ending.strings,
            "stop_tokens": sorted(ending.tokens),
        }

    @property
    def text_components(self) -> list[str] | None:
        """Which texts share an entity; None for pieces of a file, which stand alone."""
        if self.study.compare.text:
            return None
        return [p.component for p in self.prompted if p.split == "test"][: len(self.texts)]

    def _true_answers(self) -> list[PromptResponse]:
        tests = [p for p in self.prompted if p.split == "test"]
        return [PromptResponse(p.ids, self.encode(f" {p.question.aliases[0]}")) for p in tests]

    def _file_texts(self, path: str, length: int = 256) -> list[PromptResponse]:
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise HQError(f"The held-out text {path} cannot be read: {error}.") from error
        ids = self.encode(text)
        if len(ids) < 2:
            raise HQError(f"The held-out text {path} is empty: name a file with some prose.")
        pieces = [ids[start : start + length] for start in range(0, len(ids) - 1, length)]
        return [PromptResponse(piece[:1], piece[1:]) for piece in pieces if len(piece) > 1]

    def encode(self, text: str) -> tuple[int, ...]:
        """A text's token ids, without special tokens around them."""
        return tuple(self.tokenizer(text, add_special_tokens=False).input_ids)

    def _decode(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(ids)))
