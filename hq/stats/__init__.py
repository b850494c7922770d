"""Statistics of scores and rates: intervals, thresholds, equivalence tests and dose-response.

Nothing here depends on neurons or models; classifiers are in `hq.probe`.
"""
