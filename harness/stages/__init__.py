"""The stages that experiments share, one per file, and the nodes and materials of a study.

Stages of a single experiment are in its folder in `harness.experiments`.
"""
