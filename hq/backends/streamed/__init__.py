"""Traces of a checkpoint that does not fit into memory: one layer is in memory at a time.

All texts pass through a layer before the next layer is read from disk.
"""
