"""Kinds of experiments, one folder each, with its nodes, tables and summary.

Stages that several experiments share are in `harness.stages`.
"""

from harness.experiments.base import EXPERIMENTS
from harness.experiments.conditions.experiment import ConditionsExperiment
from harness.experiments.detect.experiment import DetectExperiment
from harness.experiments.detectors.experiment import DetectorsExperiment
from harness.experiments.distributions.experiment import DistributionsExperiment
from harness.experiments.drift.experiment import DriftExperiment
from harness.experiments.information.experiment import InformationExperiment
from harness.experiments.specifications.experiment import SpecificationsExperiment
from harness.experiments.steps.experiment import StepsExperiment
from harness.experiments.survival.experiment import SurvivalExperiment
from harness.experiments.sweep.experiment import SweepExperiment

for _experiment in (
    DetectExperiment(),
    SweepExperiment(),
    SurvivalExperiment(),
    DetectorsExperiment(),
    ConditionsExperiment(),
    InformationExperiment(),
    DistributionsExperiment(),
    DriftExperiment(),
    SpecificationsExperiment(),
    StepsExperiment(),
):
    EXPERIMENTS.add(_experiment.name, _experiment)

__all__ = ["EXPERIMENTS"]
