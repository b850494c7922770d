"""Pictures of runs as files, by the tables that they have.

The tables in a folder decide which of `PICTURES` it has. The report shows the same charts.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from harness.report.build import require_extra
from hq.errors import HQError
from hq.storage.atomic import atomic_file

if TYPE_CHECKING:
    import altair as alt

_FORMATS = (".svg", ".png", ".pdf")


class Picture(NamedTuple):
    """A picture of a kind of run: its file beside committed tables, and what draws it."""

    file: str
    draw: "Callable[[Path], alt.TopLevelMixin]"


def draw(run: Path, into: Path) -> None:
    """Draw the picture of a run; the suffix of the file is its format.

    Raises HQError if a package is missing, if the format is unknown, or if the folder has no tables
    of which there is a picture.
    """
    if into.suffix not in _FORMATS:
        raise HQError(f"{into} has no known format: end its name in {', '.join(_FORMATS)}.")
    require_extra()
    picture = next((p for table, p in PICTURES.items() if (run / f"{table}.csv").is_file()), None)
    if picture is None:
        tables = " or ".join(f"{table}.csv" for table in PICTURES)
        raise HQError(
            f"{run} has no {tables}: give the folder of a finished run of detect, sweep, "
            "distributions or specifications."
        )
    from harness.report.charts.style import save

    chart = picture.draw(run)
    with atomic_file(into) as draft:
        save(chart, draft, into.suffix)


def _aurocs(run: Path) -> "alt.TopLevelMixin":
    from harness.report.charts.detection import aurocs

    return aurocs(run)


def _curves(run: Path) -> "alt.TopLevelMixin":
    from harness.report.charts.sweep import curves

    return curves(run)


def _distributions(run: Path) -> "alt.TopLevelMixin":
    from harness.report.charts.distributions import distributions

    return distributions(run)


def _specifications(run: Path) -> "alt.TopLevelMixin":
    from harness.report.charts.specifications import specification_curve

    return specification_curve(run)


PICTURES: Mapping[str, Picture] = {
    "detection": Picture("auroc.svg", _aurocs),
    "rates": Picture("curves.svg", _curves),
    "density": Picture("distributions.svg", _distributions),
    "specifications": Picture("specifications.svg", _specifications),
}
"""By a table that the run has."""
