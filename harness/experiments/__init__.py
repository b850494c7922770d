"""Kinds of experiments, one folder each, with its nodes, tables and summary.

Stages that several experiments share are in `harness.stages`. An experiment is imported when it is
used, because stages import torch.
"""

from harness.experiments.base import EXPERIMENTS

for _name, _class in {
    "detect": "DetectExperiment",
    "sweep": "SweepExperiment",
    "survival": "SurvivalExperiment",
    "detectors": "DetectorsExperiment",
    "conditions": "ConditionsExperiment",
    "information": "InformationExperiment",
    "distributions": "DistributionsExperiment",
    "drift": "DriftExperiment",
    "finetune": "FinetuneExperiment",
    "specifications": "SpecificationsExperiment",
    "steps": "StepsExperiment",
    "tokens": "TokensExperiment",
    "origin": "OriginExperiment",
}.items():
    EXPERIMENTS.add_named(_name, f"{__name__}.{_name}.experiment:{_class}")

__all__ = ["EXPERIMENTS"]
