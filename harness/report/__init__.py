"""Reports of finished runs: one HTML page and a Markdown twin, read from the files of a folder.

Nothing here runs a model or imports torch.
"""
