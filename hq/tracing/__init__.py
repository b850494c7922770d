"""Traces on disk, and sampling of responses from any backend.

How a backend computes traces and logits is in `hq.backends`.
"""
