"""Kinds of experiments, one folder each, with its nodes, tables and summary.

Stages that several experiments share are in `harness.stages`.
"""

from harness.experiments.base import EXPERIMENTS
from harness.experiments.detect.experiment import DetectExperiment
from harness.experiments.detectors.experiment import DetectorsExperiment
from harness.experiments.survival.experiment import SurvivalExperiment
from harness.experiments.sweep.experiment import SweepExperiment

for _experiment in (
    DetectExperiment(),
    SweepExperiment(),
    SurvivalExperiment(),
    DetectorsExperiment(),
):
    EXPERIMENTS.add(_experiment.name, _experiment)

__all__ = [
    "EXPERIMENTS",
    "DetectExperiment",
    "DetectorsExperiment",
    "SurvivalExperiment",
    "SweepExperiment",
]
