"""Artefacts by the digest of what made them, logs, progress, and the computing environment.

Stages, which say what an artefact depends on, are in `harness.stages`.
"""
