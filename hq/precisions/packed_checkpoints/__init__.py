"""Checkpoints of packed integers (GPTQ, AWQ, compressed-tensors): exact reading, and quantization.

How a model runs with packed weights is in `hq.precisions.packed`.
"""
