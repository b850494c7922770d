"""The logistic loss for skglm's solver in float32. Importing skglm takes a second or two.

The `Logistic` of skglm 0.5 cannot be compiled for float32 (its `get_spec` returns None, which
`spec_to_float32` iterates over), and its float32 Hessian is NaN if a margin y · Xw is below −88,
which occurs with heavy-tailed features.
"""

import numpy as np
from jaxtyping import Float
from skglm.datafits import Logistic

Vector = Float[np.ndarray, " n"]


class StableLogistic(Logistic):  # type: ignore[misc]  # skglm ships no types
    """Mean over rows of log(1 + exp(−y · Xw)), y in {−1, 1}; skglm compiles the methods."""

    def get_spec(self) -> tuple[()]:
        """Return the fields to compile: none."""
        return ()

    def raw_hessian(self, y: Vector, Xw: Vector) -> Vector:
        """Return the second derivative by Xw, σ(Xw) σ(−Xw) / n, without overflow."""
        e = np.exp(-np.abs(Xw))
        hessian: Vector = e / (1 + e) ** 2 / len(y)
        return hessian

    def value(self, y: Vector, w: Vector, Xw: Vector) -> float:
        """Return the loss."""
        margin = y * Xw
        loss = np.log1p(np.exp(-np.abs(margin))) + np.maximum(-margin, 0)
        return loss.sum() / len(y)  # type: ignore[no-any-return]
