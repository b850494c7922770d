"""Experiment detect: the FP16 probe at each precision, compared with controls.

Stage `identify`, which fits the probe, is in `harness.stages`.
"""
