"""Where each architecture keeps its FFN: the path from a decoder layer to its down projection.

A neuron (layer, index) is a coordinate of the *input* of that projection, so this one path is all
that hq needs to know of a family. A new family is one `add` line. A mixture of experts will name
several projections a layer; a neuron there is (layer, expert, index).
"""

from dataclasses import dataclass

from torch import nn

from hq.errors import HQError
from hq.registry import Registry


@dataclass(frozen=True, slots=True)
class Family:
    """How one architecture names things inside its decoder (the body, without the LM head).

    `layers` is the path from the decoder to its list of layers, `down` the path from a layer to its
    down projection.
    """

    layers: str = "layers"
    down: str = "mlp.down_proj"


_FAMILIES: Registry[Family] = Registry("model family")
_GATED = ("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "gemma3_text", "phi3")
for _model_type in _GATED:
    _FAMILIES.add(_model_type, Family())
_FAMILIES.add("gpt2", Family(layers="h", down="mlp.c_proj"))
_FAMILIES.add("opt", Family(layers="layers", down="fc2"))


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
