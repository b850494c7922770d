"""From a finished run to a bundle that monitors use, with its model card.

What a bundle holds, and reading one, is in `hq.monitor.bundle`.
"""
