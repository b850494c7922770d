"""Neurons, what is measured of them, and the texts they are measured on: CETT, NeuronSet.

Finding neurons is in `hq.probe`, and running models in `hq.backends`.
"""
