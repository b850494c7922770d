"""The checkpoint of an unfinished training run: one file, which is always whole.

It holds the LoRA, the moments of AdamW, the LoRA that would be kept if training ended now, and the
log, as tensors and JSON. Batches follow from the step, and nothing else is random.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from hq.errors import HQError, first_line
from hq.storage.atomic import write_whole
from hq.tuning.adapter import Adapter

STATE_FILE = "state.safetensors"
_MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(slots=True)
class Progress:
    """How far a run is: finished steps, the step of the kept LoRA, and a record per step."""

    step: int = 0
    kept_step: int = 0
    stopped: bool = False  # by the loss of capability
    log: list[dict[str, Any]] = field(default_factory=list)


def save_state(
    folder: Path,
    progress: Progress,
    adapter: Adapter,
    optimizer: torch.optim.AdamW,
    kept: Mapping[str, Tensor],
    run: str,
) -> None:
    """Write the state; `run` is a digest of everything that the training depends on."""
    tensors = {f"adapter.{name}": tensor for name, tensor in adapter.tensors().items()}
    tensors |= {f"kept.{name}": tensor for name, tensor in kept.items()}
    for name, parameter in adapter.parameters.items():
        for moment in _MOMENTS:
            value = optimizer.state[parameter][moment]
            tensors[f"{moment}.{name}"] = value.detach().cpu().contiguous()
    facts = {
        "run": run,
        "step": progress.step,
        "kept_step": progress.kept_step,
        "stopped": progress.stopped,
        "log": progress.log,
    }
    write_whole(folder / STATE_FILE, save(tensors, {"hq.state": json.dumps(facts)}))


def load_state(
    folder: Path, adapter: Adapter, optimizer: torch.optim.AdamW, run: str
) -> tuple[Progress, dict[str, Tensor]] | None:
    """Continue from the state in a folder: return progress and the kept LoRA; None without one.

    Raises HQError if the state is of another run or cannot be read.
    """
    file = folder / STATE_FILE
    if not file.is_file():
        return None
    try:
        with safe_open(file, framework="pt") as opened:
            facts = json.loads(opened.metadata()["hq.state"])
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, KeyError, ValueError, TypeError) as error:
        raise HQError(
            f"{file} cannot be read ({first_line(error)}): remove it, to train from the start."
        ) from error
    if facts.pop("run") != run:
        raise HQError(
            f"{file} is the state of a run with other settings, data or model: name another "
            "folder, or remove it."
        )
    progress = Progress(**facts)
    with torch.no_grad():
        for name, parameter in adapter.parameters.items():
            parameter.copy_(tensors[f"adapter.{name}"])
            optimizer.state[parameter] = {
                "step": torch.tensor(float(progress.step)),
                **{
                    moment: tensors[f"{moment}.{name}"].to(parameter.device).clone()
                    for moment in _MOMENTS
                },
            }
    kept = {n.removeprefix("kept."): t for n, t in tensors.items() if n.startswith("kept.")}
    return progress, kept
