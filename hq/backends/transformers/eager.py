"""Detect compiled models: compiled code does not call hooks that were added after compilation.

A hook that is not called reads and scales nothing, without an error.
"""

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch._dynamo.utils import counters

from hq.errors import HQError

_LOCK = threading.Lock()


@contextmanager
def eager(model: Any, hooked: Iterable[nn.Module]) -> Iterator[None]:
    """Reject compiled code around the `hooked` modules of `model` while the context lasts.

    Raises HQError on entry if the model, or a part of it that contains such a module, is compiled,
    and inside the context if `generate` is about to compile its decoding (static caches on a GPU).
    """
    _require_eager(model, frozenset(hooked))
    replacement = _NoCompiledCall.enter(model)
    try:
        yield
    finally:
        replacement.leave()


def anything_compiled() -> bool:
    """Whether torch.compile has compiled any code in this process."""
    return bool(counters["frames"]["ok"])


def _require_eager(model: nn.Module, hooked: frozenset[nn.Module]) -> None:
    for name, module in model.named_modules():
        if _is_compiled(module) and not hooked.isdisjoint(module.modules()):
            where = f"Its module {name}" if name else "The model"
            raise HQError(
                f"{where} is compiled, and compiled code does not call the hooks that read and "
                "scale neurons: pass the model without torch.compile or torch.jit."
            )


def _is_compiled(module: nn.Module) -> bool:
    """Whether torch.compile, `module.compile()` or torch.jit replaced what a call runs."""
    if isinstance(module, (torch._dynamo.OptimizedModule, torch.jit.ScriptModule)):
        return True
    forward = module.forward
    wrapped = hasattr(forward, "_torchdynamo_orig_callable")
    # torch.compiler.disable wraps functions in the same way.
    disabled = getattr(forward, "_torchdynamo_disable", False)
    return module._compiled_call_impl is not None or (wrapped and not disabled)


class _NoCompiledCall:
    """Replaces the method from which `generate` gets its compiled decoding."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._own = vars(model).get("get_compiled_call")
        self._users = 0

    def __call__(self, *_: object, **__: object) -> Any:
        """Raises HQError."""
        raise HQError(
            "With this cache `generate` compiles its decoding, and compiled code does not call the "
            "hooks that read and scale neurons: pass disable_compile=True."
        )

    @classmethod
    def enter(cls, model: Any) -> "_NoCompiledCall":
        """The replacement on this model, which several contexts may share."""
        with _LOCK:
            replacement = vars(model).get("get_compiled_call")
            if not isinstance(replacement, cls):
                replacement = model.get_compiled_call = cls(model)
            replacement._users += 1
        return replacement

    def leave(self) -> None:
        """Restore the method of the model when the last context ends."""
        with _LOCK:
            self._users -= 1
            if not self._users:
                del self._model.get_compiled_call
                if self._own is not None:
                    self._model.get_compiled_call = self._own
