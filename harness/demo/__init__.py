"""The demonstration: comparison, gate and report of committed scores, without a model or torch."""
