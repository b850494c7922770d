"""The card of a model-hub repository: metadata for the hub, and text for readers.

The metadata contain the evaluation (`model-index`): the AUROC at each precision, from the tables.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from textwrap import fill
from typing import Any, NamedTuple, Self

from harness.models.packaged import packaged_as
from hq.monitor.bundle import Bundle
from hq.neurons.neuron_set import ModelIdentity

_TASK = "text-classification"  # the hub has no task of this kind
_TASK_NAME = "Detection of hallucinated answers"
_TAGS = ("hq", "h-neurons", "hallucination-detection", "interpretability", "quantization")


@dataclass(frozen=True)
class Origin:
    """The model that a folder is about; empty where it is unknown."""

    name: str
    base_model: str = ""  # hub id
    license: str = ""

    @classmethod
    def of(cls, model: ModelIdentity, base_model: str, license: str) -> Self:
        """Return the given hub id and license, else those of the packaged model."""
        packaged = packaged_as(model.norm_digest)
        return cls(
            model.name,
            base_model or (packaged.hub_id if packaged else ""),
            license or (packaged.license if packaged else ""),
        )


@dataclass(frozen=True)
class Measured:
    """One AUROC of the tables, with the row that it is in."""

    keys: Mapping[str, str]  # precision first
    auroc: float
    interval: tuple[float, float] | None  # 95%
    n: int
    units: int | None
    seed: int | None

    @property
    def label(self) -> str:
        """The keys of the row, as text."""
        return ", ".join(self.keys.values())

    def __str__(self) -> str:
        if self.interval is None:
            return f"{self.auroc:.3f}"
        low, high = self.interval
        return f"{self.auroc:.3f} [{low:.3f}, {high:.3f}]"


def measured_in(tables: Mapping[str, Any]) -> list[Measured]:
    """Return the AUROCs of the first table that has them by precision, of results.json."""
    for table in tables.values():
        names = table["columns"].keys()
        if "precision" in table["keys"] and {"auroc", "n"} <= names:
            rows = [row for row in table["rows"] if row["auroc"] is not None]
            return [_measured(row, table["keys"]) for row in rows]
    return []


def _measured(row: Mapping[str, Any], keys: Sequence[str]) -> Measured:
    named = {key: str(row[key]) for key in ("precision", *keys)}
    low, high = row.get("auroc_low"), row.get("auroc_high")
    return Measured(
        named,
        row["auroc"],
        None if low is None or high is None else (low, high),
        row["n"],
        row.get("units", row.get("entities")),
        row.get("seed"),
    )


def measured_of(bundle: Bundle) -> list[Measured]:
    """Return the AUROC of a bundle in its model file."""
    v = bundle.validation
    auroc, keys = v.auroc, {"precision": bundle.precision}
    return [Measured(keys, auroc.value, (auroc.low, auroc.high), v.n, v.entities, v.seed)]


class Dataset(NamedTuple):
    """The answers of an evaluation, as the hub shows them."""

    type: str
    name: str


def card(
    title: str, dataset: Dataset, origin: Origin, measured: Sequence[Measured], text: str
) -> str:
    """Return README.md: YAML front matter, then the text.

    Args:
        title: Name of the model in the evaluation.
        dataset: The answers.
        origin: The model that was studied.
        measured: The AUROCs, one metric each.
        text: Markdown.
    """
    from huggingface_hub import EvalResult, ModelCard, ModelCardData

    results = [
        EvalResult(
            task_type=_TASK,
            task_name=_TASK_NAME,
            dataset_type=dataset.type,
            dataset_name=dataset.name,
            metric_type="roc_auc",
            metric_name=f"AUROC, {one.label}",
            metric_value=one.auroc,
            metric_args=_arguments(one),
        )
        for one in measured
    ]
    data = ModelCardData(
        model_name=title,
        base_model=origin.base_model or None,
        license=origin.license or None,
        library_name="hq",
        tags=list(_TAGS),
        eval_results=results or None,
    )
    return str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}"))


def _arguments(one: Measured) -> dict[str, Any]:
    """What qualifies a metric: its interval, and how many answers and units it is about."""
    low, high = one.interval or (None, None)
    stated = {"low": low, "high": high, "n": one.n, "units": one.units, "seed": one.seed}
    return {**one.keys, **{key: value for key, value in stated.items() if value is not None}}


def results_text(
    study: str,
    kind: str,
    hq: str,
    origin: Origin,
    measured: Sequence[Measured],
    files: str,
    to: str,
) -> str:
    """Return the text of a card of tables.

    Args:
        study: Name of the study.
        kind: Name of the experiment.
        hq: Version of hq that computed the tables.
        origin: The model that was studied.
        measured: The AUROCs.
        files: Where the tables are in the repository.
        to: Id of the repository.
    """
    rows = "\n".join(
        f"| {one.label} | {one} | {one.n} | {'—' if one.units is None else one.units} |"
        for one in measured
    )
    table = f"| precision | AUROC | n | units |\n| --- | --- | --- | --- |\n{rows}\n"
    about = fill(
        f"Tables of the experiment `{kind}` on {_named(origin)}: H-Neurons, which predict "
        "hallucinated answers, evaluated at several precisions. All tables, with a description of "
        f"every column, are in [{files}/tables.md]({files}/tables.md); `{files}/provenance.json` "
        "says what they were computed from.",
        100,
        break_long_words=False,
        break_on_hyphens=False,
    )
    return f"""# {study}

{about}

{table if measured else ""}
AUROC with its 95% interval over units: n answers, of which those that share an entity, a given
answer or a wording are one unit.

Compare a run of your own with these tables:

    hf download {to} --local-dir published
    hq check runs/{study} --against published/{files}

Made with hq {hq}.
"""


def bundle_text(bundle: Bundle, files: str, to: str) -> str:
    """Return the text of a card of a bundle: its model card, and how to use it."""
    return f"""{bundle.card.rstrip()}

## Use

    hf download {to} --local-dir published
    hq bundle verify published/{files} --gguf {bundle.facts.model.name}
    hq serve --gguf {bundle.facts.model.name} --bundle published/{files}

The model file itself is not in this repository: its SHA-256 is above.
"""


def _named(origin: Origin) -> str:
    if not origin.base_model:
        return origin.name
    return f"[{origin.base_model}](https://huggingface.co/{origin.base_model}) ({origin.name})"
