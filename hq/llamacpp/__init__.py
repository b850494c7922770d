"""llama.cpp at its own speed: loading, decoding, and its FFN products read and scaled natively.

Everything here speaks to llama-cpp-python's low-level API; hq/backends/llamacpp/backend.py speaks
hq's.
"""
