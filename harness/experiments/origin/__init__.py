"""Experiment origin: the tuned model's H-Neurons in the base model that it was tuned from.

The study's model is the tuned one; the section [origin] names the base.
"""
