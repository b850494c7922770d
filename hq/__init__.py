"""hq: find the neurons that predict hallucination, and carry them through quantization."""

__version__ = "0.1.0"
