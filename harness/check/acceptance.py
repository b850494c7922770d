"""Acceptance: a run's tables become the committed ones, beside rows that only those have."""

import json
import re
from collections.abc import Collection, Sequence
from importlib.resources import files
from itertools import groupby
from pathlib import Path

from harness.check.regress import TOLERANCES_FILE
from harness.stages.identify import NEURONS_FILE
from harness.studies.study import REFERENCE
from harness.tables.files import provenance_json
from harness.tables.provenance import (
    PROVENANCE_FILE,
    Facts,
    difference,
    merged,
    of_precisions,
    precisions,
    read_provenance,
    tables,
)
from hq.errors import HQError
from hq.storage.atomic import write_whole

_ROUNDING = 1e-3  # of a fitted number, relative: the order of sums is the processor's
_FIRST_CELL = re.compile(r"(?:\| )?([\w.-]+)(?:,| \|)")  # of a CSV's line, or of Markdown's


def accept(run: Path, into: Path) -> None:
    """Makes a run's tables the committed ones; tolerances that are there stay.

    Committed rows of precisions that the run does not have stay too. Raises HQError for a run that
    is not finished, for another study's tables, and where rows that should stay depend on anything
    that is not as it was.
    """
    facts = read_provenance(run)
    names = _tables(facts)
    whole = (*names, PROVENANCE_FILE, NEURONS_FILE)
    missing = [name for name in whole if not (run / name).is_file()]
    if missing:
        raise HQError(f"{run} has no {missing[0]}: give the folder of a finished run.")
    texts = {name: (run / name).read_text(encoding="utf-8") for name in whole}
    if (into / PROVENANCE_FILE).exists():
        texts |= _with_earlier_rows(run, into)
    into.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        write_whole(into / name, text)
    if not (into / TOLERANCES_FILE).exists():
        default = files("harness") / "experiments" / _folder(facts["kind"]) / "tolerances.toml"
        write_whole(into / TOLERANCES_FILE, default.read_bytes())


def _folder(kind: str) -> str:
    return "detect" if kind == "study" else kind


def _tables(facts: Facts) -> list[str]:
    """Files with rows in them."""
    return [*(f"{name}.csv" for name in tables(facts)), "tables.md"]


def _with_earlier_rows(run: Path, into: Path) -> dict[str, str]:
    """Tables and provenance as they are with the committed precisions that the run does not have.

    Nothing, where there are none.
    """
    ours, theirs = read_provenance(run), read_provenance(into)
    if (ours["kind"], ours["study"]) != (theirs["kind"], theirs["study"]):
        raise HQError(
            f"{into} holds tables of the study {theirs['study']}, not of {ours['study']}: name "
            "another folder."
        )
    new, committed = precisions(ours), precisions(theirs)
    kept = [p for p in committed if p not in new]
    order = [*committed, *(p for p in new if p not in committed)]
    if not kept:
        return {}
    # What stays is compared with the reference alone: another precision may be made anew.
    changed = difference(of_precisions(ours, {REFERENCE}), of_precisions(theirs, {REFERENCE}))
    texts = {name: _with_rows(run / name, into / name, order, new) for name in _tables(ours)}
    whole = {name: text for name, text in texts.items() if text is not None}
    if changed is None and whole != texts:
        changed = f"{min(texts.keys() - whole.keys())} has other columns"
    neurons = (into / NEURONS_FILE).read_text(encoding="utf-8")  # which the kept rows are of
    found = (run / NEURONS_FILE).read_text(encoding="utf-8")
    if difference(_of_neurons(found), _of_neurons(neurons), _ROUNDING) is not None:
        changed = changed or "the neurons are others"
    if changed is not None:
        raise HQError(
            f"{run} lacks rows of {', '.join(kept)}, and those in {into} cannot stay beside it "
            f"({changed}): run the study with --precisions {','.join(order)}."
        )
    provenance = provenance_json(merged(ours, theirs, order))
    return whole | {NEURONS_FILE: neurons, PROVENANCE_FILE: provenance}


def _of_neurons(text: str) -> Facts:
    """The content of a NeuronSet's file, the same for schema 1 and 2."""
    facts = json.loads(text.replace('"kin":', '"norm_digest":'))
    if isinstance(facts, dict):
        facts.pop("schema_version", None)
    return {NEURONS_FILE: facts}


def _with_rows(run: Path, into: Path, order: Sequence[str], new: Collection[str]) -> str | None:
    """A run's file with the rows that only the committed one has; None if more than rows differ."""
    (ours, our_rows), (theirs, their_rows) = (_rows(path, order) for path in (run, into))
    if ours != theirs or len(our_rows) != len(their_rows):
        return None
    lines: list[str] = []
    tables = iter(zip(our_rows, their_rows, strict=True))
    for line in ours:
        if line is not None:
            lines.append(line)
            continue
        mine, earlier = next(tables)
        for precision in order:
            lines += (mine if precision in new else earlier).get(precision, [])
    return "".join(lines)


def _rows(
    path: Path, known: Collection[str]
) -> tuple[list[str | None], list[dict[str, list[str]]]]:
    """A file's lines with None where its rows are, and the rows of each table by precision."""
    frame: list[str | None] = []
    tables: list[dict[str, list[str]]] = []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    for precision_rows, group in groupby(lines, lambda line: _precision(line) in known):
        if not precision_rows:
            frame += group
            continue
        frame.append(None)
        tables.append({p: list(rows) for p, rows in groupby(group, _precision)})
    return frame, tables


def _precision(line: str) -> str:
    cell = _FIRST_CELL.match(line)
    return cell[1] if cell else ""
