"""Traces on disk, and responses sampled from any backend.

How one backend computes either is in `hq.backends`.
"""
