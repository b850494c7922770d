"""NeuronSet, the artefact of identification: which neurons, with which weights, of which model.

Kept as JSON that a person can read and diff. A file carries the schema version and the model's
fingerprint, and loading refuses what does not match.
"""

from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, Self

import numpy as np
from jaxtyping import Float, Int
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from hq.errors import HQError
from hq.storage.atomic import write_whole

if TYPE_CHECKING:
    from hq.neurons.features import Features

SCHEMA_VERSION: Literal[1] = 1
GGUF_ORIGIN = "gguf:"  # begins the fingerprint of a GGUF file that names no source checkpoint
LOADED_ORIGIN = "loaded:"  # begins that of a model in memory, of which only the kin is known


class _Record(BaseModel):
    """Frozen, without unknown fields, and with finite numbers only (JSON knows no NaN)."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ModelIdentity(_Record):
    """Which model the neurons belong to; `fingerprint` is a digest of the source checkpoint.

    `kin` is 16 hex digits over the model's RMSNorm/LayerNorm weights in FP16, which quantizing
    leaves as they are: what ties a GGUF of unknown origin, or a model in memory, to a checkpoint.
    Frozen norms survive LoRA fine-tuning too, so it is weaker than the fingerprint. Empty where it
    is not known.
    """

    name: str
    fingerprint: str
    architecture: str
    n_layers: Annotated[int, Field(gt=0)]
    d_ff: Annotated[int, Field(gt=0)]
    kin: str = ""

    @property
    def n_neurons(self) -> int:
        """n_layers * d_ff, the number p of columns of a feature matrix."""
        return self.n_layers * self.d_ff


class Neuron(_Record):
    """Coordinate `index` of the input of layer `layer`'s down projection.

    `mean` and `scale` standardise its CETT before `weight` is applied.
    """

    layer: Annotated[int, Field(ge=0)]
    index: Annotated[int, Field(ge=0)]
    weight: float
    mean: float
    scale: Annotated[float, Field(gt=0)]


class NeuronSet(_Record):
    """All neurons with a non-zero weight, sorted by (layer, index), and what they were fitted on.

    A response's decision value is intercept + Σ_k weight_k · (CETT_k − mean_k) / scale_k: the log
    odds that it is hallucinated. `thresholds` are named cut-offs on that value.
    """

    schema_version: Literal[1] = SCHEMA_VERSION
    model: ModelIdentity
    cett: Literal["sum", "output"]
    tokens: Literal["answer", "prompt", "other"]
    labels: Literal["1-vs-1", "3-vs-1"]
    intercept: float
    neurons: tuple[Neuron, ...]
    thresholds: dict[str, float] = {}
    provenance: dict[str, str | int | float] = {}

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        places = [(n.layer, n.index) for n in self.neurons]
        outside = [p for p in places if p[0] >= self.model.n_layers or p[1] >= self.model.d_ff]
        if outside:
            raise ValueError(f"neuron {outside[0]} lies outside the model")
        if places != sorted(set(places)):
            raise ValueError("neurons must be unique and sorted by (layer, index)")
        return self

    @property
    def positive(self) -> tuple[Neuron, ...]:
        """The H-Neurons: those whose weight is above zero."""
        return tuple(n for n in self.neurons if n.weight > 0)

    @property
    def flat(self) -> Int[np.ndarray, " k"]:
        """Columns of all neurons in a feature matrix: layer * d_ff + index, int64."""
        return flat_index(self.neurons, self.model.d_ff)

    @property
    def flat_positive(self) -> Int[np.ndarray, " h"]:
        """Columns of the H-Neurons in a feature matrix, int64."""
        return flat_index(self.positive, self.model.d_ff)

    def _flat(self, neuron: Neuron) -> int:
        return neuron.layer * self.model.d_ff + neuron.index

    @property
    def layers(self) -> dict[int, int]:
        """How many H-Neurons each layer has; layers without any are left out."""
        return dict(sorted(Counter(n.layer for n in self.positive).items()))

    def score(self, features: "Features") -> Float[np.ndarray, " n"]:
        """Decision values of traced responses, float64.

        Raises HQError unless the features are of the measure, the span and the model that the set
        was found on, and for a neuron of the set that the traced variant lacks.
        """
        if (features.measure, features.span) != (self.cett, self.tokens):
            raise HQError(
                f"The neuron set was found on {self.cett} over the {self.tokens} span, and these "
                f"traces are {features.measure} over the {features.span} span: trace with "
                f"--measures {self.cett} --spans {self.tokens}."
            )
        self.require(features.model)
        self.require_present(features.missing, features.precision)
        return self.score_unchecked(features.values[:, self.flat])

    def score_unchecked(self, cett: Float[np.ndarray, "n k"]) -> Float[np.ndarray, " n"]:
        """Decision values of bare numbers: one column per neuron of the set, in its order.

        Nothing tells which measure, span and model they are of. For monitors, which read what the
        set asks for; `score` is for traces.
        """
        if cett.ndim != 2 or cett.shape[1] != len(self.neurons):
            raise HQError(
                f"The CETT values have shape {cett.shape}, but the set has {len(self.neurons)} "
                "neurons: pass one column per neuron, in the set's order."
            )
        if not np.isfinite(cett).all():
            raise HQError("The traces hold NaN or infinite CETT values: trace the texts again.")
        weight, mean, scale = (
            np.array([getattr(n, field) for n in self.neurons], dtype=np.float64)
            for field in ("weight", "mean", "scale")
        )
        decision: Float[np.ndarray, " n"] = (cett - mean) / scale @ weight + self.intercept
        return decision

    def require_present(self, absent: Collection[int], precision: str) -> None:
        """Raises HQError if a neuron of the set is among the flat indices `absent`."""
        lost = [f"({n.layer}, {n.index})" for n in self.neurons if self._flat(n) in absent]
        if lost:
            raise HQError(
                f"At {precision} {len(lost)} of the set's {len(self.neurons)} neurons are not "
                f"found, {lost[0]} first: they were pruned or replaced there, so identify neurons "
                "on that checkpoint itself."
            )

    def save(self, path: str | Path) -> None:
        """Write indented JSON; a reader sees the old file or the new one, never a part."""
        write_whole(Path(path), self.model_dump_json(indent=2) + "\n")

    @classmethod
    def load(cls, path: str | Path, model: ModelIdentity | None = None) -> Self:
        """Read a set, and check that it belongs to `model` where one is given.

        HQError for a missing file, broken JSON, another schema version, a bad field, or a model
        with another fingerprint, number of layers or width. Between a checkpoint and a GGUF file of
        unknown origin, and with a model in memory, the same `kin` stands in for the same
        fingerprint.
        """
        source = Path(path)
        neurons = cls._parse(source, _read(source))
        if model is not None:
            neurons.require(model, str(source))
        return neurons

    def require(self, model: ModelIdentity, name: str = "The neuron set") -> None:
        """HQError, with `name` in it, unless the set belongs to `model`."""
        _require_same_model(name, self.model, model)

    @classmethod
    def _parse(cls, source: Path, text: str) -> Self:
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            raise HQError(_explain(source, error)) from error


def flat_index(neurons: tuple[Neuron, ...], d_ff: int) -> Int[np.ndarray, " k"]:
    """Columns layer * d_ff + index of a feature matrix, int64."""
    return np.array([n.layer * d_ff + n.index for n in neurons], dtype=np.int64)


def _read(source: Path) -> str:
    try:
        return source.read_text(encoding="utf-8")
    except OSError as error:
        raise HQError(
            f"The neuron set {source} cannot be read ({error.strerror}): "
            "give the path of a file that `hq identify` wrote."
        ) from error
    except UnicodeDecodeError as error:
        raise HQError(
            f"{source} is not text: give the path of a file that `hq identify` wrote."
        ) from error


def _explain(source: Path, error: ValidationError) -> str:
    """One sentence for the fault that explains the others: syntax, then version, then a field."""
    faults = error.errors(include_url=False)
    by_kind = {fault["type"]: fault for fault in faults}
    if "json_invalid" in by_kind:
        return f"{source} is not valid JSON: write it again with `hq identify`."
    version = next((f for f in faults if f["loc"] == ("schema_version",)), None)
    if version is not None:
        return (
            f"{source} has schema version {version['input']!r} but this hq reads "
            f"{SCHEMA_VERSION}: identify again with this version."
        )
    first = faults[0]
    where = ".".join(map(str, first["loc"])) or "the set"
    return f"{source} is not a neuron set: {where}: {first['msg']}; write it with `hq identify`."


def _require_same_model(source: str, found: ModelIdentity, wanted: ModelIdentity) -> None:
    loaded = _origin(wanted) == LOADED_ORIGIN
    shape = ("n_layers", "d_ff")
    mark = "kin" if loaded else "fingerprint"
    for field in shape if _akin(found, wanted) else (mark, *shape):
        have, need = getattr(found, field), getattr(wanted, field)
        if have != need:
            dtype = ", or load its weights in the type they are stored in" if loaded else ""
            raise HQError(
                f"{source} belongs to {found.name} ({field} {have}), not to {wanted.name} "
                f"({field} {need}): identify neurons on this model{dtype}."
            )


def _akin(one: ModelIdentity, other: ModelIdentity) -> bool:
    """Whether two that have no fingerprint in common have the same norms."""
    return _origin(one) != _origin(other) and one.kin == other.kin != ""


def _origin(model: ModelIdentity) -> str:
    """What begins the fingerprint; empty for a checkpoint's."""
    return next(filter(model.fingerprint.startswith, (GGUF_ORIGIN, LOADED_ORIGIN)), "")
