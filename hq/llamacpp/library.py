"""llama.cpp's shared library: loaded once, with its log captured and its tensor layout measured.

llama-cpp-python is an extra, so it is imported only when a model is opened.
"""

import ctypes
import itertools
import sys
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from hq.errors import HQError

_ERROR_LEVEL = 4  # GGML_LOG_LEVEL_ERROR
_STRUCT_BYTES = 1024  # larger than a ggml_tensor, smaller than the arena that it is made in
_SHAPE = (7, 11, 13, 17)  # all different, and different from the strides of such a tensor
_F32 = 0  # GGML_TYPE_F32
_TYPE_NUMBERS = (26, 30)  # GGML_TYPE_I32 and _BF16: numbers that occur nowhere else in a tensor
_GPU_TYPES = (1, 2)  # GGML_BACKEND_DEVICE_TYPE_GPU and _IGPU


@dataclass(frozen=True, slots=True)
class TensorLayout:
    """Byte offsets of the fields of a ggml_tensor."""

    type: int  # int32: number of the element type
    buffer: int  # pointer to the buffer that `data` is in
    ne: int  # int64[4]: elements along each axis, the innermost first
    nb: int  # size_t[4]: bytes from one element to the next along each axis
    src: int  # pointers to the operands
    data: int  # pointer
    name: int  # zero-terminated string


@dataclass(frozen=True, slots=True)
class Library:
    """llama-cpp-python's low-level module, ggml's tensor functions, and the tensor layout."""

    llama: ModuleType
    ggml: Any  # ctypes.CDLL
    layout: TensorLayout
    errors: deque[str]  # the last lines that llama.cpp logged at level ERROR
    gpus: tuple[str, ...]  # GPUs that this build can use on this machine, such as CUDA0

    def reason(self) -> str:
        """The first error that llama.cpp logged since `errors` was cleared, without a full stop."""
        lines = [line.strip().rstrip(".") for line in self.errors if line.strip()]
        return lines[0] if lines else "llama.cpp gave no reason"


@cache
def load_library() -> Library:
    """Load llama.cpp, once per process.

    Raises HQError if llama-cpp-python is missing or its tensor layout cannot be determined.
    """
    try:
        import llama_cpp
        from llama_cpp import _ctypes_extensions as extensions
    except ImportError as error:
        raise HQError("GGUF files need llama-cpp-python: pip install 'hq[llama]'.") from error
    except (OSError, RuntimeError) as error:
        raise HQError(f"llama-cpp-python cannot be loaded: {error}.") from error
    folder = Path(llama_cpp.__file__).parent / "lib"
    ggml = _functions(extensions.load_shared_library("ggml-base", folder))
    errors: deque[str] = deque(maxlen=8)
    _capture_errors(llama_cpp, errors)
    llama_cpp.llama_backend_init()
    try:
        layout = _probe(ggml)
    except LookupError as error:
        version = getattr(llama_cpp, "__version__", "of unknown version")
        raise HQError(
            f"The tensor layout of llama-cpp-python {version} is unknown (field {error}): install "
            "the version that hq[llama] requires."
        ) from error
    gpus = _gpus(ggml, extensions.load_shared_library("ggml", folder))
    return Library(llama_cpp, ggml, layout, errors, gpus)


def _functions(ggml: Any) -> Any:
    """Declare the functions that hq calls; sizes and addresses are plain integers."""
    pointer, size = ctypes.c_void_p, ctypes.c_size_t
    for name, result, arguments in (
        ("ggml_init", pointer, [_InitParams]),
        ("ggml_free", None, [pointer]),
        ("ggml_new_tensor_4d", pointer, [pointer, ctypes.c_int, *[ctypes.c_int64] * 4]),
        ("ggml_add", pointer, [pointer, pointer, pointer]),
        ("ggml_set_name", pointer, [pointer, ctypes.c_char_p]),
        ("ggml_get_name", pointer, [pointer]),
        ("ggml_op_desc", ctypes.c_char_p, [pointer]),
        ("ggml_type_name", ctypes.c_char_p, [ctypes.c_int]),
        ("ggml_get_data", pointer, [pointer]),
        ("ggml_tensor_overhead", size, []),
        ("ggml_backend_cpu_buffer_type", pointer, []),
        ("ggml_backend_alloc_ctx_tensors_from_buft", pointer, [pointer, pointer]),
        ("ggml_backend_buffer_is_host", ctypes.c_bool, [pointer]),
        ("ggml_backend_buffer_name", ctypes.c_char_p, [pointer]),
        ("ggml_backend_dev_name", ctypes.c_char_p, [pointer]),
        ("ggml_backend_dev_type", ctypes.c_int, [pointer]),
        ("ggml_backend_buffer_free", None, [pointer]),
        ("ggml_backend_tensor_get", None, [pointer, pointer, size, size]),
        ("ggml_backend_tensor_set", None, [pointer, pointer, size, size]),
    ):
        function = getattr(ggml, name)
        function.restype, function.argtypes = result, arguments
    return ggml


def _gpus(ggml: Any, registry: Any) -> tuple[str, ...]:
    """Names of the GPUs among the devices that llama.cpp has registered."""
    registry.ggml_backend_dev_count.restype = ctypes.c_size_t
    registry.ggml_backend_dev_get.restype = ctypes.c_void_p
    registry.ggml_backend_dev_get.argtypes = [ctypes.c_size_t]
    devices = map(registry.ggml_backend_dev_get, range(registry.ggml_backend_dev_count()))
    return tuple(
        ggml.ggml_backend_dev_name(device).decode(errors="replace")
        for device in devices
        if ggml.ggml_backend_dev_type(device) in _GPU_TYPES
    )


class _InitParams(ctypes.Structure):
    _fields_ = (
        ("mem_size", ctypes.c_size_t),
        ("mem_buffer", ctypes.c_void_p),
        ("no_alloc", ctypes.c_bool),
    )


def _probe(ggml: Any) -> TensorLayout:
    """Determine the offsets by creating tensors and searching for their known values.

    Raises LookupError with the name of a field that is not found, or is found more than once.
    """
    context = ggml.ggml_init(_InitParams(1 << 20, None, True))
    buffer = None
    try:
        first, second = (ggml.ggml_new_tensor_4d(context, _F32, *_SHAPE) for _ in range(2))
        total = ggml.ggml_add(context, first, second)
        memory = ggml.ggml_backend_cpu_buffer_type()
        buffer = ggml.ggml_backend_alloc_ctx_tensors_from_buft(context, memory)
        strides = tuple(itertools.accumulate(_SHAPE[:3], int.__mul__, initial=4))
        size = min(_STRUCT_BYTES, ggml.ggml_tensor_overhead())
        typed = (ggml.ggml_new_tensor_4d(context, number, *_SHAPE) for number in _TYPE_NUMBERS)
        numbers = zip(*((ctypes.c_int32 * (size // 4)).from_address(t) for t in typed), strict=True)
        layout = TensorLayout(
            type=_find("type", list(numbers), (_TYPE_NUMBERS,), 4),
            buffer=_find("buffer", _words(first, size), (buffer,)),
            ne=_find("ne", _words(first, size), _SHAPE),
            nb=_find("nb", _words(first, size), strides),
            src=_find("src", _words(total, size), (first, second)),
            data=_find("data", _words(first, size), (ggml.ggml_get_data(first),)),
            name=ggml.ggml_get_name(first) - first,
        )
        ggml.ggml_set_name(first, b"ffn_probe-3")
        if not 0 < layout.name < size or ctypes.string_at(first + layout.name) != b"ffn_probe-3":
            raise LookupError("name")
        return layout
    finally:
        ggml.ggml_backend_buffer_free(buffer)
        ggml.ggml_free(context)


def _words(address: int, size: int) -> list[int]:
    return list((ctypes.c_uint64 * (size // 8)).from_address(address))


def _find(field: str, words: Sequence[object], values: tuple[object, ...], nbytes: int = 8) -> int:
    """Byte offset of the only occurrence of consecutive `values` among words of `nbytes` bytes."""
    width = len(values)
    indices = [i for i in range(len(words)) if tuple(words[i : i + width]) == values]
    if len(indices) != 1:
        raise LookupError(field)
    return nbytes * indices[0]


_LOG_CALLBACKS: list[Any] = []  # referenced by llama.cpp, so Python must not free them


def _capture_errors(llama: ModuleType, errors: deque[str]) -> None:
    """Collect llama.cpp's error lines, and print nothing of its log."""

    def log(level: int, text: bytes, _: object) -> None:
        if level == _ERROR_LEVEL and not sys.is_finalizing():
            errors.append(text.decode(errors="replace"))

    callback = llama.llama_log_callback(log)
    _LOG_CALLBACKS.append(callback)
    llama.llama_log_set(callback, ctypes.c_void_p(0))
