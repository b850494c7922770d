"""A decoder with at most one layer in memory, which runs that layer as the whole model would.

The code of transformers computes masks, rotary embeddings and everything else that a layer gets:
it runs up to the layer in memory, which then gets stored hidden states in place of its input.
"""

import copy
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from accelerate import init_empty_weights
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import DynamicCache, PretrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from hq.backends.streamed.layer_files import LayerFiles, Weights, read, read_rows
from hq.errors import HQError
from hq.models.architectures import Architecture
from hq.models.auto import model_class
from hq.models.head import Head, body_of, head_of
from hq.precisions import Precision
from hq.precisions.base import MadeByLayer, compute_dtype

_HEAD_ROWS = 64  # of the vocabulary, on which the scale of logits is measured


class Skeleton:
    """A decoder at one precision, without its layers.

    Embeddings are read of the tokens `used` only (ids, ascending).
    """

    def __init__(
        self,
        config: PretrainedConfig,
        family: Architecture,
        precision: Precision,
        device: torch.device,
    ) -> None:
        assert isinstance(precision, MadeByLayer)
        self.precision, self.device = precision, device
        self._made: MadeByLayer = precision
        self._loaded_in = precision.loaded_in(device)
        self.compute = compute_dtype(device, precision)
        self.model = bare_model(config, self._loaded_in)
        self.decoder: Any = self.model.get_decoder()
        self.family = family
        self.layers = self.decoder.get_submodule(family.layers)
        assert isinstance(self.layers, nn.ModuleList)
        self._present = -1  # number of the layer in memory
        self._layer: nn.Module | None = None
        self._finishes = False  # whether layers return the state, or without one their input
        self._state: Tensor | None = None
        self.returns_tuple = False  # whether a layer does, known after the first one
        for number, layer in enumerate(self.layers):
            layer.forward = partial(self._visit, number)

    def fill_outside(self, files: LayerFiles, used: Int[Tensor, " k"]) -> None:
        """Load everything outside of the layers, of the embeddings the rows `used` (ascending)."""
        embedding: Any = self.model.get_input_embeddings()
        for name, stored in files.outside.items():
            owner, _, leaf = name.rpartition(".")
            module = self.decoder.get_submodule(owner)
            if module is embedding:
                weight = self._cast(read_rows(stored, used))
            else:
                weight = self._cast(read(stored))
            _put(module, leaf, weight)
        for name, linear in list(self.decoder.named_modules()):
            inside = name.startswith(f"{self.family.layers}.")
            if not inside and isinstance(linear, self._made.replaces):
                of_linear = linear.weight
                assert isinstance(of_linear, Tensor)
                self._replace(self.decoder, name, self._quantized(linear, of_linear))
        for module in self.decoder.modules():
            for leaf, buffer in module._buffers.items():
                if buffer is not None and not buffer.is_meta:
                    module._buffers[leaf] = self._cast_buffer(buffer)
        embedding.padding_idx = None  # it may be outside of the rows
        places = torch.full((embedding.num_embeddings,), -1, device=self.device)
        places[used.to(self.device)] = torch.arange(len(used), device=self.device)
        embedding.register_forward_pre_hook(lambda _, args: (places[args[0]], *args[1:]))

    def make(self, number: int, weights: Weights) -> nn.Module:
        """Load a layer to run, its projections quantized one by one. Raises HQError as `filled`."""
        self._layer = None
        self._layer, self._present = self.filled(number, weights), number
        return self._layer

    def dense(self, projection: nn.Module) -> Float[Tensor, "d_out d_in"]:
        """The dequantized weight of a projection."""
        dense = self.precision.dense(projection)
        return dense.T if isinstance(projection, Conv1D) else dense

    def drop(self) -> None:
        """Free the weights of the layer in memory."""
        self._layer, self._present = None, -1

    def filled(self, number: int, weights: Weights) -> nn.Module:
        """A copy of a layer with some or all of its tensors.

        Raises HQError if a projection is then at another precision.
        """
        bare = self.layers[number]
        visit = vars(bare).pop("forward")
        layer: nn.Module = copy.deepcopy(bare)
        bare.forward = visit
        projections = {name: m for name, m in layer.named_modules() if projects(m)}
        for name, weight in weights.items():
            owner, _, leaf = name.rpartition(".")
            module = layer.get_submodule(owner)
            if leaf == "weight" and owner in projections:
                made = self.projection(module, weight)
                bias = module._parameters.get("bias")
                if bias is not None and not bias.is_meta:
                    made.bias = bias
                self._replace(layer, owner, made)
            else:
                _put(module, leaf, self._cast(weight))
        wrong = [
            name
            for name in projections
            if f"{name}.weight" in weights
            and not self.precision.is_precision_of(layer.get_submodule(name))
        ]
        if wrong:
            raise HQError(
                f"{len(wrong)} of {len(projections)} projections are not {self.precision.name}, "
                f"{wrong[0]} first: results would be those of another precision."
            )
        return layer

    def projection(self, module: nn.Module, weight: Tensor) -> nn.Module:
        """A projection like `module`, with a weight as the checkpoint stores it."""
        if isinstance(module, self._made.replaces):
            return self._quantized(module, weight.to(self.device))
        made = copy.copy(module)
        made._parameters = dict(module._parameters)
        _put(made, "weight", self._cast(weight))
        return made

    def _quantized(self, module: nn.Module, weight: Tensor) -> nn.Module:
        if isinstance(module, Conv1D):
            weight = weight.T.contiguous()
        made = self._made.layer(weight.to(self._loaded_in))
        if getattr(module, "bias", None) is not None:
            made.bias = module.bias
        return made.eval().requires_grad_(False)

    def embed(self, ids: Int[Tensor, "batch seq"], inputs: Mapping[str, Any]) -> Tensor:
        """The input of the first layer."""
        self._state = None
        return self._run(ids, inputs)

    def run(
        self, ids: Int[Tensor, "batch seq"], inputs: Mapping[str, Any], state: Tensor
    ) -> Tensor:
        """The output of the layer in memory, of which `state` is the input."""
        self._state = state
        return self._run(ids, inputs)

    def finish(
        self, ids: Int[Tensor, "batch seq"], inputs: Mapping[str, Any], state: Tensor
    ) -> Tensor:
        """What the decoder makes of the output `state` of its last layer."""
        self._state, self._finishes = state, True
        try:
            after: Tensor = body_of(self.decoder)(ids, **inputs).last_hidden_state
        finally:
            self._state, self._finishes = None, False
        return after

    def head(self, files: LayerFiles) -> Head:
        """The output head, in the type of the file if that is exact.

        Raises HQError as `hq.models.head.head_of`.
        """
        output: Any = self.model.get_output_embeddings()
        stored = files.head(self.model)
        bias = files.head(self.model, "bias") if output.bias is not None else None
        used = torch.arange(min(_HEAD_ROWS, stored.shape[0]))
        _put(output, "weight", self._cast(read_rows(stored, used)))
        whole_bias = None if bias is None else self._cast(read(bias))
        if whole_bias is not None:
            _put(output, "bias", whole_bias[: len(used)])
        self._finishes = True
        try:
            measured = head_of(self.model, self.decoder)
        finally:
            self._finishes = False
        weight = read(stored)
        if self._loaded_in.itemsize == 2:
            weight = weight.to(self._loaded_in)
        return replace(measured, weight=weight.to(self.device), bias=whole_bias)

    def _run(self, ids: Int[Tensor, "batch seq"], inputs: Mapping[str, Any]) -> Tensor:
        try:
            self.decoder(ids, **inputs)
        except _Reached as reached:
            return reached.hidden
        finally:
            self._state = None
        raise HQError(
            f"The decoder of this {self.decoder.config.model_type} model does not run its layers "
            "in order, so it cannot be traced layer by layer."
        )

    def _visit(self, number: int, *args: Any, **kwargs: Any) -> Any:
        """The forward pass of a layer; those before the one in memory return their input."""
        hidden = args[0] if args else kwargs["hidden_states"]
        if self._finishes:
            hidden = hidden if self._state is None else self._state
            return (hidden, None) if self.returns_tuple else hidden
        if self._state is None:
            raise _Reached(hidden)
        if number < self._present:
            return (hidden, None) if self.returns_tuple else hidden
        if args:
            args = (self._state, *args[1:])
        else:
            kwargs["hidden_states"] = self._state
        assert self._layer is not None
        output = self._layer(*args, **kwargs)
        self.returns_tuple = isinstance(output, tuple)
        raise _Reached(output[0] if self.returns_tuple else output)

    def _cast(self, weight: Tensor) -> Tensor:
        return weight.to(self.device).to(self._loaded_in).to(self.compute)

    def _cast_buffer(self, buffer: Tensor) -> Tensor:
        """As `load` does: of a model that is loaded in another type, floats are cast."""
        cast = buffer.is_floating_point() and self._loaded_in != self.compute
        return buffer.to(self.device, self.compute if cast else None)

    def _replace(self, root: nn.Module, name: str, made: nn.Module) -> None:
        owner, _, leaf = name.rpartition(".")
        setattr(root.get_submodule(owner), leaf, made)


class _Reached(Exception):  # noqa: N818  # ends a forward pass, and is no error
    def __init__(self, hidden: Tensor) -> None:
        super().__init__()
        self.hidden = hidden


class LayerPrefix:
    """The cache of a prefix in which only one layer has keys and values; others have a length.

    Masks depend on lengths only. With an empty prefix, batches run without a cache.
    """

    def __init__(
        self, decoder: nn.Module, length: int, layer: int, cache: DynamicCache | None
    ) -> None:
        self._length, self._layer = length, layer
        if not length:
            return
        self._cache = DynamicCache(config=decoder.config)
        empty = torch.zeros(1, 1, length, 1)
        for number, one in enumerate(self._cache.layers):
            if number == layer and cache is not None:
                self._cache.layers[number] = cache.layers[number]
            else:
                one.update(empty, empty)

    def inputs(self, batch: int) -> dict[str, Any]:
        """Keyword arguments with which a batch of this many rows continues the prefix."""
        if not self._length:
            return {"use_cache": False}
        cache = copy.copy(self._cache)
        cache.layers = list(self._cache.layers)
        filled = cache.layers[self._layer] = copy.deepcopy(cache.layers[self._layer])
        filled.keys = filled.keys.expand(batch, -1, -1, -1)
        filled.values = filled.values.expand(batch, -1, -1, -1)
        return {"cache": cache, "use_cache": True}


def bare_model(config: PretrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    """All modules of a model, with buffers and without parameters, as `from_pretrained` makes them.

    Args:
        config: The config of the checkpoint, multimodal parts included.
        dtype: Type of the buffers that depend on it, and in which the checkpoint is loaded.
    """
    bare = copy.deepcopy(config)
    with init_empty_weights(include_buffers=False):
        model: PreTrainedModel = model_class(bare)._from_config(bare, dtype=dtype)
    # `from_pretrained` computes buffers in float32 and rounds them; a constructor does not.
    for module in model.modules():
        module._is_hf_initialized = False
    model.initialize_weights()
    model.tie_weights()
    return model.eval().requires_grad_(False)


def projects(module: nn.Module) -> bool:
    """Whether a module of a dense model multiplies by a matrix."""
    return isinstance(module, (nn.Linear, Conv1D))


def _put(module: nn.Module, name: str, tensor: Tensor) -> None:
    """Set a parameter or buffer."""
    if name in module._buffers:
        module._buffers[name] = tensor
    else:
        module._parameters[name] = nn.Parameter(tensor, requires_grad=False)
