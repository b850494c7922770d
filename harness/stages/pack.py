"""Stage `pack`: the checkpoint quantized by GPTQ or AWQ, calibrated on its own questions."""

import shutil
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from harness.stages.loading import SPELLING
from harness.store.environment import PACK, versions
from harness.store.node import Node, Stage, Work
from harness.store.store import digest
from hq.errors import HQError
from hq.models.checkpoint import file_digests, text_config
from hq.precisions.packed import NATIVE, RECIPES
from hq.precisions.packed_checkpoints.quantize import group_size, quantize_checkpoint
from hq.precisions.packed_checkpoints.quantizers import QUANTIZERS, QuantizationJob

if TYPE_CHECKING:
    from harness.stages.materials import Materials

FOLDER = "checkpoint"


def node(m: "Materials", precision: str) -> Node:
    """Declare the packed checkpoint of a precision. Raises HQError if hq cannot make one."""
    name = precision.removesuffix(NATIVE)
    recipe = RECIPES[name]
    if not recipe.has_quantizer:
        raise HQError(
            f"hq reads {name} but cannot make it: give such a checkpoint of the model under "
            "[checkpoints] in the study."
        )
    return Node(
        STAGE,
        {
            "packages": versions(*PACK[recipe.method]),
            "maker": QUANTIZERS[recipe.method].version,
            "model": m.model.fingerprint,
            "files": file_digests(m.path, ("config.json", *SPELLING)),
            "name": name,
            "recipe": asdict(recipe),
            "pack": m.study.pack.model_dump(exclude={"text"}),
            "texts": digest(m.calibration),
        },
        precision=name,
        units=m.model.n_layers,
        unit="layers",
        disk=m.weights * 2,
        memory=m.weights * 8,
    )


def make(work: "Work[Materials]") -> None:
    """Write the checkpoint."""
    m, name = work.materials, work.parameters["name"]
    recipe, section = RECIPES[name], m.study.pack
    assert recipe.method != "compressed-tensors"
    job = QuantizationJob(
        source=m.path,
        method=recipe.method,
        bits=recipe.bits,
        group_size=section.group_size or group_size(widths(m.path)),
        desc_act=section.desc_act and recipe.method == "gptq",
        sym=section.sym and recipe.method == "gptq",
        texts=tuple(m.calibration),
    )
    shutil.rmtree(work.folder / FOLDER, ignore_errors=True)  # left by a killed run
    with work.task(m.model.n_layers, "layers", f"make {name}") as task:
        quantize_checkpoint(job, work.folder / FOLDER, lambda: task.advance(1))


def widths(source: Path) -> list[int]:
    """Return the input widths of projections inside layers: of the model, the FFN and the heads."""
    config = text_config(source)
    heads = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return [config.hidden_size, config.intermediate_size, config.num_attention_heads * heads]


STAGE = Stage("pack", make)
