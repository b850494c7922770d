"""Statistics of scores and rates: intervals, thresholds, comparisons of detectors, dose-response.

Nothing here depends on neurons or models; classifiers are in `hq.probe`.
"""
