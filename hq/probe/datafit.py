"""The logistic loss as skglm's solver wants it, in float32. Imports skglm: a second or two.

skglm 0.5's own `Logistic` cannot be compiled for float32 (its `get_spec` returns None, which
`spec_to_float32` iterates over), and its Hessian is NaN once a margin y · Xw falls below −88 in
float32, which heavy-tailed features can reach.
"""

import numpy as np
from jaxtyping import Float
from skglm.datafits import Logistic

Vector = Float[np.ndarray, " n"]


class StableLogistic(Logistic):  # type: ignore[misc]  # skglm ships no types
    """Mean over rows of log(1 + exp(−y · Xw)), y in {−1, 1}; skglm compiles the methods."""

    def get_spec(self) -> tuple[()]:
        """No fields to compile."""
        return ()

    def raw_hessian(self, y: Vector, Xw: Vector) -> Vector:
        """Second derivative by Xw, [n]: σ(Xw) σ(−Xw) / n, with exponents that cannot overflow."""
        e = np.exp(-np.abs(Xw))
        hessian: Vector = e / (1 + e) ** 2 / len(y)
        return hessian

    def value(self, y: Vector, w: Vector, Xw: Vector) -> float:
        """The loss itself."""
        margin = y * Xw
        loss = np.log1p(np.exp(-np.abs(margin))) + np.maximum(-margin, 0)
        return loss.sum() / len(y)  # type: ignore[no-any-return]
