"""What runs a model: one protocol, `Backend`, and one package for each engine behind it.

What a precision is, and how it is loaded and verified, is in `hq.precisions`.
"""
