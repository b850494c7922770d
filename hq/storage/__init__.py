"""Files that are whole or absent: atomic writes, copies, and folders that verify their content.

Formats are elsewhere: GGUF in `hq.gguf`, bundles in `hq.monitor`.
"""
