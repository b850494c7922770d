"""A monitor bundle: everything that monitoring a served model needs, validated on one model file.

It is a verified folder (`hq.storage.verified_folder`) of JSON and safetensors: the NeuronSet, the
norms of its neurons in that file, thresholds by domain with the false-alarm rate that each
promises, the calibration scores behind them, results on held-out answers, and a model card.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Self

import numpy as np
from jaxtyping import Float
from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as record
from safetensors import SafetensorError
from safetensors.numpy import load, save

from hq.errors import HQError
from hq.gguf.file import GGUFFile
from hq.monitor.combination import Combination
from hq.neurons.neuron_set import ModelIdentity, NeuronSet
from hq.precisions.gguf import attention_of, source_precision
from hq.stats.intervals import Estimate
from hq.stats.thresholds import match_quantile
from hq.storage.verified_folder import read_verified_folder, sha256_of, write_verified_folder

BUNDLE_SCHEMA = 1
ALL = "all"  # the domain of all questions
NEURONS, DOMAINS, VALIDATION, ARRAYS, CARD = (
    "neurons.json",
    "domains.json",
    "validation.json",
    "arrays.safetensors",
    "MODEL_CARD.md",
)
FILES = frozenset((NEURONS, DOMAINS, VALIDATION, ARRAYS, CARD))

BUNDLE_NAME = "[a-z0-9][a-z0-9._-]*"

_STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)
Share = Annotated[float, Field(gt=0, lt=1)]
Count = Annotated[int, Field(gt=0)]


def _finite(estimate: Estimate) -> Estimate:
    if not np.isfinite([estimate.value, estimate.low, estimate.high]).all():
        raise ValueError("an estimate is a finite number with a finite interval")
    return estimate


Finite = Annotated[Estimate, AfterValidator(_finite)]


@record(frozen=True, config=_STRICT)
class Domain:
    """A group of questions with its own threshold.

    Right answers to new questions of the domain, drawn like the calibration questions, score at or
    above `threshold` with a probability of at most `false_alarms`; `n` entities set the threshold.
    """

    threshold: float
    false_alarms: Share
    n: Count
    realised: Finite | None = None  # share of held-out right answers at or above the threshold
    detected: Finite | None = None  # share of held-out hallucinated answers there


@record(frozen=True, config=_STRICT)
class ModelFile:
    """The model file on which the bundle was validated."""

    name: str
    storage: str  # types of its weights
    bytes: Count
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    identity: ModelIdentity


@record(frozen=True, config=_STRICT)
class Validation:
    """Results of the score in that file, on answers that neither it nor a threshold used."""

    auroc: Finite
    n: Count  # answers
    entities: Count  # independent units, which intervals leave out one at a time
    hallucinated: Count
    seed: int
    study: str
    samples: str  # digest of the answers with their labels and splits
    # Of the same answers; None in bundles that were made before these were measured.
    entropy: Finite | None = None  # AUROC of the mean token entropy
    log_probability: Finite | None = None  # AUROC of the mean log-probability of the tokens
    uncertainty: Finite | None = None  # AUROC of both together, fitted on other folds
    probe: Finite | None = None  # AUROC of H-Neurons
    combined: Finite | None = None  # AUROC of H-Neurons and both
    combined_minus_uncertainty: Finite | None = None  # paired differences of AUROCs
    combined_minus_entropy: Finite | None = None
    combined_minus_probe: Finite | None = None


@record(frozen=True, config=_STRICT)
class BundleFacts:
    """The facts in the manifest."""

    name: Annotated[str, Field(pattern=f"^{BUNDLE_NAME}$")]
    hq: str  # version that made it
    precision: str
    compute: str
    prompt: str
    model: ModelFile
    combination: Combination | None = None  # None: the score is that of H-Neurons


@dataclass(frozen=True, eq=False)
class Bundle:
    """A bundle that was read and verified byte by byte."""

    digest: str  # SHA-256 of the manifest, hex, which names the bundle in logs
    facts: BundleFacts
    neurons: NeuronSet
    domains: Mapping[str, Domain]  # with ALL
    validation: Validation
    norms: Float[np.ndarray, " k"]  # ‖W_down[:, i]‖₂ of the set's neurons in the model file
    scores: Float[np.ndarray, " n"]  # of all calibration answers, ascending
    right: Float[np.ndarray, " m"]  # of those that are right, ascending
    card: str

    @property
    def name(self) -> str:
        """The name of the bundle."""
        return self.facts.name

    @property
    def precision(self) -> str:
        """The precision of its model file, as in hq's tables."""
        return self.facts.precision

    @property
    def source_precision(self) -> str:
        """`gguf-source` with the suffix of the bundle: opens its file as it was validated."""
        return source_precision(self.facts.precision)

    @property
    def prompt(self) -> str:
        """The prompt form with which the set was found."""
        return self.facts.prompt

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read and verify a bundle.

        Raises HQError if the folder is missing, has another schema version or changed bytes, or has
        fields that no bundle has.
        """
        sealed = read_verified_folder(path, BUNDLE_SCHEMA, FILES)
        arrays = _arrays(path, sealed.files[ARRAYS])
        bundle = cls(
            digest=sealed.digest,
            facts=_parse(path, "manifest.json", BundleFacts, sealed.facts),
            neurons=_parse(path, NEURONS, NeuronSet, sealed.files[NEURONS]),
            domains=_parse(path, DOMAINS, dict[str, Domain], sealed.files[DOMAINS]),
            validation=_parse(path, VALIDATION, Validation, sealed.files[VALIDATION]),
            card=sealed.files[CARD].decode(errors="replace"),
            **arrays,
        )
        bundle._require_consistent(path)
        return bundle

    def require(self, file: GGUFFile) -> None:
        """Raises HQError for another model, and for a file other than the validated one."""
        self.neurons.require(file.identity, f"The bundle {self.name}")
        model = self.facts.model
        if _size(file) != model.bytes or sha256_of(*file.paths) != model.sha256:
            raise HQError(
                f"The bundle {self.name} was validated on {model.name} (SHA-256 "
                f"{model.sha256[:12]}…), and {file.path} is another file of that model, where its "
                "thresholds promise nothing: make a bundle for it with `hq bundle make`."
            )
        if not np.allclose(neuron_norms(self.neurons, file), self.norms, rtol=1e-4):
            raise HQError(
                f"The norms in the bundle {self.name} are not those of {file.path}: make the "
                "bundle again."
            )

    def require_attention(self, precision: str) -> None:
        """Raises HQError if a model at this precision computes attention in another way.

        Other types of keys and values shift the scores, as another quantization does.
        """
        validated, runs = attention_of(self.facts.precision), attention_of(precision)
        if runs != validated:
            raise HQError(
                f"The bundle {self.name} was validated with {validated.describe()}, and "
                f"{precision} runs with {runs.describe()}, where its thresholds promise nothing: "
                f"run the file at {self.source_precision}, or make a bundle with `hq bundle make "
                f"--precision {precision}`."
            )

    def domain(self, name: str = ALL) -> Domain:
        """The domain of this name. Raises HQError if the bundle has none."""
        if name not in self.domains:
            known = ", ".join(self.domains)
            raise HQError(f"The bundle {self.name} has no domain {name!r}: it has {known}.")
        return self.domains[name]

    def transferred(self, scores: Float[np.ndarray, " n"]) -> dict[str, float]:
        """Each domain's threshold for another file of the model, transferred without labels.

        `scores` are the scores of the calibration answers in that file, among which a threshold
        keeps its quantile. This corrects a shift that all answers share, and promises nothing.
        """
        return {
            name: match_quantile(domain.threshold, self.scores, scores)
            for name, domain in self.domains.items()
        }

    def _require_consistent(self, path: Path) -> None:
        """Raises HQError if the parts of the bundle do not fit together."""
        if ALL not in self.domains:
            raise HQError(f"{path / DOMAINS} has no domain {ALL!r}: make the bundle again.")
        shapes = [a.ndim for a in (self.norms, self.scores, self.right)]
        if shapes != [1, 1, 1] or len(self.norms) != len(self.neurons.neurons):
            raise HQError(
                f"{path / ARRAYS} is not of the set's {len(self.neurons.neurons)} neurons: make "
                "the bundle again."
            )


def write_bundle(
    folder: Path,
    facts: BundleFacts,
    neurons: NeuronSet,
    domains: Mapping[str, Domain],
    validation: Validation,
    arrays: Mapping[str, Float[np.ndarray, " value"]],
    card: str,
) -> None:
    """Write a new bundle; `arrays` has `norms`, `scores` and `right`, as in `Bundle`.

    Raises HQError if the folder exists.
    """
    files = {
        NEURONS: neurons.model_dump_json(indent=2).encode() + b"\n",
        DOMAINS: _dumped(dict[str, Domain], dict(domains)),
        VALIDATION: _dumped(Validation, validation),
        ARRAYS: save({name: np.ascontiguousarray(array) for name, array in arrays.items()}),
        CARD: card.encode(),
    }
    write_verified_folder(
        folder, BUNDLE_SCHEMA, TypeAdapter(BundleFacts).dump_python(facts, mode="json"), files
    )


def neuron_norms(neurons: NeuronSet, file: GGUFFile) -> Float[np.ndarray, " k"]:
    """‖W_down[:, i]‖₂ of the neurons of a set in a model file, float32, in the set's order."""
    norms: Float[np.ndarray, " k"] = file.norms.ravel()[neurons.flat]
    return norms


def model_file(file: GGUFFile, storage: str) -> ModelFile:
    """The record of the file on which a bundle is validated."""
    return ModelFile(
        name=file.path.name,
        storage=storage,
        bytes=_size(file),
        sha256=sha256_of(*file.paths),
        identity=file.identity,
    )


def _size(file: GGUFFile) -> int:
    """Bytes of all parts of the file."""
    return sum(path.stat().st_size for path in file.paths)


def _dumped(kind: Any, value: object) -> bytes:
    return TypeAdapter(kind).dump_json(value, indent=1) + b"\n"


def _parse(path: Path, name: str, kind: Any, value: object) -> Any:
    """A part of the bundle, from JSON or values. Raises HQError that names the field."""
    adapter = TypeAdapter(kind)
    try:
        if isinstance(value, bytes):
            return adapter.validate_json(value)
        return adapter.validate_python(value)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise HQError(
            f"{path / name} is no part of a bundle: {where}: {first['msg']}; make the bundle again."
        ) from error


def _arrays(path: Path, content: bytes) -> dict[str, Float[np.ndarray, " value"]]:
    try:
        arrays = load(content)
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise HQError(f"{path / ARRAYS} is no safetensors file: make the bundle again.") from error
    if arrays.keys() != {"norms", "scores", "right"}:
        raise HQError(f"{path / ARRAYS} has other arrays than a bundle's: make the bundle again.")
    if not all(a.dtype.kind == "f" and np.isfinite(a).all() for a in arrays.values()):
        raise HQError(f"{path / ARRAYS} holds other than finite numbers: make the bundle again.")
    return arrays
