"""Neurons: CETT, their indices (NeuronSpace), feature matrices, and NeuronSet.

Finding neurons is in `hq.probe`, and running models in `hq.backends`.
"""
