"""Studies: the sections of a TOML file, and the packaged ones.

What a study computes is in `harness.experiments`.
"""
