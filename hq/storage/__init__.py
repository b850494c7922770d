"""Writing and reading files safely: atomic writes, and folders whose content is verified.

File formats are elsewhere: GGUF in `hq.gguf`, bundles in `hq.monitor`.
"""
