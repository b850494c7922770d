"""Experiment drift: verdicts on the FP16 probe at other precisions, and repair without labels.

Statistics and verdicts are in `hq.monitor.drift`, repairs in `hq.probe.repair`.
"""
