"""The record of one architecture, and the registries of records.

A record says where the FFN is in a decoder layer, how wide it is, which norms identify the model,
and how the model is written as GGUF. Each family registers its records in a file of this folder, or
of another package.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hq.errors import HQError
from hq.models.architectures.experts import Experts
from hq.models.architectures.gguf_settings import Fields, GGUFSettings
from hq.models.norm_digest import NormNames
from hq.neurons.space import NeuronBlock, NeuronSpace
from hq.registry import Registry

if TYPE_CHECKING:  # the import takes a second
    from transformers import PretrainedConfig

Value = bool | int | float | str | list[str] | list[int] | list[float]
Metadata = dict[str, Value]
Weights = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Conversion:
    """How a checkpoint is written as GGUF.

    Args:
        architecture: name of the architecture in llama.cpp.
        metadata: returns the metadata, keys without the architecture's prefix, or raises HQError
            for a config that llama.cpp would compute differently.
        edit: returns llama.cpp's weights of a part ("attn_q", "output_norm", …) from those of the
            checkpoint, in the same shape.
        made: returns tensors by name that the checkpoint does not have.
        biases: the parts whose bias llama.cpp reads.
    """

    architecture: str
    metadata: Callable[["PretrainedConfig"], Metadata]
    edit: Callable[[str, Weights, "PretrainedConfig"], Weights]
    made: Callable[["PretrainedConfig"], dict[str, Weights]] = lambda _: {}
    biases: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Layout:
    """What a GGUF file of one architecture of llama.cpp holds, and how its settings are read.

    `layer` and `outside` name the tensors other than the attention's projections, with their
    shapes: in GGUF's order, by the names of `hq.gguf.layout.Sizes.widths`. The tensors in `biased`
    must have a bias; every projection may have one. `fields` returns the arguments of the config of
    transformers, or raises HQError for a setting that transformers' model does not have.
    """

    model_type: str  # transformers' name of the architecture
    fields: Callable[[GGUFSettings], Fields]
    layer: Mapping[str, str]
    outside: Mapping[str, str]
    biased: frozenset[str] = frozenset()
    epsilon: str = "layer_norm_rms_epsilon"
    expert_width: str = "feed_forward_length"  # of mixtures: the key of the width of an expert
    shared_width: str = ""  # and of the shared expert; empty if there is none


Width = int | Sequence[int]  # of every layer's FFN, or of each layer's


def intermediate_size(config: "PretrainedConfig") -> Width:
    """Return `intermediate_size`: the width of every layer's FFN, or a list with that of each."""
    width: Any = config.intermediate_size
    return [int(w) for w in width] if isinstance(width, list | tuple) else int(width)


def attribute(name: str) -> Callable[["PretrainedConfig"], Width]:
    """Return a function that reads the FFN's width from a config; unset means 4 · hidden_size."""

    def width(config: "PretrainedConfig") -> int:
        return int(getattr(config, name, None) or 4 * config.hidden_size)

    return width


LLAMA_NORMS = {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}
QK_NORMS = {"self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm"}


@dataclass(frozen=True, slots=True)
class Architecture:
    """Where an architecture has its FFNs inside the decoder (the model without the LM head).

    `layers` is the path from the decoder to its list of layers; other paths begin at a layer. The
    defaults are those of Llama.
    """

    layers: str = "layers"
    down: str = "mlp.down_proj"
    up: str = "mlp.up_proj"
    gate: str = "mlp.gate_proj"  # empty if there is no gate or `up` contains it
    norm: str = "post_attention_layernorm"  # before the FFN; empty if there is none with weights
    norm_offset: float = 0.0  # added to the weights of the norm
    fused: bool = False  # `up` contains the gate (first half) and the up projection
    transposed: bool = False  # checkpoints store weights as [d_in, d_out]
    width: Callable[["PretrainedConfig"], Width] = intermediate_size  # d_ff, from the text config
    linear_in_up: bool = True  # if gated: h_i is proportional to row i of W_up
    norms: NormNames | None = None  # the norms that identify a model; None if GGUF has no names
    conversion: Conversion | None = None  # how it is written as GGUF; None if hq cannot
    experts: Experts | None = None  # of layers that are mixtures; others are dense, as above
    detected: bool = False  # from the model's structure, not from a record

    @property
    def projections(self) -> tuple[str, ...]:
        """Paths of the projections of the FFN."""
        return tuple(filter(None, (self.gate, self.up, self.down)))

    def space(self, config: "PretrainedConfig") -> NeuronSpace:
        """The space of a model's neurons, from its text config."""
        width, layers = self.width(config), int(config.num_hidden_layers)
        widths = (width,) * layers if isinstance(width, int) else tuple(width)
        if len(widths) != layers:
            raise HQError(
                f"The config of this {config.model_type} model names {len(widths)} widths for "
                f"{layers} layers: copy config.json again."
            )
        if self.experts is None:
            return NeuronSpace.of_widths(widths)
        blocks: list[NeuronBlock] = []
        for layer, width in enumerate(widths):
            mixture = self.experts.is_mixture(config, layer)
            dense = NeuronBlock(layer=layer, width=width)
            blocks += self.experts.blocks(config, layer) if mixture else [dense]
        return NeuronSpace(tuple(blocks))

    @property
    def described(self) -> dict[str, str]:
        """Entry of the provenance: whether it was detected, and which modules are hooked."""
        known_by = "detected" if self.detected else "record"
        hooked = f"{self.experts.block}.experts" if self.experts else self.down
        return {"known_by": known_by, "down": f"{self.layers}.*.{hooked}"}

    @property
    def gated(self) -> bool:
        """Whether the FFN has a gate, in a projection of its own or in `up`."""
        return bool(self.gate) or self.fused


RECORDS: Registry[Architecture] = Registry("model architecture", "hq.families")
"""By the `model_type` of the language model's config."""

GGUF_LAYOUTS: Registry[Layout] = Registry("GGUF architecture")  # by llama.cpp's name

GGUF_MIXTURES: Registry[Layout] = Registry("GGUF architecture of mixtures of experts")
"""Layouts of files with experts, by llama.cpp's name, which may be that of a dense one too."""


def register_architecture(record: Architecture, *model_types: str) -> None:
    """Register a record for one or more model types."""
    for model_type in model_types:
        RECORDS.add(model_type, record)
