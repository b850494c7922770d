"""The llama.cpp backend: texts packed into batches, traced and continued.

The library's own interface and the native callback are in `hq.llamacpp`.
"""
