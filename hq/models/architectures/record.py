"""What hq knows about one architecture, in one record, and the registry of these records.

A record says where a decoder layer keeps its FFN, how wide that is, which norms identify the model,
and how llama.cpp runs it. Each family registers its records in a file of its own in this folder.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import PretrainedConfig

from hq.errors import HQError
from hq.models.norm_digest import NormNames
from hq.registry import Registry

Value = bool | int | float | str | list[str] | list[int] | list[float]
Metadata = dict[str, Value]
Weights = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Conversion:
    """How one of transformers' models becomes one of llama.cpp's.

    `architecture` is llama.cpp's name of it.

    `metadata` gives its keys, without the architecture's prefix, or raises HQError for a config
    that llama.cpp would compute differently. `edit` makes llama.cpp's weights from transformers',
    in the same shape; it is told the part's name ("attn_q", "output_norm", …). `made` gives
    tensors, by name, that a checkpoint does not have. `biases` are the parts whose bias llama.cpp
    reads.
    """

    architecture: str
    metadata: Callable[[PretrainedConfig], Metadata]
    edit: Callable[[str, Weights, PretrainedConfig], Weights]
    made: Callable[[PretrainedConfig], dict[str, Weights]] = lambda _: {}
    biases: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Layout:
    """The tensors of one architecture of llama.cpp.

    `layer` and `outside` are those beside the attention's projections, with their shapes: in GGUF's
    order, by the names of `hq.gguf.layout.Sizes.widths`. `biased` must have a bias; every
    projection may.
    """

    model_type: str  # transformers' name for the architecture
    layer: Mapping[str, str]
    outside: Mapping[str, str]
    biased: frozenset[str] = frozenset()
    epsilon: str = "layer_norm_rms_epsilon"


def intermediate_size(config: PretrainedConfig) -> int:
    """`intermediate_size`: one number, or a list with the same number for every layer.

    Raises HQError for layers of different widths.
    """
    width: Any = config.intermediate_size
    if isinstance(width, list | tuple):
        widths = sorted(set(width))
        if len(widths) > 1:
            raise different_widths(config.model_type, widths)
        (width,) = widths
    return int(width)


def different_widths(model_type: str, widths: list[int]) -> HQError:
    """The error for a model whose layers do not all have the same number of neurons."""
    return HQError(
        f"The layers of this {model_type} model have FFNs of different widths "
        f"({', '.join(map(str, widths))}): hq needs the same width in every layer."
    )


def attribute(name: str) -> Callable[[PretrainedConfig], int]:
    """The FFN's width from this attribute of a config, or 4 · hidden_size where it is unset."""

    def width(config: PretrainedConfig) -> int:
        return int(getattr(config, name, None) or 4 * config.hidden_size)

    return width


LLAMA_NORMS = {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}
QK_NORMS = {"self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm"}


@dataclass(frozen=True, slots=True)
class Architecture:
    """How one architecture names things inside its decoder (the body, without the LM head).

    `layers` is the path from the decoder to its list of layers; the others are paths from a layer.
    The defaults are Llama's.
    """

    layers: str = "layers"
    down: str = "mlp.down_proj"
    up: str = "mlp.up_proj"
    gate: str = "mlp.gate_proj"  # empty where there is no gate, or `up` holds it too
    norm: str = "post_attention_layernorm"  # before the FFN; empty where none with weights is
    norm_offset: float = 0.0  # what the norm adds to its weights
    fused: bool = False  # `up` holds the gate (first half) and the up projection
    transposed: bool = False  # checkpoints store weights as [d_in, d_out]
    width: Callable[[PretrainedConfig], int] = intermediate_size  # d_ff, from the text config
    linear_in_up: bool = True  # with a gate: h_i is proportional to row i of W_up
    norms: NormNames | None = None  # the norms that identify a model; None where GGUF has no names
    conversion: Conversion | None = None  # how it is written as GGUF; None where it cannot be
    detected: bool = False  # found in the model's structure, not in a record

    @property
    def projections(self) -> tuple[str, ...]:
        """Paths of the FFN's projections."""
        return tuple(filter(None, (self.gate, self.up, self.down)))

    @property
    def described(self) -> dict[str, str]:
        """What provenance says of it: whether it was detected, and which modules are hooked."""
        known_by = "detected" if self.detected else "record"
        return {"known_by": known_by, "down": f"{self.layers}.*.{self.down}"}

    @property
    def gated(self) -> bool:
        """Whether the FFN has a gate, of its own or in `up`."""
        return bool(self.gate) or self.fused


RECORDS: Registry[Architecture] = Registry("model architecture", "hq.families")
"""By the `model_type` of the language model's config."""

GGUF_LAYOUTS: Registry[Layout] = Registry("GGUF architecture")  # by llama.cpp's name


def register(record: Architecture, *model_types: str) -> None:
    """Enter one record for each of these model types."""
    for model_type in model_types:
        RECORDS.add(model_type, record)
