"""Live monitors: a response as it is generated, and what its H-Neurons say at every token."""

from hq.monitor.llamacpp import Monitor
from hq.monitor.step import Step

__all__ = ["Monitor", "Step"]
