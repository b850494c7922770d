"""Find the nodes of llama.cpp's graph that hold h, the input of each layer's down projection.

h is the second operand of the node that multiplies by `ffn_down`, whatever that operand is called
(`ffn_swiglu`, `ffn_geglu`, `ffn_gate_par`, …), so the search starts from the down projections.
The graph also shows how attention is computed, which llama.cpp may change without an error.
"""

import ctypes
import re
from dataclasses import dataclass

from hq.errors import HQError
from hq.llamacpp.attention import EXACT, Attention
from hq.llamacpp.library import load_library

CPU = "CPU"  # the device of everything in host memory
_DOWN = re.compile(r"blk\.(\d+)\.ffn_down(_exps)?\.weight")
_CACHE = re.compile(r"cache_([kv])_l\d+\b")  # a tensor of the K-V cache, or a view of it
_ROTATION = re.compile(r"\battn_inp_([kv])_rot\b")  # the Hadamard matrix of a cache
_OPERANDS = 3  # that are inspected


@dataclass(frozen=True, slots=True)
class GraphNodes:
    """The nodes that hold h and W_down·h, and the device of each layer's h.

    Node names end in the layer number, which `h` and `output` leave out.
    """

    h: str  # such as "ffn_swiglu-"
    output: str  # such as "ffn_out-"
    layers: int
    d_ff: int
    d_model: int
    devices: tuple[str, ...]  # of h in each layer: CPU, or the name of a GPU's buffer
    attention: str  # how it is computed, and the types of keys and values


@dataclass(frozen=True, slots=True)
class _DownProjection:
    """The nodes of one layer's down projection."""

    h: str
    output: str
    d_ff: int
    d_model: int
    device: str


class GraphNodeFinder:
    """An eval callback that asks for no value.

    It records the input of each down projection, and how attention is computed.
    """

    def __init__(self, source: str) -> None:
        self._source = source
        self._layers: dict[int, _DownProjection] = {}
        self._experts = False
        self._flash_devices: list[str] = []  # of each flash attention, in the order of layers
        self._cache_types: set[tuple[str, str]] = set()  # k or v, and the type that is written
        self._rotated: set[str] = set()  # k, v

    def __call__(self, tensor: int, ask: bool, _: object) -> bool:
        """Inspect a node of the graph; never ask for its value."""
        if ask:
            self._inspect(tensor)
        return not ask

    def _inspect(self, tensor: int) -> None:
        layout = load_library().layout
        operands = [
            ctypes.c_void_p.from_address(tensor + layout.src + offset).value
            for offset in range(0, 8 * _OPERANDS, 8)
        ]
        self._inspect_attention(tensor, operands)
        weight, h, *_ = operands
        match = _DOWN.fullmatch(name_of(weight)) if weight and h else None
        if match is None or h is None:
            return
        self._experts = self._experts or match[2] is not None
        device = _device_of(h)
        d_ff, d_model = (
            ctypes.c_int64.from_address(node + layout.ne).value for node in (h, tensor)
        )
        down = _DownProjection(name_of(h), name_of(tensor), d_ff, d_model, device)
        self._layers[int(match[1])] = down

    def _inspect_attention(self, tensor: int, operands: list[int | None]) -> None:
        self._rotated |= {
            match[1] for match in map(_ROTATION.search, map(name_of, operands)) if match
        }
        operation = load_library().ggml.ggml_op_desc(tensor)
        if operation == b"FLASH_ATTN_EXT":
            self._flash_devices.append(_device_of(tensor))
        elif operation == b"SET_ROWS" and (match := _CACHE.match(name_of(tensor))):
            self._cache_types.add((match[1], _type_of(tensor)))

    def nodes(self, layers: int, d_ff: int, attention: Attention = EXACT) -> GraphNodes:
        """Return the nodes of all layers.

        Raises HQError if a layer's h cannot be observed, or if attention is computed in another
        way than `attention`, or on another device than the rest of its layer.
        """
        if self._experts:
            raise HQError(
                f"{self._source} is a mixture of experts, which hq cannot read yet: name a dense "
                "model."
            )
        prefixes = set()
        for layer in range(layers):
            down = self._layers.get(layer, _DownProjection("", "", 0, 0, ""))
            suffix = f"-{layer}"
            if not (down.h.endswith(suffix) and down.output.endswith(suffix) and down.d_ff == d_ff):
                raise HQError(
                    f"The FFN activations of layer {layer} of {self._source} cannot be observed in "
                    f"llama.cpp's graph (found {down.h or 'nothing'}): hq does not know this "
                    "architecture."
                )
            digits = len(str(layer))
            prefixes.add((down.h[:-digits], down.output[:-digits], down.d_model))
        if len(prefixes) != 1:
            raise HQError(
                f"The layers of {self._source} have nodes of different names or widths in "
                "llama.cpp's graph: hq does not know this architecture."
            )
        ((h, output, d_model),) = prefixes
        devices = tuple(self._layers[layer].device for layer in range(layers))
        self._require(attention, devices)
        runs = attention.describe(frozenset(self._rotated))
        return GraphNodes(h, output, layers, d_ff, d_model, devices, runs)

    def _require(self, attention: Attention, devices: tuple[str, ...]) -> None:
        """Raises HQError unless attention is computed as it was asked for."""
        flash_devices = list(devices) if attention.flash else []
        cache_types = {("k", attention.keys), ("v", attention.values)}
        if self._flash_devices == flash_devices and self._cache_types == cache_types:
            return
        caches = ", ".join(f"{cache.upper()} {kind}" for cache, kind in sorted(self._cache_types))
        where = f" on {', '.join(sorted(set(self._flash_devices)))}" if self._flash_devices else ""
        raise HQError(
            f"{self._source} was to run with {attention.describe()} on "
            f"{', '.join(sorted(set(devices)))}, but llama.cpp runs it with flash attention in "
            f"{len(self._flash_devices)} of {len(devices)} layers{where} and the caches "
            f"{caches or 'unknown'}: choose a precision with another suffix, or without one."
        )


def _device_of(tensor: int) -> str:
    """The device whose memory a tensor is in."""
    library = load_library()
    ggml = library.ggml
    buffer = ctypes.c_void_p.from_address(tensor + library.layout.buffer).value
    if buffer is None or ggml.ggml_backend_buffer_is_host(buffer):
        return CPU
    return str(ggml.ggml_backend_buffer_name(buffer).decode(errors="replace"))


def name_of(tensor: int | None) -> str:
    """The name of a tensor; empty if there is none."""
    if not tensor:
        return ""
    return ctypes.string_at(tensor + load_library().layout.name).decode(errors="replace")


def _type_of(tensor: int) -> str:
    """The type of a tensor as ggml names it, such as q8_0."""
    library = load_library()
    number = ctypes.c_int32.from_address(tensor + library.layout.type).value
    return str(library.ggml.ggml_type_name(number).decode())
