"""The LoRA of a model: PEFT's layers at the projections of its FFNs, and PEFT's folder."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from hq.errors import HQError, first_line
from hq.models.architectures import Architecture
from hq.models.checkpoint import ADAPTER_CONFIG_FILE
from hq.precisions.packed import quiet_gptqmodel
from hq.storage.atomic import write_whole
from hq.tuning.settings import Target

WEIGHTS_FILE = "adapter_model.safetensors"
_NAME = "default"  # PEFT's name of the only adapter
_PREFIX = "base_model.model."
_PARTS = ("lora_A", "lora_B")


@dataclass(frozen=True, slots=True)
class Adapter:
    """The LoRA layers that replace the targets of a model, by the targets' full names.

    W' = W + B·A, as PEFT's scale lora_alpha ÷ r is 1. B is zero at first, so the model computes
    what it did.
    """

    layers: Mapping[str, Any]
    rank: int
    transposed: bool

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """A and B of each target, by their names in PEFT's file."""
        return {
            f"{_PREFIX}{name}.{part}.weight": getattr(layer, part)[_NAME].weight
            for name, layer in self.layers.items()
            for part in _PARTS
        }

    def tensors(self) -> dict[str, Tensor]:
        """Return copies of A and B on the CPU."""
        return {name: p.detach().cpu().clone() for name, p in self.parameters.items()}

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """Compute the reference model while the context lasts."""
        for layer in self.layers.values():
            layer.enable_adapters(False)
        try:
            yield
        finally:
            for layer in self.layers.values():
                layer.enable_adapters(True)


def require_peft() -> Any:
    """Import peft. Raises HQError if it is missing."""
    quiet_gptqmodel()  # PEFT imports it where it is installed
    try:
        import peft
    except ImportError as error:
        raise HQError("Fine-tuning needs the package peft: pip install 'hq[finetune]'.") from error
    return peft


def require_targets(family: Architecture, targets: Sequence[Target], model_type: str) -> None:
    """Raises HQError if the model has no gate and one is a target, or if there is no target."""
    if not targets:
        raise HQError("No projection is a target of the LoRA: name one of gate, up, down.")
    if "gate" in targets and not family.gated:
        raise HQError(
            f"A {model_type} model has no gate projection: set finetune.targets to up, down or "
            "both."
        )


def attach(
    model: nn.Module,
    family: Architecture,
    targets: Sequence[Target],
    rank: int,
    seed: int,
) -> Adapter:
    """Freeze a model, and replace its targets by LoRA layers in place.

    A is drawn by the seed, whatever the state of torch's generator. Raises HQError as
    `require_peft` and `require_targets`, and if PEFT cannot adapt the model.
    """
    peft = require_peft()
    require_targets(family, targets, str(model.config.model_type))  # type: ignore[union-attr]
    names = target_names(model, family, targets)
    config = peft.LoraConfig(
        r=rank,
        lora_alpha=rank,
        target_modules=names,
        lora_dropout=0.0,
        bias="none",
        fan_in_fan_out=family.transposed,
    )
    model.requires_grad_(False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            peft.inject_adapter_in_model(config, model)
        except (ImportError, ValueError) as error:
            raise HQError(f"PEFT cannot adapt this model: {first_line(error)}.") from error
    modules = dict(model.named_modules())
    adapter = Adapter({name: modules[name] for name in names}, rank, family.transposed)
    for parameter in adapter.parameters.values():
        parameter.data = parameter.data.float()
        parameter.requires_grad_(True)
    return adapter


def target_names(model: nn.Module, family: Architecture, targets: Sequence[Target]) -> list[str]:
    """Return the full names of the targets, layer by layer; a fused gate is part of up."""
    paths = {"gate": family.up if family.fused else family.gate, "up": family.up}
    wanted = dict.fromkeys({**paths, "down": family.down}[target] for target in targets)
    decoder: Any = model.get_decoder()  # type: ignore[operator]
    names = {module: name for name, module in model.named_modules()}
    layers = decoder.get_submodule(family.layers)
    return [names[layer.get_submodule(path)] for layer in layers for path in wanted]


def merged_weight(projection: nn.Module) -> Float[Tensor, "d_out d_in"]:
    """Return W + B·A of a projection, differentiable in A and B, in float32; W without a LoRA."""
    layer: Any = projection
    base = layer.get_base_layer() if hasattr(layer, "get_base_layer") else layer
    weight: Tensor = base.weight.detach().float()
    dense = weight if isinstance(base, nn.Linear) else weight.T  # Conv1D is [d_in, d_out]
    if base is layer or layer.disable_adapters:
        return dense
    a, b = (getattr(layer, part)[_NAME].weight for part in _PARTS)
    merged: Tensor = dense + b @ a
    return merged


def write_adapter(folder: Path, adapter: Mapping[str, Tensor], transposed: bool, base: str) -> None:
    """Write PEFT's two files; equal tensors give equal bytes. `base` names the model."""
    names = sorted({name.removeprefix(_PREFIX).rpartition(".lora_")[0] for name in adapter})
    rank = next(len(tensor) for name, tensor in adapter.items() if ".lora_A." in name)
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "inference_mode": True,
        "target_modules": names,
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": transposed,
    }
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: adapter[name].contiguous() for name in sorted(adapter)}
    write_whole(folder / WEIGHTS_FILE, save(tensors, {"format": "pt"}))
    write_whole(folder / ADAPTER_CONFIG_FILE, json.dumps(config, indent=2) + "\n")


def read_adapter(folder: Path) -> dict[str, Tensor]:
    """Read A and B by name. Raises HQError if the folder has no adapter."""
    try:
        return load_file(folder / WEIGHTS_FILE)
    except (OSError, SafetensorError) as error:
        raise HQError(
            f"{folder} has no adapter that can be read ({first_line(error)}): name a folder with "
            f"{WEIGHTS_FILE}."
        ) from error


def deltas(
    adapter: Mapping[str, Tensor],
) -> Iterator[tuple[str, Float[Tensor, "rank d_in"], Float[Tensor, "d_out rank"]]]:
    """Yield the name of each target, with A and B. Raises HQError if one of them is missing."""
    for name in sorted(adapter):
        target, part, _ = name.removeprefix(_PREFIX).rpartition(".lora_A.weight")
        if not part:
            continue
        b = adapter.get(f"{_PREFIX}{target}.lora_B.weight")
        if b is None or b.shape[1] != adapter[name].shape[0]:
            raise HQError(f"The adapter has no lora_B that fits lora_A of {target}: copy it again.")
        yield target, adapter[name].float(), b.float()
