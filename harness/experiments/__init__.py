"""Kinds of experiments, one folder each: nodes, tables and summary.

Stages that several experiments share are in `harness.stages`.
"""

from harness.experiments.base import EXPERIMENTS
from harness.experiments.conditions.experiment import ConditionsExperiment
from harness.experiments.detect.experiment import DetectExperiment
from harness.experiments.distributions.experiment import DistributionsExperiment
from harness.experiments.information.experiment import InformationExperiment
from harness.experiments.survival.experiment import SurvivalExperiment
from harness.experiments.sweep.experiment import SweepExperiment

for _experiment in (
    DetectExperiment(),
    SweepExperiment(),
    SurvivalExperiment(),
    ConditionsExperiment(),
    InformationExperiment(),
    DistributionsExperiment(),
):
    EXPERIMENTS.add(_experiment.name, _experiment)

__all__ = [
    "EXPERIMENTS",
    "ConditionsExperiment",
    "DetectExperiment",
    "DistributionsExperiment",
    "InformationExperiment",
    "SurvivalExperiment",
    "SweepExperiment",
]
