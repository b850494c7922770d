"""Provenance of tables: what each node was computed from; comparison and merging."""

import json
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from hq.errors import HQError

PROVENANCE_FILE = "provenance.json"
FROM_FILE = "responses_from_file"  # in `sampling`: the digest of the file
FROM_SERVER = "responses_from_server"  # in `sampling`: the servers, which can differ between runs

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
    """Read what the tables in a folder depend on. Raises HQError if it cannot be read."""
    try:
        text = (folder / PROVENANCE_FILE).read_text(encoding="utf-8")
        return _Provenance.model_validate_json(text).model_dump()
    except (OSError, UnicodeDecodeError, ValidationError) as error:
        raise HQError(
            f"{folder} has no readable {PROVENANCE_FILE}: give the folder of a finished run."
        ) from error


def provenance_json(provenance: Mapping[str, Any]) -> str:
    """Return the text of provenance.json."""
    return json.dumps(provenance, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def precisions(facts: Facts) -> list[str]:
    """Return the precisions of the rows, in the order of the tables."""
    names: list[str] = facts["definition"]["precisions"]
    return names


def definition(facts: Facts) -> Facts:
    """Return the definition of the study, without the precisions and makings, which choose rows."""
    chosen = {key: value for key, value in facts["definition"].items() if key != "precisions"}
    if isinstance(pack := chosen.get("pack"), dict):
        chosen["pack"] = {key: value for key, value in pack.items() if key != "makings"}
    return chosen


def of_precisions(facts: Facts, kept: Collection[str]) -> Facts:
    """Return a provenance without nodes of other precisions."""
    nodes = {n: v for n, v in facts["nodes"].items() if v.get("precision") in (None, *kept)}
    return facts | {"definition": definition(facts), "nodes": nodes}


def merged(new: Facts, committed: Facts, order: Sequence[str]) -> Facts:
    """Return the new provenance with committed nodes of the precisions that it lacks."""
    added = {
        name: node
        for name, node in committed["nodes"].items()
        if node.get("precision") not in (None, *precisions(new))
    }
    return new | {
        "definition": new["definition"] | {"precisions": list(order)},
        "nodes": added | new["nodes"],
    }


def difference(new: Facts, committed: Facts, rounding: float = 0.0) -> str | None:
    """Describe the first value in which two provenances differ; None if there is none.

    Floats may differ by `rounding`, relative to the larger one.
    """
    return next(differences(new, committed, rounding=rounding), None)


def differences(
    new: object, committed: object, key: str = "", rounding: float = 0.0
) -> Iterator[str]:
    """Describe each value in which two provenances differ, below the dotted `key`."""
    if isinstance(new, dict) and isinstance(committed, dict):
        for name in sorted(new.keys() | committed.keys()):
            dotted = f"{key}.{name}" if key else name
            if name in new and name in committed:
                yield from differences(new[name], committed[name], dotted, rounding)
            else:
                yield f"only one of them has {dotted}"
    elif not _is_equal(new, committed, rounding):
        yield f"{key} is {new!r}, not {committed!r}"


def _is_equal(new: object, committed: object, rounding: float) -> bool:
    if isinstance(new, float) and isinstance(committed, float):
        return math.isclose(new, committed, rel_tol=rounding)
    if isinstance(new, list) and isinstance(committed, list) and len(new) == len(committed):
        pairs = zip(new, committed, strict=True)
        return all(next(differences(a, b, "", rounding), None) is None for a, b in pairs)
    return bool(new == committed)
