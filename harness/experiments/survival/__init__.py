"""Experiment survival: prediction from FP16 alone of the neurons that a precision changes most.

The statistics and the fit are in `hq.probe.survival`.
"""
