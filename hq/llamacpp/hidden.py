"""An eval callback that copies the residual stream and the outputs of attention heads.

It runs in Python, once for every node of the graph. That is slow for single tokens, but a decode of
hundreds of tokens has as many nodes as one of a single token.
"""

import ctypes
import re
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from hq.errors import HQError
from hq.llamacpp.graph import name_of
from hq.llamacpp.library import load_library

_RESIDUAL = re.compile(r"l_out-(\d+)")
_ATTENTION_OUTPUT = re.compile(r"blk\.(\d+)\.attn_output\.weight")
_FLOAT32 = 0  # GGML_TYPE_F32


class _Wanted(NamedTuple):
    """A tensor to copy when a node of the graph is computed."""

    site: str
    layer: int
    tensor: int


class HiddenReader:
    """Copies hidden states of the wanted tokens of each decode, at every layer.

    `residual` is the output of a layer, the node `l_out`. `heads` is the second operand of the
    product with `attn_output`, whatever that operand is called. Call `begin` before a decode and
    `end` after it. An exception in a callback would be lost, so faults are raised by `end`.
    """

    def __init__(self, sites: tuple[str, ...], layers: int, source: str) -> None:
        self._sites, self._layers, self._source = sites, layers, source
        self._tokens = 0
        self._outputs: Int[np.ndarray, " output"] = np.empty(0, dtype=np.int64)
        self._values: dict[tuple[str, int], Float[np.ndarray, "output width"]] = {}
        self._fault = ""

    def __call__(self, tensor: int, ask: bool, _: object) -> bool:
        """Ask for the values of the wanted nodes, and copy them once they are computed."""
        wanted = self._wanted(tensor)
        if wanted is None:
            return not ask
        if not ask:
            self._copy(wanted)
        return True

    def begin(self, tokens: int, outputs: Int[np.ndarray, " output"]) -> None:
        """Prepare a decode of so many tokens, of which those at the indices `outputs` are read."""
        self._tokens, self._outputs = tokens, outputs
        self._values, self._fault = {}, ""

    def end(self) -> dict[str, Float[np.ndarray, "output layer width"]]:
        """Return the states of the decode. Raises HQError if a layer could not be read."""
        needed = [(site, layer) for site in self._sites for layer in range(self._layers)]
        missed = next((key for key in needed if key not in self._values), None)
        if self._fault or missed:
            reason = self._fault or "{} of layer {} was not computed".format(*missed or ())
            raise HQError(
                f"The hidden states of {self._source} could not be read in llama.cpp's graph "
                f"({reason}): hq does not know this architecture."
            )
        return {
            site: np.stack([self._values[site, layer] for layer in range(self._layers)], axis=1)
            for site in self._sites
        }

    def _wanted(self, tensor: int) -> _Wanted | None:
        layout = load_library().layout
        if "residual" in self._sites and (match := _RESIDUAL.fullmatch(name_of(tensor))):
            return _Wanted("residual", int(match[1]), tensor)
        if "heads" in self._sites:
            weight, states = (
                ctypes.c_void_p.from_address(tensor + layout.src + offset).value
                for offset in (0, 8)
            )
            match = _ATTENTION_OUTPUT.fullmatch(name_of(weight)) if weight else None
            if match is not None and states is not None:
                return _Wanted("heads", int(match[1]), states)
        return None

    def _copy(self, wanted: _Wanted) -> None:
        """Copy the rows of the outputs; the last layer may have computed no other rows."""
        layout, ggml = load_library().layout, load_library().ggml
        width, *more = (
            ctypes.c_int64.from_address(wanted.tensor + layout.ne + 8 * k).value for k in range(4)
        )
        rows = int(np.prod(more))
        kind = ctypes.c_int32.from_address(wanted.tensor + layout.type).value
        if kind != _FLOAT32 or rows not in (self._tokens, len(self._outputs)):
            self._fault = f"{wanted.site} of layer {wanted.layer} has {rows} rows of type {kind}"
            return
        values = np.empty((rows, width), dtype=np.float32)
        ggml.ggml_backend_tensor_get(wanted.tensor, values.ctypes.data, 0, values.nbytes)
        chosen = values[self._outputs] if rows == self._tokens else values
        self._values[wanted.site, wanted.layer] = chosen
