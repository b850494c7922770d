"""Statistics of comparisons: bootstrap, conformal thresholds, equivalence, dose-response.

Nothing here knows neurons or models; classifiers are in `hq.probe`.
"""
