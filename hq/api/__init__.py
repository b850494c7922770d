"""The Python API, for both engines: load, trace, generate, scale and monitor.

Everything here takes texts or token ids and builds on the other rooms; import it from `hq`.
"""
