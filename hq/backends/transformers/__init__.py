"""The transformers backend: hooks on the input of each down projection, prefixes, decoding.

llama.cpp's is in `hq.backends.llamacpp`; precisions load models in `hq.precisions`.
"""
