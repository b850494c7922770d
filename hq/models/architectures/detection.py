"""Finds the FFN of a dense decoder that has no record, and checks it on the loaded model.

Detection builds the model without weights (on the meta device), runs one forward pass over 4 tokens
and follows the calls: in each layer, the down projection is the last module with a 2-D weight whose
input has the FFN's width and whose output has the hidden size. Mixtures of experts and models with
a recurrent state are rejected. `verify` then compares real activations with the formulas.
"""

import copy
import json
import logging
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from hq.errors import HQError, first_line
from hq.models.architectures.record import Architecture
from hq.models.auto import without_weights

_TOKENS = 4
_TOLERANCE = 0.05  # relative; LLM.int8() rounds activations to 8 bits, the others stay below 1e-3
# A config's names of d_ff; in Llama 4 the second is of experts.
_WIDTHS = ("intermediate_size_mlp", "intermediate_size", "ffn_dim", "ffn_hidden_size", "n_inner")
_STATEFUL = ("mamba", "rwkv", "lstm", "recurrent", "deltanet", "lightning")  # in names of classes

_log = logging.getLogger("hq")


@dataclass(frozen=True)
class _Call:
    """One call of a module with weights, or of one of its activations, in the order of calls."""

    path: str  # from the layer
    module: nn.Module
    given: Tensor
    made: Tensor


def detect(config: PretrainedConfig) -> Architecture:
    """The architecture of a dense decoder, from its config alone.

    Raises HQError, naming the cause, for a model in which the neurons cannot be told: mixtures of
    experts, recurrent layers, encoders.
    """
    settings = {k: v for k, v in config.to_dict().items() if k != "_name_or_path"}
    key = json.dumps(settings, sort_keys=True, default=str)
    found = _detected.get(key)
    if found is None:
        found = _detected[key] = _detect(config)
        text = config.get_text_config().model_type
        _log.warning(
            "hq has no record of the model type %r: its FFN was found in the model's structure "
            "(%s.*.%s, %s neurons).",
            text,
            found.layers,
            found.down,
            found.space(config.get_text_config()),
        )
    return found


_detected: dict[str, Architecture] = {}  # by the content of a config


def _detect(config: PretrainedConfig) -> Architecture:
    text = config.get_text_config()
    name = text.model_type
    if config.is_encoder_decoder:
        raise _refusal(name, "it has an encoder")
    decoder = without_weights(config).get_decoder()
    path, layers = _stack(decoder, text)
    _require_dense(layers, text)
    calls = _calls(decoder, layers, name)
    stated = _stated_widths(text)
    downs = [_down(of_layer, stated, text) for of_layer in calls]
    paths = sorted({down.path for down in downs if down is not None})
    if len(paths) > 1:
        raise _refusal(name, f"its layers differ ({', '.join(paths)})")
    if not paths:
        raise _refusal(name, "no module in a layer looks like its down projection")
    known = [_at(of_layer, paths[0], name) for of_layer in calls]
    widths = tuple(int(down.given.shape[-1]) for down in known)
    return replace(_described(path, calls[0], known[0], name), width=lambda _: widths)


def _stack(decoder: nn.Module, text: PretrainedConfig) -> tuple[str, nn.ModuleList]:
    """The largest list of as many modules as the model has layers, and its path."""
    count = int(text.num_hidden_layers)
    lists = [
        (sum(p.numel() for p in module.parameters()), path, module)
        for path, module in decoder.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == count
    ]
    if not lists:
        raise _refusal(text.model_type, f"it has no list of its {count} layers")
    _, path, layers = max(lists, key=lambda found: found[0])
    return path, layers


def _require_dense(layers: nn.ModuleList, text: PretrainedConfig) -> None:
    """Raises HQError for recurrent layers and mixtures of experts."""
    stateful = {
        type(module).__name__
        for module in layers.modules()
        if isinstance(module, nn.Conv1d)
        or any(word in type(module).__name__.lower() for word in _STATEFUL)
    }
    if stateful:
        raise _refusal(
            text.model_type,
            f"its layers carry a state ({', '.join(sorted(stateful))}), as those of state-space "
            "models do",
        )
    for name, parameter in layers.named_parameters():
        if parameter.ndim > 2 or ".experts." in name:
            raise _refusal(text.model_type, f"it is a mixture of experts (layers.{name})")


def _calls(decoder: nn.Module, layers: nn.ModuleList, name: str) -> list[list[_Call]]:
    """What each layer calls in one forward pass over 4 tokens."""
    found: list[list[_Call]] = [[] for _ in layers]
    handles = []
    for layer, of_layer in zip(layers, found, strict=True):
        for path, module in layer.named_modules():
            if not any(True for _ in module.children()):
                handles.append(module.register_forward_hook(partial(_note, of_layer, path)))
    ids = torch.zeros(1, _TOKENS, dtype=torch.long, device="meta")
    faults: list[Exception] = []
    for mask in (torch.ones_like(ids), None):  # some read the mask's values, others invent one
        for of_layer in found:
            of_layer.clear()
        try:
            with torch.inference_mode(), torch.device("meta"):
                decoder(ids, attention_mask=mask, use_cache=False)
            break
        except (RuntimeError, TypeError, ValueError, NotImplementedError) as error:
            faults.append(error)
    else:
        raise _refusal(name, f"its forward pass cannot be followed ({first_line(faults[-1])})")
    for handle in handles:
        handle.remove()
    return found


def _note(calls: list[_Call], path: str, module: nn.Module, args: Any, made: Any) -> None:
    if args and isinstance(args[0], Tensor) and isinstance(made, Tensor):
        calls.append(_Call(path, module, args[0], made))


def _stated_widths(text: PretrainedConfig) -> set[int]:
    """The FFN's width as the config states it, by any of its names; empty where it does not."""
    stated = next(filter(None, (getattr(text, name, None) for name in _WIDTHS)), ())
    return set(stated) if isinstance(stated, list | tuple) else {int(stated)}


def _down(calls: Sequence[_Call], stated: set[int], text: PretrainedConfig) -> _Call | None:
    """The call of a layer's down projection; None if the layer alone does not show it."""
    hidden = int(text.hidden_size)
    writes = [c for c in calls if _is_matrix(c.module) and c.made.shape[-1] == hidden]
    found = [c for c in writes if c.given.shape[-1] in stated]
    if not found and writes:
        # Without a stated width it is the widest of all, if that is also the last to be called.
        widest = max(c.given.shape[-1] for c in writes)
        found = [c for c in writes[-1:] if c.given.shape[-1] == widest > hidden]
    return found[-1] if found else None


def _at(calls: Sequence[_Call], path: str, name: str) -> _Call:
    """The one call of the module at this path of a layer."""
    found = [call for call in calls if call.path == path]
    if len(found) != 1:
        times = "more than once" if found else "not at all"
        raise _refusal(name, f"a layer runs its {path} {times} for each token")
    return found[0]


def _is_matrix(module: nn.Module) -> bool:
    weight = getattr(module, "weight", None)
    return isinstance(weight, Tensor) and weight.ndim == 2


def _described(layers: str, calls: Sequence[_Call], down: _Call, name: str) -> Architecture:
    """The record of what a layer calls."""
    d_ff = int(down.given.shape[-1])
    parent = down.path.rpartition(".")[0]
    reads = [
        call
        for call in calls[: calls.index(down)]
        if _is_matrix(call.module) and call.path.rpartition(".")[0] == parent
    ]
    fused = [call.made.shape[-1] for call in reads] == [2 * d_ff]
    if not fused and [call.made.shape[-1] for call in reads] not in ([d_ff], [d_ff, d_ff]):
        raise _refusal(name, f"what {down.path} reads is not made by one or two projections")
    gate, up = _gate_and_up(reads, calls)
    before = [c for c in calls if c.made is up.given and isinstance(c.module, nn.Module)]
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
    """The gate is the one of two that an activation is called with, else the first."""
    if len(reads) == 1:
        return None, reads[0]
    first, second = reads
    activated = any(call.given is second.made for call in calls)
    return (second, first) if activated else (first, second)


def _is_vector(module: nn.Module) -> bool:
    weight = getattr(module, "weight", None)
    return isinstance(weight, Tensor) and weight.ndim == 1


def _offset(norm: nn.Module) -> float:
    """What a norm adds to its weights: with weights of zero, 1 + w still lets a vector through."""
    module: Any = copy.deepcopy(norm).to_empty(device="cpu").float()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
        made: Tensor = module(torch.randn(1, 1, len(module.weight)))
    return float(bool(made.any()))


def _refusal(name: str, cause: str) -> HQError:
    return HQError(
        f"hq has no record of the model type {name!r}, and cannot find its neurons: {cause}; use a "
        "dense decoder, or one of those that `hq families` lists."
    )


def verify(
    model: PreTrainedModel,
    downs: Sequence[nn.Module],
    dense: Callable[[nn.Module], Float[Tensor, "d_out d_in"]],
    device: torch.device,
) -> None:
    """Compare a loaded model's activations with the formulas, on random tokens.

    In each layer the output of the down projection has to be W_down·h + b, and h must not depend on
    later tokens: a text is traced after a prefix that is computed once. Raises HQError otherwise.
    """
    seen: list[tuple[Tensor, Tensor]] = []

    def note(module: nn.Module, args: tuple[Tensor, ...], made: Tensor) -> None:
        bias = getattr(module, "bias", None)
        # Falcon adds to the output in place.
        seen.append((args[0].clone(), made.clone() if bias is None else made - bias))

    generator = torch.Generator().manual_seed(0)
    rows = int(model.get_input_embeddings().num_embeddings)
    ids = torch.randint(rows, (1, _TOKENS), generator=generator).repeat(2, 1)
    ids[1, -1] = (ids[1, -1] + 1) % rows  # the second text differs in its last token alone
    with ExitStack() as hooks, torch.inference_mode():
        for down in downs:
            hooks.callback(down.register_forward_hook(note).remove)
        model(ids.to(device), use_cache=False)
    if len(seen) != len(downs):
        raise _unverified(f"{len(downs)} down projections were called {len(seen)} times")
    for layer, (down, (h, product)) in enumerate(zip(downs, seen, strict=True)):
        weight = dense(down).double().cpu().numpy()
        activations = h.double().cpu().numpy().reshape(2, _TOKENS, -1)
        written = product.double().cpu().numpy().reshape(2, _TOKENS, -1)
        if _far(activations @ weight.T, written):
            raise _unverified(f"layer {layer} does not write its weight times h")
        if _far(activations[0, :-1], activations[1, :-1]):
            raise _unverified(f"h of layer {layer} depends on tokens that come later")


def _far(found: Float[np.ndarray, "..."], wanted: Float[np.ndarray, "..."]) -> bool:
    error = np.linalg.norm(found - wanted)
    return not error <= _TOLERANCE * np.linalg.norm(wanted)


def _unverified(cause: str) -> HQError:
    return HQError(
        f"The neurons of this model cannot be traced: {cause}; use a dense decoder with causal "
        "attention, as those that `hq families` lists."
    )
