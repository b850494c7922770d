"""Finds the FFN of a dense decoder without a record, and verifies it on the loaded model.

Detection builds the model without weights (on the meta device), runs one forward pass over 4 tokens
and records the calls: in each layer, the down projection is the last module with a 2-D weight whose
input has the width of the FFN and whose output has the hidden size. Mixtures of experts and models
with a recurrent state are rejected. `verify_detection` then compares the loaded model's activations
with the formulas.
"""

import copy
import json
import logging
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from hq.errors import HQError, first_line
from hq.models.architectures.record import Architecture
from hq.models.auto import without_weights
from hq.models.placement import bias_of

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

_TOKENS = 4
_TOLERANCE = 0.05  # relative; LLM.int8() rounds activations to 8 bits, others stay below 1e-3
# Names of d_ff in configs; in Llama 4 the second is the width of experts.
_WIDTHS = ("intermediate_size_mlp", "intermediate_size", "ffn_dim", "ffn_hidden_size", "n_inner")
_STATEFUL = ("mamba", "rwkv", "lstm", "recurrent", "deltanet", "lightning")  # in class names

_log = logging.getLogger("hq")


@dataclass(frozen=True)
class _Call:
    """One call of a module without submodules: a projection, norm or activation."""

    path: str  # relative to the layer
    module: nn.Module
    input: Tensor
    output: Tensor


def detect(config: "PretrainedConfig") -> Architecture:
    """Return the architecture of a dense decoder, from its config only.

    Raises HQError with the cause if the FFNs cannot be identified: mixtures of experts, recurrent
    layers, encoders.
    """
    settings = {k: v for k, v in config.to_dict().items() if k != "_name_or_path"}
    key = json.dumps(settings, sort_keys=True, default=str)
    architecture = _detected.get(key)
    if architecture is None:
        architecture = _detected[key] = _detect(config)
        _log.warning(
            "hq has no record of the model type %r: its FFN was detected from the model's "
            "structure (%s.*.%s, %s neurons).",
            config.get_text_config().model_type,
            architecture.layers,
            architecture.down,
            architecture.space(config.get_text_config()),
        )
    return architecture


_detected: dict[str, Architecture] = {}  # cache by the content of the config


def _detect(config: "PretrainedConfig") -> Architecture:
    text = config.get_text_config()
    name = text.model_type
    if config.is_encoder_decoder:
        raise _refusal(name, "it has an encoder")
    decoder = without_weights(config).get_decoder()
    path, layers = _stack(decoder, text)
    _require_dense(layers, text)
    calls = _calls(decoder, layers, name)
    stated = _stated_widths(text)
    downs = [_down(layer_calls, stated, text) for layer_calls in calls]
    paths = sorted({down.path for down in downs if down is not None})
    if len(paths) > 1:
        raise _refusal(name, f"its layers differ ({', '.join(paths)})")
    if not paths:
        raise _refusal(name, "no module in a layer looks like its down projection")
    known = [_at(layer_calls, paths[0], name) for layer_calls in calls]
    widths = tuple(int(down.input.shape[-1]) for down in known)
    return replace(_architecture(path, calls[0], known[0], name), width=lambda _: widths)


def _stack(decoder: nn.Module, text: "PretrainedConfig") -> tuple[str, nn.ModuleList]:
    """Return the path and the modules of the largest ModuleList with as many items as layers."""
    count = int(text.num_hidden_layers)
    lists = [
        (sum(p.numel() for p in module.parameters()), path, module)
        for path, module in decoder.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == count
    ]
    if not lists:
        raise _refusal(text.model_type, f"it has no list of its {count} layers")
    _, path, layers = max(lists, key=lambda candidate: candidate[0])
    return path, layers


def _require_dense(layers: nn.ModuleList, text: "PretrainedConfig") -> None:
    """Raise HQError for recurrent layers and mixtures of experts."""
    stateful = {
        type(module).__name__
        for module in layers.modules()
        if isinstance(module, nn.Conv1d)
        or any(word in type(module).__name__.lower() for word in _STATEFUL)
    }
    if stateful:
        raise _refusal(
            text.model_type,
            f"its layers carry a state ({', '.join(sorted(stateful))}), as in state-space models",
        )
    for name, parameter in layers.named_parameters():
        if parameter.ndim > 2 or ".experts." in name:
            raise _refusal(text.model_type, f"it is a mixture of experts (layers.{name})")


def _calls(decoder: nn.Module, layers: nn.ModuleList, name: str) -> list[list[_Call]]:
    """Return the calls of each layer in one forward pass over 4 tokens."""
    calls: list[list[_Call]] = [[] for _ in layers]
    handles = []
    for layer, layer_calls in zip(layers, calls, strict=True):
        for path, module in layer.named_modules():
            if not any(True for _ in module.children()):
                handles.append(module.register_forward_hook(partial(_record, layer_calls, path)))
    ids = torch.zeros(1, _TOKENS, dtype=torch.long, device="meta")
    errors: list[Exception] = []
    for mask in (torch.ones_like(ids), None):  # some models need a mask, others fail with one
        for layer_calls in calls:
            layer_calls.clear()
        try:
            with torch.inference_mode(), torch.device("meta"):
                decoder(ids, attention_mask=mask, use_cache=False)
            break
        except (RuntimeError, TypeError, ValueError, NotImplementedError) as error:
            errors.append(error)
    else:
        raise _refusal(name, f"its forward pass cannot be followed ({first_line(errors[-1])})")
    for handle in handles:
        handle.remove()
    return calls


def _record(calls: list[_Call], path: str, module: nn.Module, args: Any, output: Any) -> None:
    if args and isinstance(args[0], Tensor) and isinstance(output, Tensor):
        calls.append(_Call(path, module, args[0], output))


def _stated_widths(text: "PretrainedConfig") -> set[int]:
    """Return the FFN's width according to the config; empty if the config does not state it."""
    stated = next(filter(None, (getattr(text, name, None) for name in _WIDTHS)), ())
    return set(stated) if isinstance(stated, list | tuple) else {int(stated)}


def _down(calls: Sequence[_Call], stated: set[int], text: "PretrainedConfig") -> _Call | None:
    """Return the call of a layer's down projection; None if the layer alone does not show it."""
    hidden = int(text.hidden_size)
    writes = [c for c in calls if _is_matrix(c.module) and c.output.shape[-1] == hidden]
    candidates = [c for c in writes if c.input.shape[-1] in stated]
    if not candidates and writes:
        # Without a stated width: the widest one, if it is also the last that is called.
        widest = max(c.input.shape[-1] for c in writes)
        candidates = [c for c in writes[-1:] if c.input.shape[-1] == widest > hidden]
    return candidates[-1] if candidates else None


def _at(calls: Sequence[_Call], path: str, name: str) -> _Call:
    """Return the one call of the module at this path of a layer."""
    found = [call for call in calls if call.path == path]
    if len(found) != 1:
        times = "more than once" if found else "not at all"
        raise _refusal(name, f"a layer runs its {path} {times} for each token")
    return found[0]


def _is_matrix(module: nn.Module) -> bool:
    weight = getattr(module, "weight", None)
    return isinstance(weight, Tensor) and weight.ndim == 2


def _architecture(layers: str, calls: Sequence[_Call], down: _Call, name: str) -> Architecture:
    """Return the record of an architecture with these calls in each layer."""
    from transformers.pytorch_utils import Conv1D

    d_ff = int(down.input.shape[-1])
    parent = down.path.rpartition(".")[0]
    reads = [
        call
        for call in calls[: calls.index(down)]
        if _is_matrix(call.module) and call.path.rpartition(".")[0] == parent
    ]
    fused = [call.output.shape[-1] for call in reads] == [2 * d_ff]
    if not fused and [call.output.shape[-1] for call in reads] not in ([d_ff], [d_ff, d_ff]):
        raise _refusal(name, f"the input of {down.path} does not come from one or two projections")
    gate, up = _gate_and_up(reads, calls)
    before = [c for c in calls if c.output is up.input]
    norm = next((c for c in before if _is_vector(c.module)), None)
    return Architecture(
        layers=layers,
        down=down.path,
        up=up.path,
        gate="" if gate is None else gate.path,
        norm="" if norm is None else norm.path,
        norm_offset=0.0 if norm is None else _offset(norm.module),
        fused=fused,
        transposed=isinstance(down.module, Conv1D),
        linear_in_up=False,
        detected=True,
    )


def _gate_and_up(reads: Sequence[_Call], calls: Sequence[_Call]) -> tuple[_Call | None, _Call]:
    """Return gate and up: of two, the gate is the one whose output an activation reads."""
    if len(reads) == 1:
        return None, reads[0]
    first, second = reads
    activated = any(call.input is second.output for call in calls)
    return (second, first) if activated else (first, second)


def _is_vector(module: nn.Module) -> bool:
    weight = getattr(module, "weight", None)
    return isinstance(weight, Tensor) and weight.ndim == 1


def _offset(norm: nn.Module) -> float:
    """Return what a norm adds to its weights: with zero weights, 1 + w still passes a vector."""
    module: Any = copy.deepcopy(norm).to_empty(device="cpu").float()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
        output: Tensor = module(torch.randn(1, 1, len(module.weight)))
    return float(bool(output.any()))


def _refusal(name: str, cause: str) -> HQError:
    return HQError(
        f"hq has no record of the model type {name!r}, and cannot find its neurons: {cause}; use a "
        "dense decoder, such as one that `hq families` lists."
    )


def verify_detection(
    model: "PreTrainedModel",
    downs: Sequence[nn.Module],
    dense: Callable[[nn.Module], Float[Tensor, "d_out d_in"]],
    device: torch.device,
) -> None:
    """Compare a loaded model's activations with the formulas, on random tokens.

    `dense` returns the dequantized weight of a projection. Raises HQError unless, in each layer,
    the output of the down projection is W_down·h + b, and h does not depend on later tokens, as
    traces reuse the cache of a prefix.
    """
    products: list[tuple[Tensor, Tensor]] = []  # h, and W_down·h

    def record(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        bias = bias_of(module)
        # Falcon adds to the output in place.
        products.append((args[0].clone(), output.clone() if bias is None else output - bias))

    generator = torch.Generator().manual_seed(0)
    rows = int(model.get_input_embeddings().num_embeddings)
    ids = torch.randint(rows, (1, _TOKENS), generator=generator).repeat(2, 1)
    ids[1, -1] = (ids[1, -1] + 1) % rows  # the second text differs in its last token
    with ExitStack() as hooks, torch.inference_mode():
        for down in downs:
            hooks.callback(down.register_forward_hook(record).remove)
        model(ids.to(device), use_cache=False)
    if len(products) != len(downs):
        raise _unverified(f"{len(downs)} down projections were called {len(products)} times")
    for layer, (down, (h, product)) in enumerate(zip(downs, products, strict=True)):
        weight = dense(down).double().cpu().numpy()
        activations = h.double().cpu().numpy().reshape(2, _TOKENS, -1)
        written = product.double().cpu().numpy().reshape(2, _TOKENS, -1)
        if _far(activations @ weight.T, written):
            raise _unverified(f"layer {layer} does not write its weight times h")
        if _far(activations[0, :-1], activations[1, :-1]):
            raise _unverified(f"h of layer {layer} depends on later tokens")


def _far(actual: Float[np.ndarray, "..."], expected: Float[np.ndarray, "..."]) -> bool:
    error = np.linalg.norm(actual - expected)
    return not error <= _TOLERANCE * np.linalg.norm(expected)  # also if NaN


def _unverified(cause: str) -> HQError:
    return HQError(
        f"The neurons of this model cannot be traced: {cause}; use a dense decoder with causal "
        "attention, such as one that `hq families` lists."
    )
