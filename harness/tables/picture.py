"""Pictures of runs, by the tables that they have.

The tables in a folder decide which of `PICTURES` it has.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import polars as pl

from harness.tables.distributions_picture import draw_distributions
from harness.tables.files import lacks_table, read_table
from harness.tables.specification_picture import specification_curve
from hq.errors import HQError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_FORMATS = (".svg", ".png", ".pdf")
_CONTROLS = {
    "matched": "matched random neurons*",
    "random": "random neurons*",
    "entropy": "token entropy",
    "length": "answer length",
    "relation": "relation",
    "text-answer": "text: words of the answer",
    "text-question": "text: words of the question",
    "text-both": "text: words of both",
    "text-spelling": "text: characters of both",
}
# Colour-blind safe (Okabe & Ito); the shapes differ too, for greyscale.
_OF_PRECISION = {
    "probe identified on FP16, frozen": ("#0072B2", "o"),
    "re-identified neurons": ("#56B4E9", "D"),
    "matched random neurons*": ("#D55E00", "s"),
    "random neurons*": ("#E69F00", "^"),
    "token entropy": ("#009E73", "v"),
}
# They depend on the samples only, so they are equal at all precisions and drawn once.
_OF_SAMPLES = {
    "answer length": ("#999999", "<"),
    "relation": ("#CC79A7", ">"),
    "text: words of the answer": ("#000000", "*"),
    "text: words of the question": ("#000000", "d"),
    "text: words of both": ("#000000", "P"),
    "text: characters of both": ("#000000", "X"),
}
_STYLES = _OF_PRECISION | _OF_SAMPLES
_MAKINGS = "frozen probe, further makings"
_EVERY = "all precisions"
_STEP = 0.13  # between two series, where precisions are 1 apart
_PANEL = 2.4, 2.0  # inches
_H, _MATCHED = "#0072B2", "#D55E00"


def draw(run: Path, into: Path) -> None:
    """Draw the picture of a run; the suffix of the file is its format.

    Raises HQError if matplotlib is missing, if the format is unknown, or if the folder has no
    tables of which there is a picture.
    """
    if into.suffix not in _FORMATS:
        raise HQError(f"{into} has no known format: end its name in {', '.join(_FORMATS)}.")
    try:
        from matplotlib import rc_context
    except ImportError as error:
        raise HQError("Pictures need matplotlib: pip install 'hq[report]'.") from error
    picture = next((p for table, p in PICTURES.items() if (run / f"{table}.csv").is_file()), None)
    if picture is None:
        tables = " or ".join(f"{table}.csv" for table in PICTURES)
        raise HQError(
            f"{run} has no {tables}: give the folder of a finished run of detect, sweep or "
            "distributions."
        )
    # Text remains text and ids are constant, so that files can be read and compared.
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "hq"}):
        figure = picture.draw(run)
        into.parent.mkdir(parents=True, exist_ok=True)
        metadata = {"Date": None} if into.suffix == ".svg" else None
        figure.savefig(into, metadata=metadata, dpi=160)


def _aurocs(run: Path) -> "Figure":
    """Draw the AUROCs of a run with their intervals."""
    from matplotlib.figure import Figure

    points = _points(run)
    rows = points["precision"].unique(maintain_order=True).to_list()
    figure = Figure(figsize=(8, 1.5 + 0.75 * len(rows)), layout="constrained")
    axes = figure.subplots()
    for name, (colour, marker) in _STYLES.items():
        group = list(_OF_SAMPLES if name in _OF_SAMPLES else _OF_PRECISION)
        offset = _STEP * (group.index(name) - (len(group) - 1) / 2)
        series = points.filter(pl.col("name") == name)
        value = series["value"].to_numpy()
        spread = abs(series.select("low", "high").to_numpy().T - value)
        y = [rows.index(precision) + offset for precision in series["precision"]]
        axes.errorbar(value, y, xerr=spread, fmt=marker, color=colour, capsize=2, label=name, ms=5)
    makings = _makings(run)
    if len(makings):  # on the line of the frozen probe, without intervals
        offset = _STEP * (1 - len(_OF_PRECISION)) / 2
        y = [rows.index(precision) + offset for precision in makings["precision"]]
        colour, marker = next(iter(_OF_PRECISION.values()))
        axes.plot(
            makings["auroc"].to_numpy(),
            y,
            linestyle="",
            marker=marker,
            color=colour,
            label=_MAKINGS,
            markersize=3.5,
            markerfacecolor="none",
            markeredgewidth=0.7,
        )
    axes.axvline(0.5, color="#bbbbbb", lw=1, zorder=0)
    axes.set_yticks(range(len(rows)), rows)
    axes.invert_yaxis()
    n, units = points.select("n", "units").row(0)
    axes.set_xlabel(
        f"AUROC out of fold, {n} samples in {units} units, 95% intervals (*: of the draws)"
    )
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside right upper", frameon=False, fontsize=9)
    return figure


def _curves(run: Path) -> "Figure":
    """Draw the rates of a sweep over α: a row of panels per scenario, a column per precision."""
    from matplotlib.figure import Figure

    rates, slopes = read_table(run, "rates"), read_table(run, "slopes")
    scenarios, precisions = (
        slopes[column].unique(maintain_order=True).to_list() for column in ("scenario", "precision")
    )
    width, height = _PANEL[0] * len(precisions), _PANEL[1] * len(scenarios)
    figure = Figure(figsize=(1 + width, 0.6 + height), layout="constrained")
    grid = figure.subplots(
        len(scenarios), len(precisions), sharex=True, sharey="row", squeeze=False
    )
    for row, scenario in zip(grid, scenarios, strict=True):
        for axes, precision in zip(row, precisions, strict=True):
            chosen = (pl.col("scenario") == scenario) & (pl.col("precision") == precision)
            _panel(axes, rates.filter(chosen).sort("alpha"))
            # Tables of earlier versions have no shape.
            shape = slopes.filter(chosen)["shape"].to_list() if "shape" in slopes.columns else []
            if shape and shape[0].startswith("not monotone"):
                axes.text(0.04, 0.04, "not monotone", transform=axes.transAxes, fontsize=8)
        row[0].set_ylabel(scenario.replace(":", "\n"), fontsize=9)
    for axes, precision in zip(grid[0], precisions, strict=True):
        axes.set_title(precision, fontsize=10)
    n, draws = slopes.select("n", "draws").row(0)
    figure.supxlabel(
        f"α. Share of up to {n} responses that comply, 95% intervals; band: 95% of {draws} draws",
        fontsize=9,
    )
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=2, frameon=False, fontsize=9)
    return figure


def _panel(axes: "Axes", rates: pl.DataFrame) -> None:
    """Draw the rates of the H-Neurons with intervals, and those of the matched draws as a band."""
    drawn, h = (rates.filter(pl.col("neurons") == name) for name in ("matched", "h"))
    band = [drawn[column].to_numpy() for column in ("alpha", "rate", "rate_low", "rate_high")]
    axes.fill_between(band[0], band[2], band[3], color=_MATCHED, alpha=0.25, lw=0)
    axes.plot(band[0], band[1], "s--", color=_MATCHED, ms=3, lw=1, label="matched neurons")
    value = h["rate"].to_numpy()
    spread = abs(h.select("rate_low", "rate_high").to_numpy().T - value)
    axes.errorbar(
        h["alpha"], value, yerr=spread, fmt="o-", color=_H, capsize=2, ms=4, label="H-Neurons"
    )
    axes.axvline(1, color="#bbbbbb", lw=1, zorder=0)
    axes.spines[["top", "right"]].set_visible(False)


class Picture(NamedTuple):
    """A picture of a kind of run: its file beside committed tables, and what draws it."""

    file: str
    draw: "Callable[[Path], Figure]"


PICTURES: Mapping[str, Picture] = {
    "detection": Picture("auroc.svg", _aurocs),
    "rates": Picture("curves.svg", _curves),
    "density": Picture("distributions.svg", draw_distributions),
    "specifications": Picture("specifications.svg", specification_curve),
}
"""By a table that the run has."""


def _points(run: Path) -> pl.DataFrame:
    """Return name, precision, n, units, value, low and high of every drawn point."""
    detection, controls = read_table(run, "detection"), read_table(run, "controls")
    probe, reidentified = list(_STYLES)[:2]
    drawn = _columns(controls, pl.col("control").replace(_CONTROLS), "auroc")
    is_equal = pl.col("name").is_in(list(_OF_SAMPLES))
    return pl.concat(
        [
            _columns(detection, pl.lit(probe), "auroc"),
            _columns(detection, pl.lit(reidentified), "auroc_again"),
            drawn.filter(~is_equal),
            drawn.filter(is_equal)
            .with_columns(precision=pl.lit(_EVERY))
            .unique("name", keep="first"),
        ]
    )


def _makings(run: Path) -> pl.DataFrame:
    """Return precision and AUROC of every making after the first."""
    making = pl.col("making").cast(pl.Int64)  # text in a CSV file without rows
    if lacks_table(run, "makings"):
        return pl.DataFrame()
    return read_table(run, "makings").filter(making > 0).select("precision", "auroc")


def _columns(table: pl.DataFrame, name: pl.Expr, column: str) -> pl.DataFrame:
    return table.select(
        name.alias("name"),
        "precision",
        "n",
        "units",
        pl.col(column).alias("value"),
        pl.col(f"{column}_low").alias("low"),
        pl.col(f"{column}_high").alias("high"),
    )
