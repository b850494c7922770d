"""Find the neurons that predict hallucination, and carry them through quantization.

The names below are the Python API; docs/api.md explains it. They are imported when they are first
used, so that `import hq` is fast. The command line and the studies are in the package `harness`.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hq.api.model import Model
    from hq.api.monitor import Monitor
    from hq.api.opening import load, wrap
    from hq.errors import HQError
    from hq.monitor.step import Step
    from hq.neurons.features import Features
    from hq.neurons.neuron_set import ModelIdentity, Neuron, NeuronSet
    from hq.neurons.space import NeuronSpace
    from hq.probe.identify import identify

__version__ = "0.1.0"

__all__ = [
    "Features",
    "HQError",
    "Model",
    "ModelIdentity",
    "Monitor",
    "Neuron",
    "NeuronSet",
    "NeuronSpace",
    "Step",
    "identify",
    "load",
    "wrap",
]

_MODULE_OF = {
    "Features": "hq.neurons.features",
    "HQError": "hq.errors",
    "Model": "hq.api.model",
    "ModelIdentity": "hq.neurons.neuron_set",
    "Monitor": "hq.api.monitor",
    "Neuron": "hq.neurons.neuron_set",
    "NeuronSet": "hq.neurons.neuron_set",
    "NeuronSpace": "hq.neurons.space",
    "Step": "hq.monitor.step",
    "identify": "hq.probe.identify",
    "load": "hq.api.opening",
    "wrap": "hq.api.opening",
}


def __getattr__(name: str) -> object:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'hq' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_MODULE_OF[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
