"""Agreement of two readings of the same neurons on the same samples, say at two precisions."""

import warnings

import numpy as np
from jaxtyping import Float
from scipy.stats import ConstantInputWarning, NearConstantInputWarning, pearsonr, rankdata

from hq.errors import HQError


def rank_within_layer(values: Float[np.ndarray, "*batch d_ff"]) -> Float[np.ndarray, "*batch d_ff"]:
    """Rank of each neuron among its layer's, along the last axis: 1 is the largest, ties share.

    Features [n, p] are ranked as `X.reshape(n, n_layers, d_ff)`.
    """
    ranks: Float[np.ndarray, "*batch d_ff"] = rankdata(-values, axis=-1)
    return ranks


def pearson_columns(
    a: Float[np.ndarray, "n k"], b: Float[np.ndarray, "n k"]
) -> Float[np.ndarray, " k"]:
    """Pearson's correlation over samples of each column; NaN where a column is constant."""
    _check_paired(a, b)
    with warnings.catch_warnings():
        # A constant column is data here, and its NaN says so to the caller.
        warnings.simplefilter("ignore", ConstantInputWarning)
        warnings.simplefilter("ignore", NearConstantInputWarning)
        r: Float[np.ndarray, " k"] = pearsonr(a.astype(np.float64), b.astype(np.float64)).statistic
    return r


def spearman_columns(
    a: Float[np.ndarray, "n k"], b: Float[np.ndarray, "n k"]
) -> Float[np.ndarray, " k"]:
    """Spearman's rank correlation over samples of each column; NaN where a column is constant."""
    _check_paired(a, b)
    return pearson_columns(rankdata(a, axis=0), rankdata(b, axis=0))


def relative_error(
    reading: Float[np.ndarray, "n k"], reference: Float[np.ndarray, "n k"]
) -> Float[np.ndarray, " k"]:
    """‖reading − reference‖₂ / ‖reference‖₂ over samples of each column; NaN for a zero column."""
    _check_paired(reading, reference)
    whole = np.linalg.norm(reference.astype(np.float64), axis=0)
    off = np.linalg.norm(reading.astype(np.float64) - reference, axis=0)
    ratio: Float[np.ndarray, " k"] = np.full(len(whole), np.nan)
    np.divide(off, whole, out=ratio, where=whole > 0)
    return ratio


def _check_paired(a: Float[np.ndarray, "n k"], b: Float[np.ndarray, "n k"]) -> None:
    if a.ndim != 2 or a.shape != b.shape or len(a) < 2:
        raise HQError(
            f"Readings of shapes {a.shape} and {b.shape} cannot be compared: "
            "give the same neurons on the same samples, at least two."
        )
