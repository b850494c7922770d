"""Kinds of experiments, one folder each: nodes, tables and summary.

Stages that several experiments share are in `harness.stages`.
"""

from harness.experiments.base import EXPERIMENTS
from harness.experiments.detect.experiment import DetectExperiment
from harness.experiments.specifications.experiment import SpecificationsExperiment
from harness.experiments.survival.experiment import SurvivalExperiment
from harness.experiments.sweep.experiment import SweepExperiment

for _experiment in (
    DetectExperiment(),
    SweepExperiment(),
    SurvivalExperiment(),
    SpecificationsExperiment(),
):
    EXPERIMENTS.add(_experiment.name, _experiment)

__all__ = [
    "EXPERIMENTS",
    "DetectExperiment",
    "SpecificationsExperiment",
    "SurvivalExperiment",
    "SweepExperiment",
]
