"""Checkpoints: their architecture, config, tokenizer, identity, FFN weights, head and alignment.

Loading a checkpoint at a precision is in `hq.precisions`, running it in `hq.backends`.
"""
