"""Result tables: their columns, files, provenance, and pictures.

Comparison with committed tables is in `harness.check`.
"""
