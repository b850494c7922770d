"""Experiment specifications: how far the study's answer depends on choices of the analysis.

Sets of neurons are computed in `hq.probe.rules`, the agreement of halves in `hq.probe.stability`.
"""
