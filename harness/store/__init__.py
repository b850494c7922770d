"""The store of outputs, the runner that fills it, logs, progress, and the computing environment.

The stages that compute outputs are in `harness.stages`.
"""
