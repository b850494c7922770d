"""A merged checkpoint: the base's files, with B·A added to the target weights."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from hq.errors import HQError
from hq.models.architectures import Architecture
from hq.models.checkpoint import (
    DENSE_DTYPES,
    architecture_at,
    tensors_of,
    weight_files,
)
from hq.storage.atomic import atomic_folder, write_whole
from hq.storage.copying import copy_to_disk
from hq.tuning.adapter import deltas

PROVENANCE_FILE = "finetune.json"


def merge(
    base: Path, adapter: Mapping[str, Tensor], into: Path, provenance: Mapping[str, Any]
) -> None:
    """Write the checkpoint `base` with W + B·A, rounded once to the type in which W is stored.

    All other tensors and files are copied unchanged, so the merged model has the base's config and
    tokenizer. `provenance` becomes finetune.json. The folder appears when it is complete.

    Raises HQError if the base is quantized or lacks a target, if shapes do not fit, or if `into`
    exists.
    """
    added = _added(base, adapter, architecture_at(base))
    weights = {file.relative_to(base) for file in weight_files(base)}
    with atomic_folder(into) as draft:
        for file in sorted(path for path in base.rglob("*") if path.is_file()):
            name = file.relative_to(base)
            if name not in weights:
                copy_to_disk(file, draft / name)
        for name in sorted(weights):
            (draft / name).parent.mkdir(parents=True, exist_ok=True)
            _merge_file(base / name, draft / name, added)
        write_whole(draft / PROVENANCE_FILE, json.dumps(dict(provenance), indent=1) + "\n")


def remerge(
    base: Path, adapter: Mapping[str, Tensor], into: Path, provenance: Mapping[str, Any]
) -> None:
    """Write the merged checkpoint again, over what a killed run left."""
    shutil.rmtree(into, ignore_errors=True)
    merge(base, adapter, into, provenance)


def _added(base: Path, adapter: Mapping[str, Tensor], family: Architecture) -> dict[str, Tensor]:
    """B·A of each target, by the name of its tensor and in the layout in which it is stored."""
    stored = tensors_of(base)
    added: dict[str, Tensor] = {}
    for target, a, b in deltas(adapter):
        name = _stored_name(stored, target, family)
        if name is None:
            raise HQError(
                f"The adapter changes {target}, which {base} does not have: use the checkpoint "
                "that it was trained on."
            )
        delta = (b @ a).T if family.transposed else b @ a
        if stored[name].dtype not in DENSE_DTYPES:
            raise HQError(f"{base} has {name} in {stored[name].dtype}: merge into a dense model.")
        if stored[name].shape != tuple(delta.shape):
            raise HQError(
                f"The adapter changes {target} by a matrix of shape {tuple(delta.shape)}, but "
                f"{base} has {stored[name].shape} there: use the checkpoint that it was trained on."
            )
        added[name] = delta.contiguous()
    return added


def _stored_name(stored: Mapping[str, Any], target: str, family: Architecture) -> str | None:
    """The tensor of a target, whose name in a checkpoint may have another beginning."""
    ending = target[target.rindex(f"{family.layers}.") :]
    return next((name for name in stored if f".{name}".endswith(f".{ending}.weight")), None)


def _merge_file(source: Path, target: Path, added: Mapping[str, Tensor]) -> None:
    tensors: dict[str, Tensor] = {}
    with safe_open(source, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118 - not a dict
            tensor = file.get_tensor(name)
            if name in added:
                tensor = (tensor.float() + added[name]).to(tensor.dtype)
                if not torch.isfinite(tensor).all():
                    raise HQError(
                        f"The merged weight {name} overflows {tensor.dtype}: lower "
                        "finetune.learning_rate."
                    )
            tensors[name] = tensor
    # With more than one entry of metadata, their order would differ between runs.
    save_file(tensors, target, {"format": "pt"})
