"""Live monitors: the H-Neurons at every token of a response, and monitor bundles.

`LlamaMonitor` and `TorchMonitor` read neurons with either engine. `hq.Monitor`, the same for both
with texts in place of token ids, is in `hq.api`; the server is in `harness.serve`.
"""

from hq.monitor.batch import BatchMonitor
from hq.monitor.llamacpp import LlamaMonitor
from hq.monitor.step import Step
from hq.monitor.stream import StepStreamer
from hq.monitor.torch import TorchMonitor

__all__ = ["BatchMonitor", "LlamaMonitor", "Step", "StepStreamer", "TorchMonitor"]
