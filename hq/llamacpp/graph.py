"""Where a model's FFN products are in llama.cpp's graph: found by asking the graph once.

A product is what the down projection of a layer multiplies, whatever its node is called
(`ffn_swiglu`, `ffn_geglu`, `ffn_gate_par`, …), so it is found from there.
"""

import ctypes
import re
from dataclasses import dataclass

from hq.errors import HQError
from hq.llamacpp.library import library

CPU = "CPU"  # the place of whatever is in host memory
_DOWN = re.compile(r"blk\.(\d+)\.ffn_down(_exps)?\.weight")


@dataclass(frozen=True, slots=True)
class GraphNodes:
    """Names of the nodes of every layer, without the layer's number, and the memory they are in."""

    product: str  # such as "ffn_swiglu-"
    down: str  # such as "ffn_out-"
    layers: int
    d_ff: int
    d_model: int
    places: tuple[str, ...]  # of each layer's product: CPU, or the name of a GPU's buffer


class GraphNodeFinder:
    """An eval callback that asks for nothing, and notes what feeds each down projection."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._found: dict[int, tuple[str, str, int, int, str]] = {}
        self._experts = False

    def __call__(self, tensor: int, ask: bool, _: object) -> bool:
        """Looks at a node, and asks for its value never."""
        if ask:
            self._look(tensor)
        return not ask

    def _look(self, tensor: int) -> None:
        layout = library().layout
        weight, product = (
            ctypes.c_void_p.from_address(tensor + layout.src + place).value for place in (0, 8)
        )
        match = _DOWN.fullmatch(_name(weight)) if weight and product else None
        if match is None or product is None:
            return
        self._experts = self._experts or match[2] is not None
        place = _place(ctypes.c_void_p.from_address(product + layout.buffer).value)
        d_ff, d_model = (
            ctypes.c_int64.from_address(node + layout.ne).value for node in (product, tensor)
        )
        self._found[int(match[1])] = (_name(product), _name(tensor), d_ff, d_model, place)

    def products(self, layers: int, d_ff: int) -> GraphNodes:
        """What was found. Raises HQError where a layer's product cannot be observed."""
        if self._experts:
            raise HQError(
                f"{self._source} is a mixture of experts, which hq cannot read yet: name a dense "
                "model."
            )
        prefixes = set()
        for layer in range(layers):
            product, down, width, d_model, _ = self._found.get(layer, ("", "", 0, 0, ""))
            ending = f"-{layer}"
            if not (product.endswith(ending) and down.endswith(ending) and width == d_ff):
                raise HQError(
                    f"The FFN product of layer {layer} of {self._source} cannot be observed in "
                    f"llama.cpp's graph (found {product or 'nothing'}): hq does not know this "
                    "architecture."
                )
            prefixes.add((product[: -len(str(layer))], down[: -len(str(layer))], d_model))
        if len(prefixes) != 1:
            raise HQError(f"The layers of {self._source} are not alike: hq cannot read them.")
        ((product, down, d_model),) = prefixes
        places = tuple(self._found[layer][-1] for layer in range(layers))
        return GraphNodes(product, down, layers, d_ff, d_model, places)


def _place(buffer: int | None) -> str:
    ggml = library().ggml
    if buffer is None or ggml.ggml_backend_buffer_is_host(buffer):
        return CPU
    return str(ggml.ggml_backend_buffer_name(buffer).decode(errors="replace"))


def _name(tensor: int | None) -> str:
    if not tensor:
        return ""
    return ctypes.string_at(tensor + library().layout.name).decode(errors="replace")
