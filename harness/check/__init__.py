"""The release gate: comparison of a run with committed tables, verdicts, and acceptance.

Default tolerances of an experiment are in its folder in `harness.experiments`.
"""
