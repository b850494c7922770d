"""Live monitors: a response as it is generated, and what its H-Neurons say at every token.

`Monitor` generates with llama.cpp. `TorchMonitor` watches what transformers generates.
"""

from hq.monitor.llamacpp import Monitor
from hq.monitor.step import Step
from hq.monitor.stream import StepStreamer
from hq.monitor.torch import TorchMonitor

__all__ = ["Monitor", "Step", "StepStreamer", "TorchMonitor"]
