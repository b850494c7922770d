"""Result tables: their columns, files, provenance, and pictures.

Comparing a run's tables with committed ones is in `harness.check`.
"""
