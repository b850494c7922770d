"""α-suppression that outlives a process: scales baked into weights, and LoRA adapters.

Scaling in a running model is `Backend.scale` in `hq.backends`.
"""
