"""Resolves a study's model, encodes prompts for it, and lists the packages of each precision.

The files that a precision needs are made in `harness.stages`.
"""
