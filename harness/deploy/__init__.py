"""Making a bundle from a finished run, for monitors, and writing its model card.

The bundle's format, and loading one, are in `hq.monitor.bundle`.
"""
