"""Kinds of experiment, one folder each: what it computes, its tables, and its summary.

Single steps that several experiments share are in `harness.stages`.
"""

from harness.experiments.base import EXPERIMENTS
from harness.experiments.detect.experiment import DetectExperiment
from harness.experiments.survival.experiment import SurvivalExperiment
from harness.experiments.sweep.experiment import SweepExperiment

for _experiment in (DetectExperiment(), SweepExperiment(), SurvivalExperiment()):
    EXPERIMENTS.add(_experiment.name, _experiment)

__all__ = ["EXPERIMENTS", "DetectExperiment", "SurvivalExperiment", "SweepExperiment"]
