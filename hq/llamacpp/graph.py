"""Find the nodes of llama.cpp's graph that hold h, the input of each layer's down projection.

h is the second operand of the node that multiplies by `ffn_down`, whatever that operand is called
(`ffn_swiglu`, `ffn_geglu`, `ffn_gate_par`, …), so the search starts from the down projections.
"""

import ctypes
import re
from dataclasses import dataclass

from hq.errors import HQError
from hq.llamacpp.library import load_library

CPU = "CPU"  # the device of everything in host memory
_DOWN = re.compile(r"blk\.(\d+)\.ffn_down(_exps)?\.weight")


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


@dataclass(frozen=True, slots=True)
class _DownProjection:
    """The nodes of one layer's down projection."""

    h: str
    output: str
    d_ff: int
    d_model: int
    device: str


class GraphNodeFinder:
    """An eval callback that asks for no value and records the input of each down projection."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._layers: dict[int, _DownProjection] = {}
        self._experts = False

    def __call__(self, tensor: int, ask: bool, _: object) -> bool:
        """Inspect a node of the graph; never ask for its value."""
        if ask:
            self._inspect(tensor)
        return not ask

    def _inspect(self, tensor: int) -> None:
        layout = load_library().layout
        weight, h = (
            ctypes.c_void_p.from_address(tensor + layout.src + offset).value for offset in (0, 8)
        )
        match = _DOWN.fullmatch(_name(weight)) if weight and h else None
        if match is None or h is None:
            return
        self._experts = self._experts or match[2] is not None
        device = _device_of(ctypes.c_void_p.from_address(h + layout.buffer).value)
        d_ff, d_model = (
            ctypes.c_int64.from_address(node + layout.ne).value for node in (h, tensor)
        )
        down = _DownProjection(_name(h), _name(tensor), d_ff, d_model, device)
        self._layers[int(match[1])] = down

    def nodes(self, layers: int, d_ff: int) -> GraphNodes:
        """Return the nodes of all layers. Raises HQError if a layer's h cannot be observed."""
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
        return GraphNodes(h, output, layers, d_ff, d_model, devices)


def _device_of(buffer: int | None) -> str:
    ggml = load_library().ggml
    if buffer is None or ggml.ggml_backend_buffer_is_host(buffer):
        return CPU
    return str(ggml.ggml_backend_buffer_name(buffer).decode(errors="replace"))


def _name(tensor: int | None) -> str:
    if not tensor:
        return ""
    return ctypes.string_at(tensor + load_library().layout.name).decode(errors="replace")
