"""Checkpoints of packed integers, as GPTQ and AWQ write them: read exactly, and made."""
