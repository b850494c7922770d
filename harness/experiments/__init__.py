"""Kinds of experiments, one folder each: nodes, tables and summary of detect, sweep and survival.

Stages that several experiments share are in `harness.stages`.
"""

from harness.experiments.base import EXPERIMENTS
from harness.experiments.detect.experiment import DetectExperiment
from harness.experiments.survival.experiment import SurvivalExperiment
from harness.experiments.sweep.experiment import SweepExperiment

for _experiment in (DetectExperiment(), SweepExperiment(), SurvivalExperiment()):
    EXPERIMENTS.add(_experiment.name, _experiment)

__all__ = ["EXPERIMENTS", "DetectExperiment", "SurvivalExperiment", "SweepExperiment"]
