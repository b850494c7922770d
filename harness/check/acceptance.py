"""Acceptance of a run: its tables become the committed ones, merged by precision."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl

from harness.check.limits import TOLERANCES_FILE
from harness.experiments import EXPERIMENTS
from harness.stages.identify import NEURONS_FILE
from harness.studies.study import REFERENCE
from harness.tables.contents import lacks_table
from harness.tables.files import Frames, read_table, write_frames
from harness.tables.provenance import (
    FROM_FILE,
    FROM_SERVER,
    PROVENANCE_FILE,
    Facts,
    difference,
    merged,
    of_precisions,
    precisions,
    read_provenance,
)
from hq.errors import HQError
from hq.storage.atomic import write_whole

_RESPONSES = ("recorded", "sample", "served")  # stages
_ROUNDING = 1e-3  # relative difference of fitted numbers between processors


def accept(run: Path, into: Path) -> None:
    """Make a run's tables the committed ones; existing tolerances are kept.

    Committed rows of precisions that the run lacks are kept. A new column is empty in these rows,
    and a new table lacks them. Markdown and JSON are rendered from the merged rows.

    Raises HQError if the run is not finished, if the committed tables are of another study, or if
    something that kept rows depend on changed.
    """
    facts = read_provenance(run)
    experiment = EXPERIMENTS[facts["kind"]]
    for name in (*(f"{table}.csv" for table in experiment.tables), *experiment.committed):
        if not (run / name).is_file():
            raise HQError(f"{run} has no {name}: give the folder of a finished run.")
    frames: Frames = {
        name: read_table(run, name, kind) for name, (kind, _) in experiment.tables.items()
    }
    kept: list[str] = []
    if (into / PROVENANCE_FILE).exists():
        committed = read_provenance(into)
        kept = _kept(facts, committed, run, into)
        if kept:
            order = _order(facts, committed)
            frames = {
                name: frame
                if lacks_table(into, name)
                else _joined(frame, read_table(into, name, experiment.tables[name][0]), kept, order)
                for name, frame in frames.items()
            }
            facts = merged(facts, committed, order)
    write_frames(into, experiment.tables, frames, facts)
    if not kept:  # else the committed neurons are equal up to rounding
        for name in experiment.committed:
            shutil.copyfile(run / name, into / name)
    if not (into / TOLERANCES_FILE).exists():
        write_whole(into / TOLERANCES_FILE, experiment.tolerances())


def _kept(new: Facts, committed: Facts, run: Path, into: Path) -> list[str]:
    """Return the committed precisions that the run lacks. Raises HQError if they cannot be kept."""
    if (new["kind"], new["study"]) != (committed["kind"], committed["study"]):
        raise HQError(
            f"{into} holds tables of the study {committed['study']}, not of {new['study']}: name "
            "another folder."
        )
    kept = [p for p in precisions(committed) if p not in precisions(new)]
    if not kept:
        return []
    # Kept rows depend only on the reference: other precisions may be computed again.
    compared = _with_equal_responses(new, committed)
    changed = difference(_declared(compared[0]), _declared(compared[1]))
    has_neurons = NEURONS_FILE in EXPERIMENTS[new["kind"]].committed
    if has_neurons and difference(_neurons(run), _neurons(into), _ROUNDING) is not None:
        changed = changed or "the neurons differ"
    if changed is not None:
        raise HQError(
            f"{run} lacks rows of {', '.join(kept)}, and those in {into} cannot be kept "
            f"({changed}): run the study with --precisions {','.join(_order(new, committed))}."
        )
    return kept


def _with_equal_responses(new: Facts, committed: Facts) -> tuple[Facts, Facts]:
    """Return both without responses that one sampled and the other read from a file, if equal.

    Equal responses have equal outputs, and later nodes depend on nothing else of them.
    """
    both = (new, committed)
    equal = _outputs(both, "recorded") & (_outputs(both, "sample") | _outputs(both, "served"))
    without = [
        facts
        | {
            "nodes": {
                name: node
                for name, node in facts["nodes"].items()
                if node.get("stage") not in _RESPONSES or node.get("outputs") not in equal
            }
        }
        for facts in (new, committed)
    ]
    return without[0], without[1]


def _outputs(several: Sequence[Facts], stage: str) -> set[str]:
    """Return the digests of the outputs of a stage."""
    nodes = [node for facts in several for node in facts["nodes"].values()]
    return {node["outputs"] for node in nodes if node.get("stage") == stage and "outputs" in node}


def _declared(facts: Facts) -> Facts:
    """Return what the reference's rows depend on, without content digests.

    Contents differ by rounding between processors; the neurons are compared instead.
    """
    reference = of_precisions(facts, {REFERENCE})
    reference.pop("threads", None)  # they change the last digits only
    if "sampling" in reference:
        counts = {
            k: v for k, v in reference["sampling"].items() if k not in (FROM_FILE, FROM_SERVER)
        }
        reference["sampling"] = counts
    nodes = {
        name: {k: v for k, v in node.items() if k not in ("inputs", "outputs")}
        for name, node in reference["nodes"].items()
    }
    return reference | {"nodes": nodes}


def _neurons(folder: Path) -> Facts:
    """Read the file of a NeuronSet, with equal results for schemas 1 and 2."""
    text = (folder / NEURONS_FILE).read_text(encoding="utf-8")
    facts = json.loads(text.replace('"kin":', '"norm_digest":'))
    if isinstance(facts, dict):
        facts.pop("schema_version", None)
    return {NEURONS_FILE: facts}


def _order(new: Facts, committed: Facts) -> list[str]:
    """Return all precisions: the committed ones, then new ones."""
    return list(dict.fromkeys([*precisions(committed), *precisions(new)]))


def _joined(
    new: pl.DataFrame, committed: pl.DataFrame, kept: list[str], order: list[str]
) -> pl.DataFrame:
    """Merge the new rows with committed rows of the precisions `kept`, in this order."""
    if "precision" not in new.columns:
        return new
    position: dict[Any, int] = {name: i for i, name in enumerate(order)}
    both = pl.concat([new, committed.filter(pl.col("precision").is_in(kept))])
    rank = both["precision"].replace_strict(position, return_dtype=pl.Int64)
    return both.with_columns(rank.alias("_rank")).sort("_rank", maintain_order=True).drop("_rank")
