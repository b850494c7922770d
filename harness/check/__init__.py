"""The regression check: comparison of a run with committed tables, and acceptance of its tables.

Default tolerances of an experiment are in its folder in `harness.experiments`.
"""
