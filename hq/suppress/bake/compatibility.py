"""Check that a set of neurons belongs to a model on disk, so that no other neurons are scaled.

A quantized checkpoint does not state its source. It is recognised by its norm digest
(`hq.models.norm_digest`), as a GGUF file of unknown origin is. AWQ changes the norms; weights are
then compared with those of the source.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from hq.errors import HQError
from hq.models.alignment import map_model
from hq.models.checkpoint import architecture_at, checkpoint_identity
from hq.models.ffn_weights import FFNs, of_checkpoint, of_modules
from hq.neurons.neuron_set import NeuronSet
from hq.precisions import PRECISIONS
from hq.precisions.base import Precision
from hq.precisions.packed import packed_weight
from hq.suppress.bake.baking import open_target
from hq.suppress.bake.checkpoint import CheckpointModel, load_float32
from hq.suppress.bake.gguf import GGUFModel
from hq.suppress.bake.target import BakeTarget


def require_owner(
    neurons: NeuronSet, path: Path, source: Path | None = None, name: str = "The neuron set"
) -> None:
    """Raises HQError, which names the set `name`, if it does not belong to the model in `path`.

    `source` names the checkpoint that a model was made from, if the model does not show it: the set
    must belong to that checkpoint, and the model must have all its neurons at the same indices.
    """
    model = open_target(path)
    if source is not None:
        neurons.require(checkpoint_identity(source), name)
        _require_same(model, source)
        return
    found = model.identity
    packed = isinstance(model, CheckpointModel) and model.is_quantized
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
    """Raises HQError if a layer of the model does not have the source's neurons in order."""
    source_ffns, ffns = of_checkpoint(source), _ffns(model)
    if len(source_ffns) != len(ffns):
        raise HQError(f"{model.path} has {len(ffns)} layers, {source} has {len(source_ffns)}.")
    for layer in map_model(source_ffns, ffns):
        moved = not torch.equal(layer.permutation, torch.arange(len(layer.permutation)))
        if not layer.is_aligned or moved:
            raise HQError(
                f"Layer {layer.layer} of {model.path} is {layer.relation} beside {source} "
                f"({layer.note}): its neurons are not those of the set."
            )


def _ffns(model: BakeTarget) -> FFNs:
    if isinstance(model, GGUFModel):
        return model.file.ffns()
    family = architecture_at(model.path)
    loaded: Any = load_float32(model.path)
    layers = loaded.get_decoder().get_submodule(family.layers)

    def dense(module: nn.Module) -> torch.Tensor:
        weight = _precision(module).dense(module)
        return weight.T if isinstance(module, Conv1D) else weight

    def bits(module: nn.Module) -> float:
        packed = packed_weight(module)
        stored = _precision(module).stored(module) if packed is None else packed.stored
        return 8 * float(stored.shipped_nbytes) / float(stored.weights)

    config = loaded.config.get_text_config()
    return of_modules(list(layers), family, config, dense, bits)


def _precision(module: nn.Module) -> Precision:
    """The precision that reads the weight of a projection; dense ones are read as fp16."""
    return PRECISIONS[_PRECISION_OF.get(type(module).__name__, "fp16")]


_PRECISION_OF: Mapping[str, str] = {"Linear8bitLt": "int8", "Linear4bit": "nf4"}
