"""Where each architecture keeps its FFN: the paths from a decoder layer to its projections.

A neuron (layer, index) is a coordinate of the *input* of the down projection. The others tell
whether it still is that neuron in another checkpoint. A new family is one `add` line. A mixture of
experts will name several projections a layer; a neuron there is (layer, expert, index).
"""

from dataclasses import dataclass

from torch import nn

from hq.errors import HQError
from hq.registry import Registry


@dataclass(frozen=True, slots=True)
class Family:
    """How one architecture names things inside its decoder (the body, without the LM head).

    `layers` is the path from the decoder to its list of layers; the others are paths from a layer.
    `norm` is what comes before the FFN, with `norm_offset` added to its weights.
    """

    layers: str = "layers"
    down: str = "mlp.down_proj"
    up: str = "mlp.up_proj"
    gate: str = "mlp.gate_proj"  # empty where there is none of its own
    norm: str = "post_attention_layernorm"
    norm_offset: float = 0.0
    fused: bool = False  # `up` holds the gate too
    transposed: bool = False  # checkpoints store weights as [d_in, d_out]

    @property
    def projections(self) -> tuple[str, ...]:
        """Paths of the FFN's projections."""
        return tuple(filter(None, (self.gate, self.up, self.down)))


_FAMILIES: Registry[Family] = Registry("model family")
_GEMMA = Family(norm="pre_feedforward_layernorm", norm_offset=1.0)
for _model_type in ("llama", "mistral", "qwen2", "qwen3"):
    _FAMILIES.add(_model_type, Family())
for _model_type in ("gemma2", "gemma3", "gemma3_text"):
    _FAMILIES.add(_model_type, _GEMMA)
_FAMILIES.add("phi3", Family(up="mlp.gate_up_proj", gate="", fused=True))
_FAMILIES.add(
    "gpt2",
    Family(layers="h", down="mlp.c_proj", up="mlp.c_fc", gate="", norm="ln_2", transposed=True),
)
_FAMILIES.add("opt", Family(down="fc2", up="fc1", gate="", norm="final_layer_norm"))


def family_of(model_type: str) -> Family:
    """The family of a checkpoint by its config's `model_type`.

    Raises HQError for a type that nobody has described yet.
    """
    if model_type not in _FAMILIES:
        raise HQError(
            f"Model type {model_type!r} is not known to hq: known are "
            f"{', '.join(sorted(_FAMILIES))}; add a line to hq/families.py that says where a layer "
            "keeps its down projection."
        )
    return _FAMILIES[model_type]


def down_projections(decoder: nn.Module, family: Family) -> list[nn.Module]:
    """The down projection of every layer, in order."""
    layers = decoder.get_submodule(family.layers)
    assert isinstance(layers, nn.ModuleList)
    return [layer.get_submodule(family.down) for layer in layers]
