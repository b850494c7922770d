"""Curves and counts from the scores of samples: ROC, reliability, and changes of scores."""

from collections.abc import Sequence

import numpy as np
import polars as pl
from jaxtyping import Float

from hq.stats.intervals import estimate_rate

_GRID = np.linspace(0, 1, 51)
_BINS = 10
_FEWEST = 8  # samples of a bin that is drawn
_CELLS = 16


def roc(scores: pl.DataFrame) -> Float[np.ndarray, "2 point"]:
    """Return false-alarm and detection rates of one precision's scores.

    The curve is the mean of the folds' curves, weighted by their pairs of a right and a
    hallucinated answer. Its area is the AUROC of the tables, which compares answers of one fold.
    """
    curves, weights = [], []
    for _, fold in scores.group_by("fold", maintain_order=True):
        y = fold["hallucinated"].to_numpy()
        positives, negatives = int(y.sum()), int((~y).sum())
        if positives and negatives:
            curves.append(_fold_curve(fold["score"].to_numpy(), y))
            weights.append(positives * negatives)
    if not curves:
        return np.empty((2, 0))
    return np.stack([_GRID, np.average(curves, axis=0, weights=weights)])


def _fold_curve(values: Float[np.ndarray, " n"], y: np.ndarray) -> Float[np.ndarray, " point"]:
    """Return detection rates at the false-alarm rates of the grid, with straight lines at ties."""
    order = np.argsort(-values, kind="stable")
    ends = np.r_[np.flatnonzero(np.diff(values[order])), len(values) - 1]
    detected = np.r_[0, np.cumsum(y[order])[ends] / y.sum()]
    false = np.r_[0, np.cumsum(~y[order])[ends] / (~y).sum()]
    # On a vertical step, the rate at its end counts.
    keep = np.r_[np.flatnonzero(np.diff(false)), len(false) - 1]
    at: Float[np.ndarray, " point"] = np.interp(_GRID, false[keep], detected[keep])
    at[0] = 0.0
    return at


def reliability(scores: pl.DataFrame) -> pl.DataFrame:
    """Return, per bin of the predicted probability: its mean, the observed share, and counts.

    The probe is a logistic regression, so its probability is 1 ÷ (1 + exp(−score)). Intervals are
    over units; a bin of fewer than 8 answers or 2 units is left out.
    """
    p = 1 / (1 + np.exp(-scores["score"].to_numpy()))
    y, units = scores["hallucinated"].to_numpy().astype(float), scores["unit"].to_numpy()
    bins = np.minimum((p * _BINS).astype(int), _BINS - 1)
    rows = []
    for b in range(_BINS):
        inside = bins == b
        if inside.sum() < _FEWEST or len(np.unique(units[inside])) < 2:
            continue
        share = estimate_rate(y[inside], units[inside])
        rows.append(
            (float(p[inside].mean()), share.value, share.low, share.high, int(inside.sum()))
        )
    schema = ["predicted", "observed", "low", "high", "answers"]
    return pl.DataFrame(
        rows, schema=dict.fromkeys(schema[:4], pl.Float64) | {"answers": pl.Int64}, orient="row"
    )


def binned(scores: pl.DataFrame, reference: str, precisions: Sequence[str]) -> pl.DataFrame:
    """Return counts of answers by score at the reference and at each other precision, in cells.

    A page of every point would be several megabytes. Cells are equal for all precisions.
    """
    wide = scores.pivot("precision", index=["sample", "hallucinated"], values="score")
    values = scores["score"]
    low, high = float(values.quantile(0.005) or 0), float(values.quantile(0.995) or 1)
    size = (high - low) / _CELLS or 1.0

    def cell(column: str) -> pl.Expr:
        number = ((pl.col(column) - low) / size).floor().clip(0, _CELLS - 1)
        return low + size * (number + 0.5)

    frames = [
        wide.filter(pl.col(p).is_not_null())
        .group_by(x=cell(reference), y=cell(p), maintain_order=True)
        .agg(answers=pl.len(), hallucinated=pl.col("hallucinated").mean())
        .select(pl.lit(p).alias("precision"), "x", "y", "answers", "hallucinated")
        for p in precisions
    ]
    return pl.concat(frames).sort("precision", "x", "y")


def agreement(scores: pl.DataFrame, reference: str, precision: str) -> tuple[float, float]:
    """Return the correlation of scores with the reference's, and the mean change of the score."""
    wide = scores.pivot("precision", index="sample", values="score")
    a, b = wide[reference].to_numpy(), wide[precision].to_numpy()
    constant = not (np.ptp(a) and np.ptp(b))
    return (float("nan") if constant else float(np.corrcoef(a, b)[0, 1])), float((b - a).mean())
