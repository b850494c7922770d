"""Provenance of tables: what each node of a run was made from; compared, and joined."""

import json
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from hq.errors import HQError

PROVENANCE_FILE = "provenance.json"

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
    nodes: dict[str, dict[str, Any]] = {}


def read_provenance(folder: Path) -> Facts:
    """What the tables in a folder depend on. Raises HQError if that cannot be read."""
    try:
        text = (folder / PROVENANCE_FILE).read_text(encoding="utf-8")
        return _Provenance.model_validate_json(text).model_dump()
    except (OSError, UnicodeDecodeError, ValidationError) as error:
        raise HQError(
            f"{folder} has no readable {PROVENANCE_FILE}: give a finished run."
        ) from error


def provenance_json(provenance: Mapping[str, Any]) -> str:
    """The text of provenance.json."""
    return json.dumps(provenance, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def precisions(facts: Facts) -> list[str]:
    """The precisions of its rows, in the order of the tables."""
    names: list[str] = facts["definition"]["precisions"]
    return names


def definition(facts: Facts) -> Facts:
    """The study's definition, without its precisions."""
    return {key: value for key, value in facts["definition"].items() if key != "precisions"}


def of_precisions(facts: Facts, kept: Collection[str]) -> Facts:
    """All of it except nodes of other precisions."""
    nodes = {n: v for n, v in facts["nodes"].items() if v.get("precision") in (None, *kept)}
    return facts | {"definition": definition(facts), "nodes": nodes}


def merged(ours: Facts, theirs: Facts, order: Sequence[str]) -> Facts:
    """Ours, with nodes of theirs for the precisions that ours lacks."""
    added = {
        name: node
        for name, node in theirs["nodes"].items()
        if node.get("precision") not in (None, *precisions(ours))
    }
    return ours | {
        "definition": ours["definition"] | {"precisions": list(order)},
        "nodes": added | ours["nodes"],
    }


def difference(ours: Facts, theirs: Facts, rounding: float = 0.0) -> str | None:
    """The first value in which two provenances differ, in words; None if none does.

    Floats may differ by `rounding`, relative to the larger.
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
