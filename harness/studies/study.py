"""Studies: model × precisions × scenario, in one TOML file; every setting has a default."""

import tomllib
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

from harness.studies.section import Section
from hq.errors import HQError
from hq.neurons.cett import Span
from hq.neurons.neuron_set import NeuronSet
from hq.precisions import BACKEND_OF, PRECISIONS
from hq.precisions.packed import Dequantized
from hq.tracing.sampling import Sampling
from hq.tracing.traces import StorageType

SAMPLERS = {"torch": "fp16", "llamacpp": "gguf-q8_0"}  # precision of each sampler of this machine
REFERENCE = "fp16"  # precision of the probe, with which others are compared
Balance = Literal["answer", "text"]
Fraction = Annotated[float, Field(gt=0, lt=1)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]  # the range of all random generators


class ScenarioSection(Section):
    """The scenario, and the options of its loader of questions."""

    name: str = "facts"
    """Name of the scenario: `hq list scenarios`."""
    options: dict[str, str | int | float | bool] = Field(default_factory=dict)
    """Options of its loader of questions, such as `source`, a file or hub id, and `limit`."""


class PromptSection(Section):
    """The form of prompts."""

    form: str = "chat"
    """`chat` (the chat template of the model), `few-shot`, or `plain` (the question alone)."""
    shots: tuple[tuple[str, str], ...] = ()
    """(question, answer) pairs for `few-shot`; default: four general ones."""


class SamplingSection(Section):
    """Number of responses per question, settings of the sampler, and number of pairs."""

    responses: Annotated[int, Field(ge=1)] = 10
    """Responses per question; a question is kept if all of them are right, or all wrong."""
    temperature: Annotated[float, Field(ge=0)] = 1.0
    """Temperature of sampling; 0 is greedy."""
    top_k: Annotated[int, Field(ge=0)] = 50
    """Number of most likely tokens that are sampled from; 0 for all."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 0.9
    """Probability mass of the most likely tokens that are sampled from."""
    max_new_tokens: Annotated[int, Field(ge=1)] = 32
    """The largest length of a response, in tokens; one that is cut off is set aside."""
    quota: Annotated[int, Field(ge=1)] = 1000
    """Pairs of a right and a hallucinated answer; sampling stops when there are as many."""
    balance: Balance = "answer"
    """What a pair shares. `answer`: relation and given answer. `text`: relation, and how well its
    texts predict the label (propensity matching), for answers that rarely repeat."""
    judge: str = "rules"
    """Judge of the responses: `hq list judges`."""
    sampler: Literal["torch", "llamacpp", "openai"] = "torch"
    """What samples the responses: torch at FP16, llama.cpp at Q8_0, or openai, the server in
    [endpoint]."""

    def settings(self, seed: int) -> Sampling:
        """Return the settings of the sampler."""
        return Sampling(
            self.responses,
            self.temperature,
            self.top_k,
            self.top_p,
            self.max_new_tokens,
            seed,
        )


class EndpointSection(Section):
    """The OpenAI-compatible server that samples if `sampling.sampler` is `openai`."""

    url: str = ""
    """Its address, such as http://localhost:8000; the key, if it needs one, is the environment
    variable OPENAI_API_KEY."""
    model: str = ""
    """Name of the model there; default: the only one that it serves."""
    concurrency: Annotated[int, Field(ge=1, le=256)] = 8
    """Requests at a time."""


class ReserveSection(Section):
    """Shares of the questions that never become samples."""

    calibration: Fraction = 0.03
    """Share of the questions that are texts for quantizers."""
    held_out: Fraction = 0.03
    """Share of the questions for perplexity and KL, and for the costs of sweeps."""

    @model_validator(mode="after")
    def _leaves_questions(self) -> Self:
        if self.calibration + self.held_out >= 1:
            raise ValueError("calibration and held_out add up to 1 or more, so no sample is left")
        return self


class IdentifySection(Section):
    """Settings of CETT and the fit of the probe."""

    cett: Literal["sum", "output"] = "sum"
    """Denominator of CETT: the sum of contributions, or the norm of the layer's output."""
    tokens: Span = "answer"
    """Tokens of CETT: the answer, the last token of the prompt, or all other tokens."""
    labels: Literal["1-vs-1", "3-vs-1"] = "1-vs-1"
    """`1-vs-1`: hallucinated against right answers. `3-vs-1`: the other tokens of all answers also
    count as not hallucinated."""
    folds: Annotated[int, Field(ge=3)] = 5
    """Outer folds, and inner folds to choose C."""
    repeats: Annotated[int, Field(ge=1)] = 3
    """Repeats of the inner cross-validation."""
    max_fraction: Fraction = 1e-3
    """The largest share of all neurons that may have a weight."""
    storage: StorageType = "float32"
    """Type of stored traces."""

    @field_validator("labels")
    @classmethod
    def _not_against_itself(cls, labels: str, info: ValidationInfo) -> str:
        if labels == "3-vs-1" and info.data.get("tokens") == "other":
            raise ValueError(
                "3-vs-1 compares the chosen tokens with the other ones, so tokens cannot be 'other'"
            )
        return labels

    @classmethod
    def like(cls, neurons: NeuronSet) -> Self:
        """Return the settings with which a NeuronSet was identified, to re-identify neurons."""
        keys = ("folds", "repeats", "max_fraction")
        stated = {key: value for key, value in neurons.provenance.items() if key in keys}
        if len(stated) < len(keys):
            raise HQError(
                "The neuron set does not say with which folds, repeats and max_fraction it was "
                "identified: "
                "identify it with `hq identify`."
            )
        settings = {"cett": neurons.cett, "tokens": neurons.tokens, "labels": neurons.labels}
        return cls.of({**settings, **stated}, "the neuron set's provenance")


class CompareSection(Section):
    """Controls, and held-out text for perplexity and KL."""

    draws: Annotated[int, Field(ge=2)] = 20
    """Draws of random and of matched neurons."""
    text: str = ""
    """File of plain text for perplexity and KL; default: held-out questions with right answers."""
    text_tokens: Annotated[int, Field(ge=16)] = 1024
    """Tokens of this text."""


class PackSection(Section):
    """Settings of the quantizers that make GPTQ and AWQ checkpoints."""

    group_size: Annotated[int, Field(ge=0)] = 0
    """Weights per scale; 0 is 128 if all widths are multiples of it, else 64."""
    desc_act: bool = False
    """Quantize columns in order of activation; only for GPTQ."""
    sym: bool = True
    """Symmetric codes; AWQ is always asymmetric."""
    texts: Annotated[int, Field(ge=1)] = 128
    """Number of texts for calibration: reserved questions with right answers."""
    text: str = ""
    """File of plain text to calibrate on instead."""
    makings: Annotated[int, Field(ge=1)] = 1
    """Checkpoints per precision, each calibrated on other texts."""


class Study(Section):
    """One study: a model, precisions, questions, and settings of every step."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")] = "study"
    """Name of the study, and of its folder in `runs/`."""
    model: str = "smollm2"
    """A checkpoint folder, a GGUF file, a hub id, or the name of a packaged model."""
    precisions: tuple[str, ...] = (REFERENCE, "nf4")
    """Precisions to compare; `fp16` is always included. `hq list precisions` shows all."""
    seed: Seed = 0
    """Seed of questions, samples, folds and draws."""
    device: Literal["cpu", "cuda", "auto"] | None = None
    """Where the model runs; default: CUDA if there is a GPU. `auto` distributes its layers over all
    GPUs and, where these are full, the memory of the CPU; the table `precisions` says where."""
    stream: Literal["auto", "always", "never"] = "auto"
    """Whether traces read the model layer by layer, which changes no result. `auto`: if the model
    does not fit into memory. Steps that need the whole model load it in any case."""
    responses: str = ""
    """File of `hq responses export` with the responses to the questions, which are then not
    sampled; default: sample them."""
    scenario: ScenarioSection = ScenarioSection()
    prompt: PromptSection = PromptSection()
    sampling: SamplingSection = SamplingSection()
    endpoint: EndpointSection = EndpointSection()
    reserve: ReserveSection = ReserveSection()
    identify: IdentifySection = IdentifySection()
    compare: CompareSection = CompareSection()
    pack: PackSection = PackSection()
    checkpoints: dict[str, str] = Field(default_factory=dict)
    """Existing packed checkpoints of the model, by precision."""
    experiment: str = "detect"
    """Experiment that `hq run` runs."""
    sections: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Sections of experiments, by their names, as in the file."""

    @model_validator(mode="before")
    @classmethod
    def _sections_of_experiments(cls, values: Any) -> Any:
        """Move tables of the file that are not sections of the study to `sections`."""
        if not isinstance(values, dict):
            return values
        own = {k: v for k, v in values.items() if k in cls.model_fields or not isinstance(v, dict)}
        others = {k: v for k, v in values.items() if k not in own}
        return own | {"sections": {**own.get("sections", {}), **others}} if others else own

    @field_validator("checkpoints")
    @classmethod
    def _packed(cls, given: dict[str, str]) -> dict[str, str]:
        for name in given:
            if name not in PRECISIONS or not isinstance(PRECISIONS[name], Dequantized):
                known = [n for n in PRECISIONS if isinstance(PRECISIONS[n], Dequantized)]
                raise ValueError(f"{name} is not read from a checkpoint, only {', '.join(known)}")
        return given

    @classmethod
    def load(cls, source: str) -> Self:
        """Load the study in a TOML file, or the packaged study of that name.

        Raises HQError if there is no such file, if it is not valid TOML, or if a key or value is
        wrong.
        """
        path = Path(source)
        packaged = files("harness") / "studies" / f"{source}.toml"
        if not path.is_file() and not packaged.is_file():
            known = packaged_studies()
            raise HQError(f"There is no study {source!r}: name a TOML file, or one of {known}.")
        try:
            text = (path if path.is_file() else packaged).read_text(encoding="utf-8")
            values = tomllib.loads(text)
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise HQError(f"{source} is not valid TOML: {error}.") from error
        return cls.of(values, f"the study {source}")

    def changed(self, **changes: object) -> Self:
        """Return the study with other top-level values; None leaves a value as it is.

        The reference precision is always included, as the first. Raises HQError if a precision is
        unknown.
        """
        given = {key: value for key, value in changes.items() if value is not None}
        study = self.model_copy(update=given)
        for precision in study.precisions:
            BACKEND_OF[precision]  # raises HQError if the name is unknown
        rest = tuple(p for p in dict.fromkeys(study.precisions) if p != REFERENCE)
        return study.model_copy(update={"precisions": (REFERENCE, *rest)})

    def overridden(self, overrides: Sequence[str]) -> Self:
        """Return the study with other values, each given as `KEY=VALUE` with dots in the key.

        Values are TOML; text needs no quotes. Raises HQError if an override is malformed, or if a
        key or value is wrong.
        """
        values = self.model_dump(exclude_unset=True)
        sections = values.pop("sections", {})
        for override in overrides:
            key, equals, text = override.partition("=")
            if not equals or not key:
                raise HQError(
                    f"--set {override} has no key or value: write KEY=VALUE, as sampling.quota=100."
                )
            *path, last = key.strip().split(".")
            table = sections if path and path[0] not in type(self).model_fields else values
            for part in path:
                table = table.setdefault(part, {})
                if not isinstance(table, dict):
                    raise HQError(f"--set {override}: {part} is not a section, so it has no keys.")
            table[last] = _toml_value(text)
        return type(self).of({**values, **sections}, "the options --set")

    def reading(self, source: str) -> Self:
        """Return the study with the questions in this file."""
        options = self.scenario.options | {"source": source}
        scenario = ScenarioSection(name=self.scenario.name, options=options)
        return self.model_copy(update={"scenario": scenario})


def packaged_studies() -> list[str]:
    """Return the names of the studies in this package, sorted."""
    paths = (files("harness") / "studies").iterdir()
    return sorted(path.name[:-5] for path in paths if path.name.endswith(".toml"))


def _toml_value(text: str) -> Any:
    """Parse a value as TOML; return the text itself if it is not TOML."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
