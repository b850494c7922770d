"""Stage `pack`: the checkpoint quantized by GPTQ or AWQ, calibrated on its own questions.

Other calibration texts make another checkpoint, so a study may have several *makings* of such a
precision: making 0, and further ones that are calibrated on random draws of texts.
"""

import shutil
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from harness.stages import checkpoint
from harness.stages.loading import SPELLING
from harness.store.environment import PACK, versions
from harness.store.node import Node, Stage, Work
from harness.store.store import digest
from hq.errors import HQError
from hq.models.checkpoint import file_digests, text_config
from hq.precisions.packed import NATIVE, RECIPES, recipe_of
from hq.precisions.packed_checkpoints.quantize import group_size, quantize_checkpoint
from hq.precisions.packed_checkpoints.quantizers import QUANTIZERS, QuantizationJob

if TYPE_CHECKING:
    from harness.stages.materials import Materials

FOLDER = "checkpoint"


def makings(m: "Materials", precision: str) -> range:
    """Return the numbers of a precision's makings: 0 alone if hq makes no checkpoint for it."""
    recipe = recipe_of(precision)
    made = recipe is not None and recipe.has_quantizer and m.models.given(precision) is None
    return range(m.study.pack.makings if made else 1)


def about(making: int, scope: str = "") -> str:
    """Return what distinguishes the nodes of a making and a scope; empty for making 0 of a run."""
    return " ".join(filter(None, (scope, f"making {making}" if making else "")))


def node(m: "Materials", precision: str, making: int = 0) -> Node:
    """Declare a packed checkpoint of a precision. Raises HQError if hq cannot make one."""
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
            "pack": m.study.pack.model_dump(exclude={"text", "makings"}),
            "texts": digest(m.calibrations[making]),
            **({"making": making} if making else {}),
        },
        checkpoint.inputs(m),
        name,
        about(making, m.model_scope),
        units=m.model.n_layers,
        unit="layers",
        disk=m.weights * 2,
        memory=m.weights * 8,
        materials=m,
    )


def make(work: "Work[Materials]") -> None:
    """Write the checkpoint."""
    m, name = work.materials, work.parameters["name"]
    making = work.parameters.get("making", 0)
    recipe, section = RECIPES[name], m.study.pack
    assert recipe.method != "compressed-tensors"
    job = QuantizationJob(
        source=checkpoint.made(work.inputs) or m.path,
        method=recipe.method,
        bits=recipe.bits,
        group_size=section.group_size or group_size(widths(m.path)),
        desc_act=section.desc_act and recipe.method == "gptq",
        sym=section.sym and recipe.method == "gptq",
        texts=tuple(m.calibrations[making]),
    )
    shutil.rmtree(work.folder / FOLDER, ignore_errors=True)  # left by a killed run
    with work.task(m.model.n_layers, "layers", f"make {name} {about(making)}".rstrip()) as task:
        quantize_checkpoint(job, work.folder / FOLDER, lambda: task.advance(1))


def widths(source: Path) -> list[int]:
    """Return the input widths of projections inside layers: of the model, the FFN and the heads."""
    config = text_config(source)
    heads = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return [config.hidden_size, config.intermediate_size, config.num_attention_heads * heads]


STAGE = Stage("pack", make)
