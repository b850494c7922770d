"""Live monitors: a response as it is generated, and what its H-Neurons say at every token.

`LlamaMonitor` generates with llama.cpp. `TorchMonitor` watches what transformers generates.
"""

from hq.monitor.llamacpp import LlamaMonitor
from hq.monitor.step import Step
from hq.monitor.stream import StepStreamer
from hq.monitor.torch import TorchMonitor

__all__ = ["LlamaMonitor", "Step", "StepStreamer", "TorchMonitor"]
