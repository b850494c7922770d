"""A training run on a tiny model in a second."""

from pathlib import Path

import numpy as np

from hq.models.checkpoint import checkpoint_identity
from hq.tuning.data import TuningData
from hq.tuning.settings import TuningSettings
from hq.tuning.training import TuningRun
from tests import tiny

CHOSEN = np.array([2 * tiny.D_FF + 7, 3, 40, tiny.D_FF + 5])  # not sorted, in three layers
OTHERS = np.setdiff1d(np.arange(3 * tiny.D_FF), CHOSEN)
DATA = TuningData(
    penalised=tiny.exchanges(8, seed=1),
    right=tiny.exchanges(8, seed=2),
    refusals=tiny.exchanges(8, seed=3),
    neutral=tiny.exchanges(8, seed=4),
    validation=tiny.exchanges(4, seed=5),
)
SETTINGS = TuningSettings(
    rank=4,
    learning_rate=1e-2,
    steps=40,
    batch=4,
    penalty="activation",
    penalty_weight=2.0,
    kl_weight=0.5,
    every=5,
    stop=1e9,
)


def run_on(
    path: Path, penalised: np.ndarray, settings: TuningSettings = SETTINGS, data: TuningData = DATA
) -> TuningRun:
    """The run that penalises these neurons."""
    return TuningRun(
        data=data,
        settings=settings,
        space=checkpoint_identity(path).space,
        measure="sum",
        span="answer",
        measured=CHOSEN,
        penalised=penalised,
        digest=f"{settings} {penalised.tolist()}",
    )
