"""Kinds of experiment, one folder each: what it computes, its tables, and its summary.

Single steps that several experiments share are in `harness.stages`.
"""

from harness.experiments.base import EXPERIMENTS
from harness.experiments.detect.experiment import Detection
from harness.experiments.survival.experiment import Survival
from harness.experiments.sweep.experiment import Sweep

for _experiment in (Detection(), Sweep(), Survival()):
    EXPERIMENTS.add(_experiment.name, _experiment)

__all__ = ["EXPERIMENTS", "Detection", "Survival", "Sweep"]
