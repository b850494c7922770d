"""Named ways to run one source checkpoint; importing this package registers them all."""

from hq.precisions import bitsandbytes, dense, gguf, packed, torchao
from hq.precisions.base import PRECISIONS, Precision
from hq.registry import Registry


def _on_torch(name: str, _: object) -> str:
    """The backend of a precision of another package, which is one of torch's."""
    _ = PRECISIONS[name]
    return "torch"


BACKEND_OF: Registry[str] = Registry("precision", "hq.precisions", adopt=_on_torch)
"""Every precision, and the backend that runs it."""
for _name in PRECISIONS:
    BACKEND_OF.add(_name, "torch")
for _name in gguf.NAMES:
    BACKEND_OF.add(_name, "llamacpp")

__all__ = [
    "BACKEND_OF",
    "PRECISIONS",
    "Precision",
    "bitsandbytes",
    "dense",
    "gguf",
    "packed",
    "torchao",
]
