"""Kinds of experiment, one folder each: what it computes, its tables, and its summary.

Single steps that several experiments share are in `harness.stages`.
"""
