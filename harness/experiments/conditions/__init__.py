"""Experiment conditions: which neurons meet the formal definition of an H-Neuron.

A neuron meets it if its weight is positive, and if its CETT alone predicts hallucination in the
study's scenario and in a second one.
"""
