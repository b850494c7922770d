"""Find the nodes of llama.cpp's graph that hold h, the input of each layer's down projection.

h is the second operand of the node that multiplies by `ffn_down`, whatever that operand is called
(`ffn_swiglu`, `ffn_geglu`, `ffn_gate_par`, …), so the search starts from the down projections. In a
mixture of experts they are `ffn_down_exps` and `ffn_down_shexp`, and the products with the routing
weights and with the shared expert's gate are found from them. The graph also shows how attention is
computed, which llama.cpp may change without an error.
"""

import ctypes
import re
from dataclasses import astuple, dataclass

from hq.errors import HQError
from hq.llamacpp.attention import EXACT, Attention
from hq.llamacpp.library import load_library

CPU = "CPU"  # the device of everything in host memory
_DOWN = re.compile(r"blk\.(\d+)\.ffn_down(_exps|_shexp)?\.weight")
_ROUTED, _SHARED = "_exps", "_shexp"
_CACHE = re.compile(r"cache_([kv])_l\d+\b")  # a tensor of the K-V cache, or a view of it
_ROTATION = re.compile(r"\battn_inp_([kv])_rot\b")  # the Hadamard matrix of a cache
_OPERANDS = 3  # that are inspected
_NAMES = {  # fields of the nodes that are found by name
    "": ("h", "output"),
    _ROUTED: ("h", "output", "weighted"),
    _SHARED: ("h", "output", "weighted", "gate"),
}


@dataclass(frozen=True, slots=True)
class ExpertSizes:
    """The experts of each layer of a mixture."""

    count: int  # routed experts
    used: int  # that a token is routed to
    shared_width: int = 0  # neurons of the shared expert; 0 if there is none


@dataclass(frozen=True, slots=True)
class MixtureNodes:
    """The nodes of a mixture beside those of its routed experts, and its sizes."""

    sizes: ExpertSizes
    weighted: str  # g·W_down·h, such as "ffn_moe_weighted-"
    shared_h: str = ""  # of the shared expert, as those below; empty if there is none
    shared_output: str = ""
    shared_gate: str = ""
    shared_weighted: str = ""


@dataclass(frozen=True, slots=True)
class GraphNodes:
    """The nodes that hold h and W_down·h, and the device of each layer's h.

    Node names end in the layer number, which `h` and `output` leave out.
    """

    h: str  # such as "ffn_swiglu-"
    output: str  # such as "ffn_out-"
    layers: int
    d_ff: int  # of a layer, or of each routed expert
    d_model: int
    devices: tuple[str, ...]  # of h in each layer: CPU, or the name of a GPU's buffer
    attention: str  # how it is computed, and the types of keys and values
    mixture: MixtureNodes | None = None

    @property
    def width(self) -> int:
        """Number of neurons of a layer."""
        if self.mixture is None:
            return self.d_ff
        sizes = self.mixture.sizes
        return sizes.count * self.d_ff + sizes.shared_width


@dataclass(slots=True)
class _DownProjection:
    """The nodes of one down projection: of a layer, its routed experts or its shared one."""

    h: str = ""
    output: str = ""
    d_ff: int = 0
    d_model: int = 0
    device: str = ""
    used: int = 1  # experts of a token
    gate: str = ""  # of experts: the weights that multiply W_down·h
    weighted: str = ""  # and the product


class GraphNodeFinder:
    """An eval callback that asks for no value.

    It records the input of each down projection, and how attention is computed.
    """

    def __init__(self, source: str) -> None:
        self._source = source
        self._layers: dict[tuple[int, str], _DownProjection] = {}
        self._open: dict[int, _DownProjection] = {}  # of experts, not yet weighted; by address
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
        self._inspect_product(tensor, operands)
        weight, h, *_ = operands
        match = _DOWN.fullmatch(name_of(weight)) if weight and h else None
        if match is None or h is None:
            return
        device = _device_of(h)
        d_ff, used, d_model = (
            ctypes.c_int64.from_address(node + layout.ne + offset).value
            for node, offset in ((h, 0), (h, 8), (tensor, 0))
        )
        kind = match[2] or ""
        down = _DownProjection(name_of(h), name_of(tensor), d_ff, d_model, device, used)
        self._layers[int(match[1]), kind] = down
        if kind:
            self._open[tensor] = down

    def _inspect_product(self, tensor: int, operands: list[int | None]) -> None:
        """Find the product of an expert's output, with or without its bias, with its weights."""
        first, second, *_ = operands
        down = self._open.get(first or 0)
        if down is None:
            return
        operation = load_library().ggml.ggml_op_desc(tensor)
        if operation == b"ADD_ID":
            self._open[tensor] = down
        elif operation == b"MUL":
            down.gate, down.weighted = name_of(second), name_of(tensor)

    def _inspect_attention(self, tensor: int, operands: list[int | None]) -> None:
        self._rotated |= {
            match[1] for match in map(_ROTATION.search, map(name_of, operands)) if match
        }
        operation = load_library().ggml.ggml_op_desc(tensor)
        if operation == b"FLASH_ATTN_EXT":
            self._flash_devices.append(_device_of(tensor))
        elif operation == b"SET_ROWS" and (match := _CACHE.match(name_of(tensor))):
            self._cache_types.add((match[1], _type_of(tensor)))

    def nodes(
        self,
        layers: int,
        d_ff: int,
        attention: Attention = EXACT,
        experts: ExpertSizes | None = None,
    ) -> GraphNodes:
        """Return the nodes of all layers, which are mixtures if `experts` are given.

        Raises HQError if a layer's h cannot be observed, or if attention is computed in another
        way than `attention`, or on another device than the rest of its layer.
        """
        kind = "" if experts is None else _ROUTED
        down = self._common(layers, kind, d_ff)
        mixture = None if experts is None else self._mixture(layers, down, experts)
        devices = tuple(self._layers[layer, kind].device for layer in range(layers))
        self._require(attention, devices)
        runs = attention.describe(frozenset(self._rotated))
        return GraphNodes(
            down.h, down.output, layers, d_ff, down.d_model, devices, runs, mixture=mixture
        )

    def _mixture(self, layers: int, down: _DownProjection, experts: ExpertSizes) -> MixtureNodes:
        """Return the nodes of a mixture, beside those of its routed experts `down`."""
        if down.used != experts.used:
            raise HQError(
                f"llama.cpp routes each token to {down.used} experts of {self._source}, but the "
                f"file states {experts.used}: convert it again."
            )
        shared = _DownProjection()
        if experts.shared_width:
            shared = self._common(layers, _SHARED, experts.shared_width)
        return MixtureNodes(
            experts, down.weighted, shared.h, shared.output, shared.gate, shared.weighted
        )

    def _common(self, layers: int, kind: str, d_ff: int) -> _DownProjection:
        """Return the nodes that all layers have, by names without the layer's number.

        Raises HQError if a layer lacks one, or if names or widths differ.
        """
        found: dict[tuple[object, ...], _DownProjection] = {}
        for layer in range(layers):
            down = self._layers.get((layer, kind), _DownProjection())
            suffix = f"-{layer}"
            names = _NAMES[kind]
            found_names = [getattr(down, name) for name in names]
            if down.d_ff != d_ff or not all(name.endswith(suffix) for name in found_names):
                raise HQError(
                    f"The FFN activations of layer {layer} of {self._source} cannot be observed in "
                    f"llama.cpp's graph (found {down.h or 'nothing'}): hq does not know this "
                    "architecture."
                )
            prefixes = (name.removesuffix(str(layer)) for name in found_names)
            common = _DownProjection(
                d_ff=d_ff,
                d_model=down.d_model,
                used=down.used,
                **dict(zip(names, prefixes, strict=True)),
            )
            found.setdefault(astuple(common), common)
        if len(found) != 1:
            raise HQError(
                f"The layers of {self._source} have nodes of different names or widths in "
                "llama.cpp's graph: hq does not know this architecture."
            )
        return next(iter(found.values()))

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
