"""The change of the AUROC over the makings of a precision, each of which is another checkpoint."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from harness.experiments.detect.tables import SpreadRow
from harness.stages.identify import Rows
from harness.stages.uncertainty import Uncertainty
from hq.stats.auroc import auroc_difference_statistic
from hq.stats.intervals import Estimate, estimate
from hq.stats.replicates import OverReplicates, estimate_over_replicates
from hq.tracing.traces import Traces

_NAME = "difference of AUROCs"


class FurtherMaking(NamedTuple):
    """A checkpoint of a precision after the first."""

    traces: Traces
    uncertainty: Uncertainty


class Changes(NamedTuple):
    """The paired change from the reference at each making, and over all of them."""

    each: tuple[Estimate, ...]  # with intervals over units
    over: OverReplicates | None  # None if there is one making

    @property
    def decisive(self) -> Estimate:
        """The mean with its interval over makings and units, or the change at the only making."""
        return self.each[0] if self.over is None else self.over.mean

    def spread(self, precision: str, rows: Rows) -> list[SpreadRow]:
        """Return the row of table `spread`; none if there is one making."""
        if self.over is None:
            return []
        row = SpreadRow(
            precision=precision,
            makings=self.over.replicates,
            n=len(rows.y),
            units=self.over.mean.n,
            auroc_change=self.over.mean,
            deviation=self.over.deviation,
            share=self.over.share,
        )
        return [row]


def over_makings(
    before: Float[np.ndarray, " n"], after: Sequence[Float[np.ndarray, " n"]], rows: Rows
) -> Changes:
    """Return the changes between decision values at the reference and at each making."""
    n, units = len(rows.y), rows.units
    statistics = [auroc_difference_statistic(a, before, rows.y, rows.folds) for a in after]
    each = tuple(estimate(statistic, n, units, _NAME) for statistic in statistics)
    over = estimate_over_replicates(statistics, n, units, _NAME) if len(after) > 1 else None
    return Changes(each, over)
