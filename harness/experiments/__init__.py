"""Kinds of experiments, one folder each: nodes, tables and summary of each.

Stages that several experiments share are in `harness.stages`.
"""

from harness.experiments.base import EXPERIMENTS
from harness.experiments.detect.experiment import DetectExperiment
from harness.experiments.steps.experiment import StepsExperiment
from harness.experiments.survival.experiment import SurvivalExperiment
from harness.experiments.sweep.experiment import SweepExperiment

for _experiment in (DetectExperiment(), SweepExperiment(), SurvivalExperiment(), StepsExperiment()):
    EXPERIMENTS.add(_experiment.name, _experiment)

__all__ = [
    "EXPERIMENTS",
    "DetectExperiment",
    "StepsExperiment",
    "SurvivalExperiment",
    "SweepExperiment",
]
