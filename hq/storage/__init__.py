"""Writing and reading files safely: atomic writes, copies, and folders that are verified.

File formats are elsewhere: GGUF in `hq.gguf`, bundles in `hq.monitor`.
"""
