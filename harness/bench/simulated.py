"""Simulated data sets with dependent rows and a known truth, for benches `intervals` and `tests`.

Rows belong to units of the sizes of a study. Scores are normal with a part that rows share within a
unit; a shift of the positives sets the AUROC.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
from jaxtyping import Float, Int
from scipy.sparse import csr_array
from scipy.stats import norm

from hq.stats.intervals import Statistic, Weights
from hq.storage.atomic import write_whole

# Rows per unit of `smollm2-knowledge`: 624 units, 1,622 rows, 221.7 effective units.
_KNOWLEDGE = (
    *(20,) * 13,
    *(19, 18, 16, 16, 16, 14, 14, 13, 12, 12),
    *(11,) * 4,
    *(10,) * 5,
    9,
    *(8,) * 6,
    *(7,) * 4,
    *(6,) * 16,
    *(5,) * 18,
    *(4,) * 33,
    *(3,) * 24,
    *(2,) * 153,
    *(1,) * 337,
)
# Rows per unit of `smollm2-facts`: 72 units, 1,494 rows, 20.7 effective units.
_FACTS = (
    *(136, 128, 122, 118, 90, 80, 78, 76, 62, 56, 46, 36, 34, 34, 28, 28, 22, 20),
    *(14,) * 4,
    *(12,) * 7,
    *(10,) * 2,
    *(8,) * 3,
    *(6,) * 6,
    *(4,) * 8,
    *(2,) * 24,
)
SIZES: dict[str, tuple[int, ...]] = {
    "knowledge": _KNOWLEDGE,
    "facts": _FACTS,
    "single rows": (1,) * 200,
}
"""Rows per unit: those of the default study, of a study with few large units, and single rows."""

CORRELATIONS = (0.0, 0.3, 0.6)
TABLE_FILE = "statistics.md"
SHIFT = 1.66  # of the positives, in standard deviations: AUROC 0.88
FOLDS = 5


class Design(NamedTuple):
    """Rows in units, and the correlation of the rows of a unit."""

    sizes: str
    correlation: float

    @property
    def units(self) -> Int[np.ndarray, " row"]:
        """The unit of each row."""
        sizes = SIZES[self.sizes]
        return np.repeat(np.arange(len(sizes)), sizes)

    @property
    def labels(self) -> Int[np.ndarray, " row"]:
        """The class of each row: alternating, so balanced within a unit of even size."""
        return np.arange(len(self.units)) % 2

    @property
    def folds(self) -> Int[np.ndarray, " row"]:
        """The fold of each row: units of similar size are in different folds."""
        return self.units % FOLDS


def latent(
    design: Design, rng: np.random.Generator, by_class: bool
) -> tuple[Float[np.ndarray, " row"], Float[np.ndarray, " row"]]:
    """Return the parts of unit and row of standard normal scores, without the shift of a class.

    Rows of a unit share their part; if `by_class`, only rows of the same class do.
    """
    units, rho = design.units, design.correlation
    of_unit = rng.standard_normal((len(SIZES[design.sizes]), 2))
    shared = of_unit[units, design.labels if by_class else 0]
    return np.sqrt(rho) * shared, np.sqrt(1 - rho) * rng.standard_normal(len(units))


def area_of(shift: float) -> float:
    """Return the AUROC of normal scores whose positives are shifted by so many deviations."""
    return float(norm.cdf(shift / np.sqrt(2)))


def shift_of(area: float) -> float:
    """Return the shift of the positives with this AUROC."""
    return float(np.sqrt(2) * norm.ppf(area))


def area_by_unit(
    scores: Sequence[Float[np.ndarray, " row"]],
    labels: Int[np.ndarray, " row"],
    units: Int[np.ndarray, " row"],
    contrast: Sequence[float] = (1.0,),
    strata: Int[np.ndarray, " row"] | None = None,
) -> Statistic:
    """Return Σ_k contrast_k · AUROC_k as a statistic of weights of units.

    It is the sum of `hq.stats.auroc.auroc_statistic` for rows that have the weight of their unit,
    but faster: the wins between every two units are counted once. Rows are ordered by unit, which
    is numbered from 0, and scores have no ties.
    """
    positive, negative = np.flatnonzero(labels == 1), np.flatnonzero(labels == 0)
    stratum = np.zeros_like(labels) if strata is None else strata
    comparable = stratum[positive, None] == stratum[negative]
    wins = np.zeros((int(units.max()) + 1,) * 2)
    of_positive, of_negative = (
        csr_array((np.ones(len(rows)), (units[rows], np.arange(len(rows)))), (len(wins), len(rows)))
        for rows in (positive, negative)
    )
    for weight, score in zip(contrast, scores, strict=True):
        above = ((score[positive, None] > score[negative]) & comparable).astype(np.float64)
        wins += weight * (of_negative @ (of_positive @ above).T).T
    counts = np.zeros((2, int(stratum.max()) + 1, len(wins)))
    np.add.at(counts, (labels, stratum, units), 1)

    def statistic(weights: Weights) -> Float[np.ndarray, " weightings"]:
        n_neg, n_pos = (weights @ of_class.T for of_class in counts)
        pairs = (n_pos * n_neg).sum(axis=1)
        area: Float[np.ndarray, " weightings"] = np.full(len(weights), np.nan)
        np.divide(_quadratic(weights, wins), pairs, out=area, where=pairs > 0)
        return area

    return statistic


def _quadratic(
    weights: Weights, matrix: Float[np.ndarray, "unit unit"]
) -> Float[np.ndarray, " weightings"]:
    """Return wᵀ·matrix·w for each row w; in O(units²) for all of a jackknife, which has few 0."""
    removed = np.nonzero(weights != 1)
    if len(removed[0]) > len(weights):
        dense: Float[np.ndarray, " weightings"] = ((weights @ matrix) * weights).sum(axis=1)
        return dense
    sparse = csr_array((1 - weights[removed], removed), weights.shape)
    linear = sparse @ (matrix.sum(axis=0) + matrix.sum(axis=1))
    squares = sparse.multiply(sparse @ matrix).sum(axis=1)
    result: Float[np.ndarray, " weightings"] = matrix.sum() - linear + squares
    return result


def of_rows(statistic: Statistic, units: Int[np.ndarray, " row"]) -> Statistic:
    """Return a statistic of weights of units as one of weights of rows, which units share."""
    first = np.unique(units, return_index=True)[1]
    return lambda weights: statistic(weights[:, first])


def write_results(
    folder: Path, name: str, rows: Sequence[NamedTuple], table: Callable[[Path], str]
) -> None:
    """Write `name`.csv, and its table between the markers of this name in statistics.md."""
    frame = pl.DataFrame(rows, schema=list(rows[0]._fields), orient="row")
    write_whole(folder / f"{name}.csv", frame.write_csv())
    document = (folder / TABLE_FILE).read_text(encoding="utf-8")
    begin, end = markers(name)
    before, rest = document.split(begin)
    after = rest.split(end)[1]
    write_whole(folder / TABLE_FILE, f"{before}{begin}\n{table(folder)}{end}{after}")


def markers(name: str) -> tuple[str, str]:
    """Return the lines before and after a table of statistics.md."""
    return f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
