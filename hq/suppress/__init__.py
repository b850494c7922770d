"""α-suppression that is stored in files: baked into a model's weights, or written as an adapter.

Scaling in a running model is `Backend.scale` in `hq.backends`.
"""
