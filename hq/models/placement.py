"""Where a model's modules compute, and their weights where accelerate's hooks hold them elsewhere.

With a device map, each layer computes on a device of its own. Weights that are offloaded, to the
memory of the CPU or to a disk, are on the meta device except during the forward pass of their
module.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from hq.errors import HQError

AUTO: Literal["auto"] = "auto"  # the device of models that accelerate distributes


class PerDevice:
    """A tensor and its copies, one per device and type that asks for it."""

    def __init__(self, tensor: Tensor) -> None:
        self._copies = {(tensor.device, tensor.dtype): tensor}
        self._tensor = tensor

    def on(self, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
        """The tensor on a device, in a type (default: its own); copied at the first call only."""
        key = (device, dtype or self._tensor.dtype)
        copy = self._copies.get(key)
        if copy is None:
            with torch.inference_mode(False):  # the copy may be used with gradients later
                copy = self._copies[key] = self._tensor.to(*key)
        return copy


def require_supported(device: torch.device) -> None:
    """Raise HQError for Apple's GPU, which has no float64 and on which hq was never tested."""
    if device.type == "mps":
        raise HQError(
            "hq does not run on Apple's GPU (mps), which has no float64, and was never tested on "
            "it: use the device cpu."
        )


def device_of(module: nn.Module) -> torch.device:
    """Return the device on which a module with weights of its own computes."""
    weight = next(module.parameters())
    if weight.is_meta:
        hook: Any = getattr(module, "_hf_hook", None)
        for one in getattr(hook, "hooks", (hook,)):
            execution = getattr(one, "execution_device", None)
            if execution is not None:
                return torch.device(execution)
    return weight.device


@contextmanager
def in_memory(module: nn.Module) -> Iterator[None]:
    """Hold the module's own weights on the device on which it computes, while the context lasts.

    Weights that no hook can load stay on the meta device.
    """
    if not any(weight.is_meta for weight in module.parameters(recurse=False)):
        yield
        return
    from accelerate.utils import align_module_device

    with align_module_device(module):
        yield


_BIASES: WeakKeyDictionary[nn.Module, Tensor] = WeakKeyDictionary()  # of offloaded modules


def bias_of(module: nn.Module) -> Tensor | None:
    """Return a projection's bias, on the device on which it computes; None if it has none."""
    bias: Tensor | None = getattr(module, "bias", None)
    if bias is None or not bias.is_meta:
        return bias
    if module not in _BIASES:
        with in_memory(module):
            _BIASES[module] = module.get_parameter("bias").detach()
    return _BIASES[module]


def is_distributed(model: Any) -> bool:
    """Whether a device map distributes the model's modules over more than one device."""
    return len(set(getattr(model, "hf_device_map", {}).values())) > 1


def places(model: Any, modules: Mapping[str, nn.Module]) -> dict[str, str]:
    """Describe where each module, by name in the model, computes and holds its weights.

    The description is empty if the whole model is on one device.
    """
    if not is_distributed(model):
        return dict.fromkeys(modules, "")
    found = {}
    for name, module in modules.items():
        device = device_of(module)
        found[name] = f"on {device}"
        if next(module.parameters()).is_meta:
            held = {"cpu": "in the CPU's memory", "disk": "on disk"}[_mapped(model, name)]
            found[name] += f", weights {held}"
    return found


def summary(of_layers: Sequence[str]) -> str:
    """Return how many layers are at each place, in the order of the layers."""
    counts = Counter(of_layers)
    return ", ".join(f"{n} of {len(of_layers)} layers {where}" for where, n in counts.items())


def _mapped(model: Any, name: str) -> str:
    """The entry of the device map that a module belongs to."""
    entries = {
        key: str(value)
        for key, value in model.hf_device_map.items()
        if not key or name == key or name.startswith(f"{key}.")
    }
    return entries[max(entries, key=len)]
