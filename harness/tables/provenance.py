"""Provenance of tables: read, compared, and put together where only precisions differ."""

import math
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from harness.tables.schema import KINDS, Tables
from hq.errors import HQError

PROVENANCE_FILE = "provenance.json"
CELL_STAGES = (
    "map",
    "trace",
    "identify",
    "uncertainty",
    "sweep",
)  # stages with an artefact a precision

Facts = dict[str, Any]


class _Definition(BaseModel):
    model_config = ConfigDict(extra="allow")

    precisions: list[str]


class _Provenance(BaseModel):
    model_config = ConfigDict(extra="allow")

    kind: str
    study: str
    fingerprint: str
    definition: _Definition
    stages: dict[str, dict[str, Any]] = {}


def read_provenance(folder: Path) -> Facts:
    """What the tables in a folder depend on. Raises HQError where that cannot be read."""
    try:
        text = (folder / PROVENANCE_FILE).read_text(encoding="utf-8")
        return _Provenance.model_validate_json(text).model_dump()
    except (OSError, UnicodeDecodeError, ValidationError) as error:
        raise HQError(
            f"{folder} has no readable {PROVENANCE_FILE}: give a finished run."
        ) from error


def tables(facts: Facts) -> Tables:
    """The tables that a run of this kind has. Raises HQError for a kind that is not known."""
    kind = facts["kind"]
    if kind not in KINDS:
        raise HQError(f"{PROVENANCE_FILE} is of a {kind!r}: there are {', '.join(KINDS)}.")
    return KINDS[kind]


def precisions(facts: Facts) -> list[str]:
    """The precisions that it is of, in the order of the tables."""
    found: list[str] = facts["definition"]["precisions"]
    return found


def definition(facts: Facts) -> Facts:
    """The study's definition, less its precisions."""
    return {key: value for key, value in facts["definition"].items() if key != "precisions"}


def of_precisions(facts: Facts, kept: Collection[str]) -> Facts:
    """All of it but what is of other precisions."""
    stages = {
        name: {p: v for p, v in value.items() if p in kept} if name in CELL_STAGES else value
        for name, value in facts["stages"].items()
    }
    return facts | {"definition": definition(facts), "stages": stages}


def merged(ours: Facts, theirs: Facts, order: Sequence[str]) -> Facts:
    """Ours, and of theirs the precisions that ours does not have."""
    stages = {
        name: theirs["stages"].get(name, {}) | value if name in CELL_STAGES else value
        for name, value in ours["stages"].items()
    }
    return ours | {
        "definition": ours["definition"] | {"precisions": list(order)},
        "stages": stages,
    }


def difference(ours: Facts, theirs: Facts, rounding: float = 0.0) -> str | None:
    """The first of the values in which two provenances differ, in words; None where none does.

    Fractions may differ by `rounding`, relative to the larger.
    """
    return next(_differences(ours, theirs, "", rounding), None)


def _differences(ours: object, theirs: object, where: str, rounding: float) -> Iterator[str]:
    if isinstance(ours, dict) and isinstance(theirs, dict):
        for key in sorted(ours.keys() | theirs.keys()):
            place = f"{where}.{key}" if where else key
            if key in ours and key in theirs:
                yield from _differences(ours[key], theirs[key], place, rounding)
            else:
                yield f"only one of them has {place}"
    elif not _alike(ours, theirs, rounding):
        yield f"{where} is {ours!r}, not {theirs!r}"


def _alike(ours: object, theirs: object, rounding: float) -> bool:
    if isinstance(ours, float) and isinstance(theirs, float):
        return math.isclose(ours, theirs, rel_tol=rounding)
    if isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        pairs = zip(ours, theirs, strict=True)
        return all(next(_differences(a, b, "", rounding), None) is None for a, b in pairs)
    return bool(ours == theirs)
