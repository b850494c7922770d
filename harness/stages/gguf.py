"""Stage `gguf`: the checkpoint as a GGUF file, dense or quantized."""

from typing import TYPE_CHECKING, get_args

from harness.stages import checkpoint
from harness.store.environment import CONVERT
from harness.store.node import Node, Stage, Work
from hq.gguf.quantize import quantize
from hq.gguf.write import Dtype, write_gguf
from hq.models.checkpoint import file_digests
from hq.precisions.gguf import GGUF_PREFIX, file_precision

if TYPE_CHECKING:
    from harness.stages.materials import Materials

FILE = "model.gguf"
_SOURCES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    "special_tokens_map.json",
    "chat_template.jinja",
)
"""Files of the checkpoint, beside the weights, whose content is written to the GGUF file."""
_WRITTEN: tuple[Dtype, ...] = get_args(Dtype)


def node(m: "Materials", precision: str) -> Node:
    """Declare the file of a precision: from the checkpoint, or quantized from the F16 file."""
    precision = file_precision(precision)
    kind = precision.removeprefix(GGUF_PREFIX)
    is_written = kind in _WRITTEN
    dense = {} if is_written else {"dense": node(m, GGUF_PREFIX + "f16").output()}
    return Node(
        STAGE,
        {
            "model": m.model.fingerprint,
            "files": file_digests(m.path, _SOURCES),
            "kind": kind,
        },
        dense or checkpoint.inputs(m),
        precision,
        m.model_scope,
        unit="files",
        disk=m.weights * 2,
        materials=m,
    )


def make(work: "Work[Materials]") -> None:
    """Write model.gguf."""
    m, kind = work.materials, work.parameters["kind"]
    for dtype in _WRITTEN:
        if kind == dtype:
            source = checkpoint.made(work.inputs) or m.path
            write_gguf(source, work.folder / FILE, dtype, m.model)
            return
    quantize(work.inputs["dense"] / FILE, work.folder / FILE, kind)


STAGE = Stage("gguf", make, packages=CONVERT)
