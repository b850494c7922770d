"""Experiment information: mutual information of single neurons and hallucination.

The estimates are in `hq.stats.information`.
"""
