"""Survival: which neurons a precision changes most, predicted from FP16 alone.

The statistics and the fit are in `hq.probe.survival`.
"""
