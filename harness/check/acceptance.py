"""Acceptance: a run's tables become the committed ones, beside rows that only those have."""

import json
import shutil
from pathlib import Path
from typing import Any

import polars as pl

from harness.check.regress import TOLERANCES_FILE
from harness.experiments import EXPERIMENTS
from harness.stages.identify import NEURONS_FILE
from harness.studies.study import REFERENCE
from harness.tables.files import Frames, read_table, write_frames
from harness.tables.provenance import (
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

_ROUNDING = 1e-3  # of a fitted number, relative: the order of sums is the processor's


def accept(run: Path, into: Path) -> None:
    """Makes a run's tables the committed ones; tolerances that exist stay.

    Committed rows of precisions that the run does not have stay too: rows are joined by column, and
    a column that only the run has is empty in rows that stay. Markdown and JSON are written again
    from the joined rows. Raises HQError if the run is not finished, if the tables are another
    study's, and if rows that should stay depend on anything that changed.
    """
    facts = read_provenance(run)
    experiment = EXPERIMENTS[facts["kind"]]
    for name in (*(f"{table}.csv" for table in experiment.tables), *experiment.committed):
        if not (run / name).is_file():
            raise HQError(f"{run} has no {name}: give the folder of a finished run.")
    frames: Frames = {
        name: read_table(run, name, kind) for name, (kind, _) in experiment.tables.items()
    }
    kept = []
    if (into / PROVENANCE_FILE).exists():
        committed = read_provenance(into)
        kept = _kept(facts, committed, run, into)
        if kept:
            order = _order(facts, committed)
            frames = {
                name: _joined(
                    frame, read_table(into, name, experiment.tables[name][0]), kept, order
                )
                for name, frame in frames.items()
            }
            facts = merged(facts, committed, order)
    write_frames(into, experiment.tables, frames, facts)
    if not kept:  # the neurons of rows that stay are the same but for the last digits
        for name in experiment.committed:
            shutil.copyfile(run / name, into / name)
    if not (into / TOLERANCES_FILE).exists():
        write_whole(into / TOLERANCES_FILE, experiment.tolerances())


def _kept(ours: Facts, theirs: Facts, run: Path, into: Path) -> list[str]:
    """The committed precisions that the run does not have. Raises HQError if they cannot stay."""
    if (ours["kind"], ours["study"]) != (theirs["kind"], theirs["study"]):
        raise HQError(
            f"{into} holds tables of the study {theirs['study']}, not of {ours['study']}: name "
            "another folder."
        )
    kept = [p for p in precisions(theirs) if p not in precisions(ours)]
    if not kept:
        return []
    # What stays is compared with the reference alone: another precision may be made again.
    changed = difference(_declared(ours), _declared(theirs))
    has_neurons = NEURONS_FILE in EXPERIMENTS[ours["kind"]].committed
    if has_neurons and difference(_neurons(run), _neurons(into), _ROUNDING) is not None:
        changed = changed or "the neurons are others"
    if changed is not None:
        raise HQError(
            f"{run} lacks rows of {', '.join(kept)}, and those in {into} cannot stay beside it "
            f"({changed}): run the study with --precisions {','.join(_order(ours, theirs))}."
        )
    return kept


def _declared(facts: Facts) -> Facts:
    """What the reference's rows depend on, without content digests.

    Contents differ in their last digits between processors; the neurons are compared instead.
    """
    reference = of_precisions(facts, {REFERENCE})
    nodes = {
        name: {k: v for k, v in node.items() if k not in ("inputs", "outputs")}
        for name, node in reference["nodes"].items()
    }
    return reference | {"nodes": nodes}


def _neurons(folder: Path) -> Facts:
    """The content of a NeuronSet's file, the same for schema 1 and 2."""
    text = (folder / NEURONS_FILE).read_text(encoding="utf-8")
    facts = json.loads(text.replace('"kin":', '"norm_digest":'))
    if isinstance(facts, dict):
        facts.pop("schema_version", None)
    return {NEURONS_FILE: facts}


def _order(ours: Facts, theirs: Facts) -> list[str]:
    """All precisions: the committed ones, then new ones."""
    return list(dict.fromkeys([*precisions(theirs), *precisions(ours)]))


def _joined(
    new: pl.DataFrame, committed: pl.DataFrame, kept: list[str], order: list[str]
) -> pl.DataFrame:
    """The new rows, and committed rows of the precisions `kept`, precision by precision."""
    if "precision" not in new.columns:
        return new
    position: dict[Any, int] = {name: i for i, name in enumerate(order)}
    both = pl.concat([new, committed.filter(pl.col("precision").is_in(kept))])
    rank = both["precision"].replace_strict(position, return_dtype=pl.Int64)
    return both.with_columns(rank.alias("_rank")).sort("_rank", maintain_order=True).drop("_rank")
