"""The report of any run: every table with its legend, and a forest plot of its estimates."""

from collections.abc import Sequence

import polars as pl

from harness.report.charts.forest import Look, forest, points_of
from harness.report.charts.style import BLUE
from harness.report.grids import grid, value_text
from harness.report.page import Block, Column, Facts, Figure, Grid, Part, Prose, Section
from harness.report.run import RunFolder
from harness.report.traced import traced, unmarked
from harness.tables.readme_cells import listed

_MOST = 40  # rows of a forest plot
_PANELS = 4  # forest plots of a table


def report(run: RunFolder, _others: Sequence[RunFolder]) -> Part:
    """Return the report of a run of an experiment without a builder of its own."""
    shown = [name for name in run.names if run.has(name)]
    counts = listed([f"`{name}` ({run.frame(name).height} rows)" for name in shown])
    answer = [
        f"This run of `{run.kind}` has {counts}. No report is registered for this kind of "
        "experiment, so each table is shown with its estimates and the meaning of its columns."
    ]
    return Part(answer, [section(run, name) for name in shown])


def section(run: RunFolder, table: str) -> Section:
    """Return a table with forest plots of its estimates."""
    blocks: list[Block] = [*forests(run, table), grid(run, table)]
    return Section(table, blocks, f"`{table}.csv`")


def forests(run: RunFolder, table: str) -> list[Figure]:
    """Return a forest plot of each of the first estimates of a table."""
    frame, keys = run.frame(table).head(_MOST), run.keys(table)
    names = pl.concat_str([pl.col(k).cast(pl.String) for k in keys], separator=" · ")
    figures = []
    for column in run.estimates(table)[:_PANELS]:
        points = points_of(frame, column, names, pl.lit(column))
        if not points.height:
            continue
        ordered = points.sort("value")
        (low, least), (high, most) = (ordered.select("row", "value").row(i) for i in (0, -1))
        figures.append(
            Figure(
                f"{column} of {table}",
                f"{run.columns(table)[column]}. Lowest: {low} ({least:.3f}); highest: "
                f"{high} ({most:.3f}). 95% intervals.",
                forest(points, {column: Look(BLUE, "circle")}, f"{column}, 95% intervals"),
                points.drop("series"),
                f"`{table}.csv`: {column}",
            )
        )
    return figures


def every_table(run: RunFolder) -> Section:
    """Return all tables of a run, folded."""
    blocks: list[Block] = [
        Prose(
            "Each table as it is written by the run. A cell of an estimate has its 95% interval in "
            "brackets; the meaning of each column is below its table.",
            "note",
        )
    ]
    empty = [name for name in run.names if not run.has(name)]
    blocks += [grid(run, name, folded=True) for name in run.names if run.has(name)]
    if empty:
        blocks.append(Prose(f"Without rows: {listed([f'`{n}`' for n in empty])}.", "note"))
    return Section("All tables", blocks, f"`{run.path.name}/*.csv`")


def provenance(run: RunFolder) -> Section:
    """Return what the tables were computed from."""
    facts = run.provenance
    model = facts.get("model", {})
    origin = "provenance.json"

    def fact(*keys: str) -> str:
        value: object = facts
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        text = "—" if value is None else unmarked(str(value))
        return traced(text, f"{origin}: {'.'.join(keys)}")

    rows = [
        ("experiment", f"`{unmarked(run.kind)}` of the study `{unmarked(run.study)}`"),
        (
            "model",
            f"{fact('model', 'name')}, fingerprint {fact('model', 'fingerprint')}, "
            f"{fact('model', 'n_layers')} layers of {fact('model', 'd_ff')} FFN neurons"
            if model
            else fact("fingerprint"),
        ),
        ("precisions", ", ".join(f"`{unmarked(p)}`" for p in facts["definition"]["precisions"])),
        ("seed", fact("definition", "seed")),
        ("written by", f"hq {fact('statistics', 'hq')} on {fact('statistics', 'machine')}"),
        ("threads", fact("threads")),
    ]
    settings = [
        (f"{section_}.{key}" if key else section_, str(value))
        for section_, content in facts["definition"].items()
        for key, value in (content.items() if isinstance(content, dict) else [("", content)])
        if section_ not in ("precisions", "seed", "name") and value not in (None, "", [], {})
    ]
    packages = facts.get("statistics", {}).get("packages", {})
    sampled = facts.get("sampling", {})
    blocks: list[Block] = [Facts(rows)]
    for title, pairs in (
        ("Sampling", [(k, v) for k, v in sampled.items()]),
        ("Definition of the study", settings),
        ("Packages that fit and test", [*packages.items()]),
        ("Nodes", [(n, v.get("outputs", "")) for n, v in facts.get("nodes", {}).items()]),
    ):
        if pairs:
            blocks.append(_pairs(title, pairs))
    return Section("Provenance", blocks, f"`{origin}`")


def _pairs(title: str, pairs: Sequence[tuple[str, object]]) -> Grid:
    columns = [Column("name", is_text=True), Column("value", is_text=True)]
    rows = [[unmarked(str(k)), value_text(v)] for k, v in pairs]
    return Grid(title, columns, rows, folded=True, source="`provenance.json`")
