"""From traces to an L1 probe: features, solver, identification, controls, overlap, survival.

Statistics of its scores are in `hq.stats`.
"""
