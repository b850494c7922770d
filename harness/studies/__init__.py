"""Studies: the sections of their TOML files, and the packaged studies.

The experiments that run a study are in `harness.experiments`.
"""
