"""Stage `pack`: the checkpoint quantized by GPTQ or AWQ, calibrated on its own questions."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from harness.store.progress import Task
from harness.store.store import Stage
from harness.studies.study import PackSection
from hq.models.checkpoint import text_config
from hq.precisions.packed import Recipe
from hq.precisions.packed_checkpoints.quantize import group_size, quantize_checkpoint
from hq.precisions.packed_checkpoints.quantizers import QuantizationJob

STAGE = Stage("pack")
FOLDER = "checkpoint"


def pack(
    folder: Path,
    source: Path,
    recipe: Recipe,
    section: PackSection,
    texts: Sequence[tuple[int, ...]],
    task: Task,
) -> None:
    """Writes the checkpoint."""
    assert recipe.method != "compressed-tensors"
    job = QuantizationJob(
        source=source,
        method=recipe.method,
        bits=recipe.bits,
        group_size=section.group_size or group_size(widths(source)),
        desc_act=section.desc_act and recipe.method == "gptq",
        sym=section.sym and recipe.method == "gptq",
        texts=tuple(texts),
    )
    shutil.rmtree(folder / FOLDER, ignore_errors=True)  # what a killed run left
    quantize_checkpoint(job, folder / FOLDER, lambda: task.advance(1))


def widths(source: Path) -> list[int]:
    """Inputs of the projections inside the layers: the model's width and the FFN's."""
    config = text_config(source)
    heads = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return [config.hidden_size, config.intermediate_size, config.num_attention_heads * heads]
