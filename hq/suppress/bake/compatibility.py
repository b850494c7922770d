"""Whether a set of neurons is of a model on disk: a neuron of another model must not be scaled.

A quantized checkpoint does not say what it was made from. It is known by its norms
(`hq.models.norm_digest`), as a
GGUF file of unknown origin is; AWQ changes those, and then weights are compared with the source's.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from hq.errors import HQError
from hq.gguf.ffn_weights import of_gguf
from hq.models.alignment import map_model
from hq.models.checkpoint import architecture_at, identity
from hq.models.ffn_weights import FFNs, of_checkpoint, of_modules
from hq.neurons.neuron_set import NeuronSet
from hq.precisions import PRECISIONS
from hq.precisions.base import Precision
from hq.suppress.bake.baking import open_target
from hq.suppress.bake.checkpoint import CheckpointModel
from hq.suppress.bake.gguf import GGUFModel
from hq.suppress.bake.model import BakeTarget
from hq.suppress.bake.running import loaded


def require_owner(
    neurons: NeuronSet, path: Path, source: Path | None = None, name: str = "The neuron set"
) -> None:
    """HQError, with `name` in it, unless the set is of the model in `path`.

    Where what a model was made of does not show, `source` names it: then the set has to be of that
    checkpoint, and each of its neurons has to be found at its place in the model.
    """
    model = open_target(path)
    if source is not None:
        neurons.require(identity(source), name)
        _require_same(model, source)
        return
    found = model.identity
    packed = isinstance(model, CheckpointModel) and model.quantized
    if packed and found.fingerprint != neurons.model.fingerprint:
        if found.norm_digest != neurons.model.norm_digest or not found.norm_digest:
            raise HQError(
                f"{path} is quantized and does not show that it was made from "
                f"{neurons.model.name}, to which {name} belongs: name that checkpoint as the "
                "source."
            )
        found = found.model_copy(update={"fingerprint": neurons.model.fingerprint})
    neurons.require(found, name)


def _require_same(model: BakeTarget, source: Path) -> None:
    """HQError where a layer of the model does not have the source's neurons at their places."""
    ours, theirs = of_checkpoint(source), _ffns(model)
    if len(ours) != len(theirs):
        raise HQError(f"{model.path} has {len(theirs)} layers, {source} has {len(ours)}.")
    for layer in map_model(ours, theirs):
        moved = not torch.equal(layer.places, torch.arange(len(layer.places)))
        if not layer.holds or moved:
            raise HQError(
                f"Layer {layer.layer} of {model.path} is {layer.relation} beside {source} "
                f"({layer.note}): its neurons are not those of the set."
            )


def _ffns(model: BakeTarget) -> FFNs:
    if isinstance(model, GGUFModel):
        return of_gguf(model.file)
    family = architecture_at(model.path)
    layers: Any = loaded(model.path).get_decoder().get_submodule(family.layers)

    def dense(module: nn.Module) -> torch.Tensor:
        weight = _precision(module).dense(module)
        return weight.T if isinstance(module, Conv1D) else weight

    def bits(module: nn.Module) -> float:
        stored = getattr(module, "packed", None) or _precision(module).stored(module)
        return 8 * float(stored.ships) / float(stored.weights)

    return of_modules(list(layers), family, dense, bits)


def _precision(module: nn.Module) -> Precision:
    """What reads a projection's weight."""
    return PRECISIONS[_READERS.get(type(module).__name__, "fp16")]


_READERS: Mapping[str, str] = {"Linear8bitLt": "int8", "Linear4bit": "nf4"}
