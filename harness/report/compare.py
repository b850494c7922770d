"""What changed from one run to another, with intervals and without tolerances.

AUROCs of detect are compared by sample if both runs have scores of the same samples: the same
folds, units and labels. Any other estimate is compared as one of independent runs, by the two
intervals (Zou & Donner 2008, "Construction of confidence limits about effect measures", Statistics
in Medicine 27): with d = b − a, the ends are d − √((b − b_low)² + (a_high − a)²) and
d + √((b_high − b)² + (a − a_low)²). If the runs share questions, that is wider than necessary.
"""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

from harness.report.build import Written, require_extra, require_target, write
from harness.report.page import Block, Bullets, Column, Figure, Grid, Part, Prose, Report, RunReport
from harness.report.page import Section as PageSection
from harness.report.run import RunFolder, read_runs
from harness.report.traced import cell_name, traced, unmarked
from harness.tables.provenance import differences
from harness.tables.readme_cells import code, listed, text_of
from hq.errors import HQError
from hq.stats.auroc import auroc, estimate_auroc_difference
from hq.stats.intervals import Estimate, estimate_mean, estimate_rate

_MOST_FACTS = 40
_MOST_ROWS = 60


class Change(NamedTuple):
    """A number of both runs: its row, its values, and their difference with its interval."""

    table: str
    row: str
    column: str
    before: float
    after: float
    change: float
    low: float
    high: float
    paired: bool

    @property
    def is_shown(self) -> bool:
        """Whether the interval of the difference excludes 0."""
        return self.low > 0 or self.high < 0


def write_comparison(first: Path, second: Path, into: Path) -> Written:
    """Write a page on what changed from one run to another.

    Raises HQError as `write_report`, and if the runs are of different kinds of experiment or have
    no row in common.
    """
    require_target(into)
    require_extra()
    a, b = read_runs([first, second])
    return write(comparison(a, b), into)


def comparison(a: RunFolder, b: RunFolder) -> Report:
    """Return the page on the change from run `a` to run `b`."""
    if a.kind != b.kind:
        raise HQError(
            f"{a.path} is a run of {a.kind} and {b.path} one of {b.kind}: compare runs of one kind."
        )
    paired = [*paired_changes(a, b)]
    known = {(change.table, change.row, change.column) for change in paired}
    others = [c for c in unpaired_changes(a, b) if (c.table, c.row, c.column) not in known]
    if not paired and not others:
        raise HQError(
            f"{a.path} and {b.path} have no row with the same keys, so there is nothing to compare."
        )
    sections = [
        _main(a, b, paired or _headline(a, others)),
        _estimates(others),
        _values(a, b),
        _origins(a, b),
    ]
    name = f"{unmarked(a.study)} → {unmarked(b.study)}"
    part = Part(_answer(a, b, paired, others), sections)
    subtitle = f"From A = `{unmarked(str(a.path))}` to B = `{unmarked(str(b.path))}`"
    return Report(f"What changed: {name}", [RunReport(name, a.kind, subtitle, "comparison", part)])


def paired_changes(a: RunFolder, b: RunFolder) -> Iterator[Change]:
    """Yield the change of the AUROC at each precision, paired by sample.

    None if a run lacks scores, or if samples, labels, units or folds differ.
    """
    if not have_same_samples(a, b):
        return
    for precision, before, after in _scored_by_both(a, b):
        old, new = (s["score"].to_numpy() for s in (before, after))
        y, units, folds = (before[c].to_numpy() for c in ("hallucinated", "unit", "fold"))
        estimate = estimate_auroc_difference(new, old, y.astype(int), units, folds)
        was, now = (auroc(scores, y.astype(int), folds) for scores in (old, new))
        yield Change(
            "detection",
            precision,
            "auroc",
            was,
            now,
            estimate.value,
            estimate.low,
            estimate.high,
            paired=True,
        )


def _scored_by_both(a: RunFolder, b: RunFolder) -> Iterator[tuple[str, pl.DataFrame, pl.DataFrame]]:
    """Yield each precision at which both runs scored the same samples, with these scores."""
    assert a.scores is not None
    assert b.scores is not None
    for precision in a.scores["precision"].unique(maintain_order=True):
        before, after = (s.filter(precision=precision).sort("sample") for s in (a.scores, b.scores))
        if before["sample"].to_list() == after["sample"].to_list():
            yield precision, before, after


def have_same_samples(a: RunFolder, b: RunFolder) -> bool:
    """Return whether both runs have scores of the same samples, labels, units and folds."""
    if a.scores is None or b.scores is None or a.samples is None or b.samples is None:
        return False
    facts = [
        {s.id: (s.hallucinated, s.unit, s.fold) for s in samples}
        for samples in (a.samples, b.samples)
    ]
    return facts[0] == facts[1]


def unpaired_changes(a: RunFolder, b: RunFolder) -> Iterator[Change]:
    """Yield the change of every estimate that both runs have, as of independent runs."""
    for table in (name for name in a.names if name in b.names):
        keys = a.keys(table)
        rows = {_row_name(row, keys): row for row in b.frame(table).iter_rows(named=True)}
        columns = [c for c in a.estimates(table) if c in b.estimates(table)]
        for row in a.frame(table).iter_rows(named=True):
            name = _row_name(row, keys)
            for column in columns if name in rows else ():
                cells = [
                    [r[c] for c in (column, f"{column}_low", f"{column}_high")]
                    for r in (row, rows[name])
                ]
                if all(isinstance(v, int | float) and math.isfinite(v) for c in cells for v in c):
                    yield _independent(table, name, column, *cells)


def _independent(
    table: str, row: str, column: str, before: Sequence[float], after: Sequence[float]
) -> Change:
    (a, a_low, a_high), (b, b_low, b_high) = before, after
    d = b - a
    low, high = d - math.hypot(b - b_low, a_high - a), d + math.hypot(b_high - b, a - a_low)
    return Change(table, row, column, a, b, d, low, high, paired=False)


def _row_name(row: dict[str, Any], keys: Sequence[str]) -> str:
    return ", ".join(unmarked(str(row[key])) for key in keys)


def _headline(a: RunFolder, changes: Sequence[Change]) -> list[Change]:
    """Return the changes of the first estimate of the first table that has one."""
    first = changes[0]
    if "detection" in a.names and a.kind == "detect":
        wanted = ("detection", "auroc")
    else:
        wanted = (first.table, first.column)
    return [c for c in changes if (c.table, c.column) == wanted]


def _answer(
    a: RunFolder, b: RunFolder, paired: Sequence[Change], others: Sequence[Change]
) -> list[str]:
    main = paired or _headline(a, others)
    shown = [c for c in main if c.is_shown]
    label = f"{main[0].table}.{main[0].column}"
    if shown:
        worst = max(shown, key=lambda c: abs(c.change))
        text = (
            f"`{label}` changed from A to B in {len(shown)} of {len(main)} rows "
            f"({listed(code([c.row for c in shown]))}; most in `{worst.row}`: "
            f"**{_change(worst)}**)."
        )
    else:
        widest = max(main, key=lambda c: c.high - c.low)
        text = (
            f"No change of `{label}` from A to B is shown in {len(main)} "
            f"row{'s' if len(main) != 1 else ''}; the widest interval is that of `{widest.row}`: "
            f"**{_change(widest)}**."
        )
    if paired:
        how = (
            "The comparison is paired by sample: both runs have scores of the same samples, units "
            "and folds."
        )
    else:
        reason = (
            "the runs have other samples, units or folds"
            if a.scores is not None and b.scores is not None
            else "at least one folder has no scores.csv"
        )
        how = (
            f"The comparison is unpaired, because {reason}: intervals combine those of both runs "
            "as if they were independent, which is wider than necessary if they share questions."
        )
    count = sum(c.is_shown for c in others)
    expected = 0.05 * len(others)
    rest = (
        f" Of {len(others)} further estimates, {count} have an interval that excludes 0, where "
        f"about {expected:.0f} would without any change."
        if others
        else ""
    )
    return [text, how + rest]


def _change(change: Change) -> str:
    text = (
        f"{text_of(change.change, 3, True)} "
        f"[{text_of(change.low, 3, True)}, {text_of(change.high, 3, True)}]"
    )
    return traced(text, f"{change.table}.csv: {change.row}, {change.column}, B − A")


def _main(a: RunFolder, b: RunFolder, changes: Sequence[Change]) -> PageSection:
    from harness.report.charts.forest import Look, forest
    from harness.report.charts.style import GREY, VERMILION

    names = {True: "interval excludes 0", False: "interval includes 0"}
    points = pl.DataFrame(
        [(c.row, names[c.is_shown], c.change, c.low, c.high) for c in changes[:_MOST_ROWS]],
        schema=["row", "series", "value", "low", "high"],
        orient="row",
    ).with_columns(place=pl.lit(names[True]))
    looks = {names[True]: Look(VERMILION, "square"), names[False]: Look(GREY, "circle")}
    first = changes[0]
    how = "paired by sample" if first.paired else "unpaired"
    figure = Figure(
        f"Change of {first.column} from A to B, {how}",
        f"Right of 0: higher in B. {sum(c.is_shown for c in changes)} of {len(changes)} intervals "
        "exclude 0.",
        forest(points, looks, f"{first.column}, B − A, 95% intervals", rule=0),
        points.drop("place"),
        f"`{first.table}.csv`: {first.column} of both runs",
    )
    blocks: list[Block] = [figure, _grid("Change by row", changes, folded=False)]
    blocks += _of_samples(a, b) if first.paired else []
    return PageSection(
        f"{first.table}: {first.column}", blocks, f"`{first.table}.csv` of both runs"
    )


def _of_samples(a: RunFolder, b: RunFolder) -> list[Block]:
    """Return how decisions and scores of single samples changed."""
    items = []
    for precision, before, after in _scored_by_both(a, b):
        units = before["unit"].to_numpy()
        flagged = [(s["score"] >= s["threshold"]).to_numpy() for s in (before, after)]
        flips = estimate_rate((flagged[0] != flagged[1]).astype(float), units)
        moved = estimate_mean((after["score"] - before["score"]).to_numpy(), units)
        source = f"scores.csv: {precision}"
        items.append(
            f"`{precision}`: a share of {_traced(flips, source)} of the decisions differ; the "
            f"score changed by {_traced(moved, source, signed=True)} on average."
        )
    assert a.scores is not None
    assert b.scores is not None
    same = a.scores["score"].equals(b.scores["score"])
    text = "All scores are equal." if same else "Decisions at the thresholds of each run:"
    return [Prose(text), *([] if same else [Bullets(items)])]


def _traced(estimate: Estimate, source: str, signed: bool = False) -> str:
    value, low, high = (
        text_of(number, 3, signed) for number in (estimate.value, estimate.low, estimate.high)
    )
    return traced(f"{value} [{low}, {high}]", source)


def _estimates(changes: Sequence[Change]) -> PageSection:
    shown = sorted((c for c in changes if c.is_shown), key=lambda c: -_size(c))
    title = "Other estimates"
    if not changes:
        return PageSection(title, [Prose("The runs have no other estimate in common.", "absent")])
    text = (
        "Estimates whose interval of the difference excludes 0, the largest change for its "
        "interval first. They are many comparisons at once, so about one in twenty of all is here "
        "by chance. Ranges of draws of neurons are treated as intervals."
        if shown
        else "No interval of a difference excludes 0."
    )
    blocks: list[Block] = [Prose(text, "note")]
    if shown:
        blocks.append(_grid("Estimates that changed", shown, folded=False))
    rest = [c for c in changes if not c.is_shown]
    if rest:
        blocks.append(_grid("Estimates without a shown change", rest, folded=True))
    return PageSection(title, blocks, "all tables of both runs")


def _size(change: Change) -> float:
    half = (change.high - change.low) / 2
    return abs(change.change) / half if half else math.inf


def _grid(title: str, changes: Sequence[Change], folded: bool) -> Grid:
    kept = changes[:_MOST_ROWS]
    columns = [
        Column("table", is_text=True),
        Column("row", is_text=True),
        Column("column", is_text=True),
        Column("A"),
        Column("B"),
        Column("B − A"),
        Column("interval", "of the difference", is_text=True),
    ]
    rows = [
        [
            c.table,
            c.row,
            c.column,
            text_of(float(c.before)),
            text_of(float(c.after)),
            text_of(c.change, 3, True),
            f"[{text_of(c.low, 3, True)}, {text_of(c.high, 3, True)}]",
        ]
        for c in kept
    ]
    origins = [["", "", "", *[cell_name(c.table, c.column, row=c.row)] * 4] for c in kept]
    more = len(changes) - len(kept)
    note = f"The first {len(kept)} of {len(changes)}." if more else ""
    return Grid(title, columns, rows, origins, "", folded, note)


def _values(a: RunFolder, b: RunFolder) -> PageSection:
    """Return counts and words that differ, such as verdicts."""
    rows, missing = [], []
    for table in (name for name in a.names if name in b.names):
        keys = a.keys(table)
        estimates = {*a.estimates(table), *b.estimates(table)}
        plain = [c for c in a.columns(table) if c in b.columns(table) and c not in estimates]
        other = {_row_name(row, keys): row for row in b.frame(table).iter_rows(named=True)}
        own = {_row_name(row, keys): row for row in a.frame(table).iter_rows(named=True)}
        for name, row in own.items():
            for column in plain if name in other else ():
                if column in row and row[column] != other[name].get(column):
                    values = [unmarked(str(r[column])) for r in (row, other[name])]
                    rows.append([table, name, column, *values])
        for label, left, right in (("A", own, other), ("B", other, own)):
            only = [name for name in left if name not in right]
            if only:
                few = listed(code(only[:8]))
                more = f" and {len(only) - 8} more" if len(only) > 8 else ""
                missing.append(f"`{table}`: only {label} has {few}{more}.")
    names = ("table", "row", "column", "A", "B")
    blocks: list[Block] = []
    if rows:
        note = f"The first {_MOST_ROWS} of {len(rows)}." if len(rows) > _MOST_ROWS else ""
        columns = [Column(name, is_text=True) for name in names]
        blocks.append(Grid("Values that differ", columns, rows[:_MOST_ROWS], note=note))
    else:
        blocks.append(Prose("Counts and verdicts of common rows are equal.", "note"))
    if missing:
        blocks.append(Bullets(missing))
    only_tables = [f"`{n}`" for n in {*a.names} ^ {*b.names}]
    if only_tables:
        blocks.append(Prose(f"Only one run has the tables {listed(sorted(only_tables))}.", "note"))
    return PageSection("Counts, verdicts and rows", blocks)


def _origins(a: RunFolder, b: RunFolder) -> PageSection:
    """Return in what the provenance of the runs differs, without digests of nodes."""
    facts = [{k: v for k, v in r.provenance.items() if k != "nodes"} for r in (b, a)]
    found = [unmarked(text) for text in differences(facts[0], facts[1])]
    items = [f"{text}." for text in found[:_MOST_FACTS]]
    if not found:
        return PageSection(
            "Provenance", [Prose("Model, definition and packages are equal.", "note")]
        )
    more = f" The first {_MOST_FACTS} of {len(found)}." if len(found) > _MOST_FACTS else ""
    text = f"In B, compared with A:{more}"
    return PageSection(
        "Provenance", [Prose(text), Bullets(items)], "`provenance.json` of both runs"
    )
