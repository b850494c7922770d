"""Experiment detectors: H-Neurons and the detectors they compete with, on the same answers.

Stages: `confidence` (token probabilities and P(True)), `resample` (fresh responses),
`verification` (a chain of verification), `hidden` (hidden states) and `probes` (their probes).
"""
