"""Experiment distributions: where H-Neurons are, and how their CETT is distributed.

Density per layer against random placement, and CETT of right and hallucinated answers.
"""
