"""Experiment sweep: how often a model over-complies while its H-Neurons are scaled by α.

Scenarios and their judges are in `harness.scenarios` and `harness.judges`.
"""
