"""Result tables: their columns, files, provenance, pictures, and the documents that quote them.

Comparison with committed tables is in `harness.check`.
"""
