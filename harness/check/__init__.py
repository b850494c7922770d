"""The regression gate: a run compared with committed tables, and its rows accepted.

Tolerances of an experiment's columns are beside the experiment.
"""
