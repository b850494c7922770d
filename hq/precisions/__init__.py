"""Named ways to run one checkpoint: FP16, BF16, bitsandbytes, packed, small floats, torchao, GGUF.

What executes a model at a precision is in `hq.backends`; GGUF files themselves are in `hq.gguf`.
"""

from hq.errors import HQError
from hq.precisions import bitsandbytes, dense, fp8, gguf, mxfp4, nvfp4, packed, torchao
from hq.precisions.base import PRECISIONS, Precision
from hq.registry import Registry

_TORCH: tuple[Precision, ...] = (
    bitsandbytes.Int8(),
    bitsandbytes.FourBit("nf4"),
    bitsandbytes.FourBit("nf4", double=True),
    bitsandbytes.FourBit("fp4"),
    dense.FP16(),
    dense.BF16(),
    fp8.FP8(),
    nvfp4.NVFP4(),
    mxfp4.MXFP4(),
    *packed.packed_precisions(),
    torchao.TorchAOInt8(),
    torchao.TorchAOInt4(),
    torchao.HQQ(),
)


def _on_torch(name: str, _: object) -> str:
    """The backend of a precision of another package, which is one of torch's."""
    _ = PRECISIONS[name]
    return "torch"


class _Backends(Registry[str]):
    """The backend of each precision. Names with a suffix are looked up, but not listed."""

    def __getitem__(self, name: str) -> str:
        """Return a backend. Raises HQError if there is no such precision, or no such suffix."""
        file, plus, suffix = name.partition(gguf.PLUS)
        backend = super().__getitem__(file)
        if plus and file not in gguf.GGUF_PRECISIONS:
            raise HQError(
                f"Precision {name!r} has the suffix {plus + suffix!r}, which only GGUF precisions "
                f"have: name {file!r}, or a precision such as 'gguf-q4_k_m{plus + suffix}'."
            )
        gguf.attention_of(name)
        return backend


BACKEND_OF: Registry[str] = _Backends("precision", "hq.precisions", adopt=_on_torch)
"""Every precision, and the backend that runs it; GGUF precisions may have a suffix."""
for _precision in _TORCH:
    PRECISIONS.add(_precision.name, _precision)
    BACKEND_OF.add(_precision.name, "torch")
for _name in gguf.GGUF_PRECISIONS:
    BACKEND_OF.add(_name, "llamacpp")

__all__ = [
    "BACKEND_OF",
    "PRECISIONS",
    "Precision",
    "bitsandbytes",
    "dense",
    "fp8",
    "gguf",
    "mxfp4",
    "nvfp4",
    "packed",
    "torchao",
]
