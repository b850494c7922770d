"""Checkpoints on disk: architectures, configs, tokenizers, FFN weights, and their alignment.

How a precision loads them is in `hq.precisions`, and how they run in `hq.backends`.
"""
