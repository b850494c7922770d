"""NeuronSet, the artefact of identification: which neurons, with which weights, of which model.

A set is stored as JSON that a person can read and diff. The file carries a schema version and the
identity of the model, and loading raises an error for another model.
"""

from collections import Counter
from collections.abc import Collection
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

import numpy as np
from jaxtyping import Float, Int
from pydantic import (
    AliasChoices,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_serializer,
    model_serializer,
    model_validator,
)

from hq.errors import HQError
from hq.neurons.factors import named
from hq.neurons.space import NeuronBlock, NeuronSpace, Position
from hq.storage.atomic import write_whole

if TYPE_CHECKING:
    from hq.neurons.features import Features

NEURON_SET_SCHEMA: Literal[2] = 2  # schema 1 had `kin` in place of `norm_digest`, and no `blocks`
GGUF_ORIGIN = "gguf:"  # begins the fingerprint of a GGUF file that names no source checkpoint
LOADED_ORIGIN = "loaded:"  # begins that of a model in memory, known by its norm digest alone


class _Record(BaseModel):
    """Frozen, without unknown fields, and with finite numbers only (JSON has no NaN)."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ModelIdentity(_Record):
    """The model that neurons belong to.

    `fingerprint` is a digest of the source checkpoint. `d_ff` is the number of neurons of a layer,
    or of the widest block where they differ; then `blocks` lists them. `norm_digest` is 16 hex
    digits over the model's RMSNorm/LayerNorm weights in FP16, which quantization leaves unchanged;
    it ties a GGUF file of unknown origin, or a model in memory, to a checkpoint. Frozen norms
    survive LoRA fine-tuning, so it is weaker than the fingerprint. It is empty where unknown.
    """

    name: str
    fingerprint: str
    architecture: str
    n_layers: Annotated[int, Field(gt=0)]
    d_ff: Annotated[int, Field(gt=0)]
    norm_digest: str = Field(default="", validation_alias=AliasChoices("norm_digest", "kin"))
    blocks: tuple[NeuronBlock, ...] | None = (
        None  # None if every layer is one block of `d_ff` neurons
    )

    @model_validator(mode="after")
    def _blocks_fit(self) -> Self:
        if self.blocks is not None:
            space = NeuronSpace(self.blocks)
            if space.is_rectangular or (space.n_layers, max(space.widths)) != (
                self.n_layers,
                self.d_ff,
            ):
                raise ValueError("blocks do not fit n_layers and d_ff")
        return self

    @model_serializer(mode="wrap")
    def _without_empty(self, serialize: Any) -> dict[str, Any]:
        """Leaves `blocks` out where the model is rectangular."""
        fields: dict[str, Any] = serialize(self)
        if fields["blocks"] is None:
            del fields["blocks"]
        return fields

    @field_serializer("blocks")
    def _without_experts(
        self, blocks: tuple[NeuronBlock, ...] | None
    ) -> list[dict[str, int]] | None:
        return None if blocks is None else [block.model_dump(exclude_none=True) for block in blocks]

    @classmethod
    def of(
        cls, name: str, fingerprint: str, architecture: str, space: NeuronSpace, norm_digest: str
    ) -> Self:
        """The identity of a model with this space."""
        return cls(
            name=name,
            fingerprint=fingerprint,
            architecture=architecture,
            n_layers=space.n_layers,
            d_ff=max(space.widths),
            norm_digest=norm_digest,
            blocks=None if space.is_rectangular else space.blocks,
        )

    @property
    def space(self) -> NeuronSpace:
        """Where the model's neurons lie."""
        return _space(self.n_layers, self.d_ff, self.blocks)

    @property
    def n_neurons(self) -> int:
        """Number of neurons, p: the columns of a feature matrix."""
        return len(self.space)


@lru_cache(maxsize=64)
def _space(n_layers: int, d_ff: int, blocks: tuple[NeuronBlock, ...] | None) -> NeuronSpace:
    return NeuronSpace.rectangular(n_layers, d_ff) if blocks is None else NeuronSpace(blocks)


class Neuron(_Record):
    """Coordinate `index` of the input of the down projection of a layer, or of one of its experts.

    `mean` and `scale` standardise its CETT before `weight` is applied. In a mixture of experts,
    `routed` is the share of the fitted responses of which a token reached its expert.
    """

    layer: Annotated[int, Field(ge=0)]
    expert: Annotated[int, Field(ge=0)] | None = None
    index: Annotated[int, Field(ge=0)]
    weight: float
    mean: float
    scale: Annotated[float, Field(gt=0)]
    routed: Annotated[float, Field(ge=0, le=1)] | None = None

    @model_serializer(mode="wrap")
    def _without_empty(self, serialize: Any) -> dict[str, Any]:
        """Leaves out what only mixtures of experts have."""
        fields: dict[str, Any] = serialize(self)
        return {k: v for k, v in fields.items() if v is not None or k not in ("expert", "routed")}

    @property
    def position(self) -> Position:
        """(layer, index), or (layer, expert, index)."""
        if self.expert is None:
            return self.layer, self.index
        return self.layer, self.expert, self.index


class NeuronSet(_Record):
    """All neurons with a non-zero weight, sorted by position, and what they were fitted on.

    The decision value of a response is intercept + Σ_k weight_k · (CETT_k − mean_k) / scale_k, the
    log odds that it is hallucinated. `thresholds` are named cut-offs on that value.
    """

    schema_version: Literal[2] = NEURON_SET_SCHEMA
    model: ModelIdentity
    cett: Literal["sum", "output"]
    tokens: Literal["answer", "prompt", "other"]
    labels: Literal["1-vs-1", "3-vs-1"]
    intercept: float
    neurons: tuple[Neuron, ...]
    thresholds: dict[str, float] = {}
    provenance: dict[str, str | int | float] = {}

    @model_validator(mode="before")
    @classmethod
    def _from_schema_1(cls, fields: Any) -> Any:
        """Reads schema 1, of which every field means the same here."""
        if isinstance(fields, dict) and fields.get("schema_version") == 1:
            return fields | {"schema_version": NEURON_SET_SCHEMA}
        return fields

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        order = [(n.layer, -1 if n.expert is None else n.expert, n.index) for n in self.neurons]
        if order != sorted(set(order)):
            raise ValueError("neurons must be unique and sorted by (layer, index)")
        try:
            _ = self.flat
        except HQError as error:
            raise ValueError(f"a neuron lies outside the model: {error}") from error
        return self

    @property
    def positive(self) -> tuple[Neuron, ...]:
        """The H-Neurons: those with a weight above zero."""
        return tuple(n for n in self.neurons if n.weight > 0)

    @property
    def flat(self) -> Int[np.ndarray, " k"]:
        """Flat indices of all neurons: their columns in a feature matrix, int64."""
        return self._flat_indices(self.neurons)

    @property
    def flat_positive(self) -> Int[np.ndarray, " h"]:
        """Flat indices of the H-Neurons, int64."""
        return self._flat_indices(self.positive)

    def _flat_indices(self, neurons: tuple[Neuron, ...]) -> Int[np.ndarray, " k"]:
        return self.model.space.flat_of([n.position for n in neurons])

    @property
    def layers(self) -> dict[int, int]:
        """Number of H-Neurons by layer, without the layers that have none."""
        return dict(sorted(Counter(n.layer for n in self.positive).items()))

    def score(self, features: "Features") -> Float[np.ndarray, " n"]:
        """Decision values of traced responses, float64.

        Raises HQError if the features are of another measure, span or model than the set, or if
        the traced variant lacks a neuron of the set.
        """
        if (features.measure, features.span) != (self.cett, self.tokens):
            raise HQError(
                f"The neuron set was found on {self.cett} over the {self.tokens} span, and these "
                f"traces are {features.measure} over the {features.span} span: trace with "
                f"--measures {self.cett} --spans {self.tokens} (in Python, measure={self.cett!r}, "
                f"span={self.tokens!r})."
            )
        self.require(features.model)
        self.require_present(features.missing, features.precision)
        return self.score_unchecked(features.values[:, self.flat])

    def score_unchecked(self, cett: Float[np.ndarray, "n k"]) -> Float[np.ndarray, " n"]:
        """Decision values of an array with one column per neuron of the set, in its order.

        Measure, span and model of the values are not checked. Monitors use it, which read what the
        set names; `score` is for traces. Raises HQError for another number of columns, and for
        values that are not finite.
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
        lost = [
            named(n.position)
            for n, flat in zip(self.neurons, self.flat.tolist(), strict=True)
            if flat in absent
        ]
        if lost:
            raise HQError(
                f"At {precision} {len(lost)} of the set's {len(self.neurons)} neurons are not "
                f"found, {lost[0]} first: they were pruned or replaced there, so identify neurons "
                "on that checkpoint itself."
            )

    def save(self, path: str | Path) -> None:
        """Write indented JSON atomically: a reader sees the old file or the new one."""
        write_whole(Path(path), self.model_dump_json(indent=2) + "\n")

    @classmethod
    def load(cls, path: str | Path, model: ModelIdentity | None = None) -> Self:
        """Read a set, and check that it belongs to `model` if one is given.

        Raises HQError for a missing file, broken JSON, an unknown schema version, an invalid field,
        or a set of another model: another fingerprint, number of layers or width. For a GGUF file
        of unknown origin and a model in memory, the norm digest replaces the fingerprint.
        """
        source = Path(path)
        neurons = cls._parse(source, _read(source))
        if model is not None:
            neurons.require(model, str(source))
        return neurons

    def require(self, model: ModelIdentity, name: str = "The neuron set") -> None:
        """Raises HQError, with `name` in the message, if the set belongs to another model."""
        _require_same_model(name, self.model, model)

    @classmethod
    def _parse(cls, source: Path, text: str) -> Self:
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            raise HQError(_explain(source, error)) from error


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
    """One sentence for the first fault: of the JSON, else of the version, else of a field."""
    faults = error.errors(include_url=False)
    by_kind = {fault["type"]: fault for fault in faults}
    if "json_invalid" in by_kind:
        return f"{source} is not valid JSON: write it again with `hq identify`."
    version = next((f for f in faults if f["loc"] == ("schema_version",)), None)
    if version is not None:
        return (
            f"{source} has schema version {version['input']!r} but this hq reads 1 and "
            f"{NEURON_SET_SCHEMA}: identify again with this version."
        )
    first = faults[0]
    where = ".".join(map(str, first["loc"])) or "the set"
    return f"{source} is not a neuron set: {where}: {first['msg']}; write it with `hq identify`."


def _require_same_model(source: str, owner: ModelIdentity, wanted: ModelIdentity) -> None:
    loaded = _origin(wanted) == LOADED_ORIGIN
    shape = ("n_layers", "d_ff", "blocks")
    digest = "norm_digest" if loaded else "fingerprint"
    for field in shape if _same_norms(owner, wanted) else (digest, *shape):
        have, need = getattr(owner, field), getattr(wanted, field)
        if have != need:
            dtype = ", or load its weights in the type they are stored in" if loaded else ""
            if field == "blocks":
                have, need = owner.space.widths, wanted.space.widths
            raise HQError(
                f"{source} belongs to {owner.name} ({field} {have}), not to {wanted.name} "
                f"({field} {need}): identify neurons on this model{dtype}."
            )


def _same_norms(one: ModelIdentity, other: ModelIdentity) -> bool:
    """Whether two identities of different origin have the same norms."""
    return _origin(one) != _origin(other) and one.norm_digest == other.norm_digest != ""


def _origin(model: ModelIdentity) -> str:
    """The prefix of the fingerprint; empty for a checkpoint."""
    return next(filter(model.fingerprint.startswith, (GGUF_ORIGIN, LOADED_ORIGIN)), "")
