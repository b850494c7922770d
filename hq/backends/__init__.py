"""Backends, which run models: one protocol, `Backend`, and one package for each engine.

How a precision is loaded and verified is in `hq.precisions`.
"""
