"""A GGUF file as an FP16 checkpoint, so that a study can begin from one."""

import os
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from filelock import FileLock

from harness.environment import versions
from harness.places import cache_folder
from harness.store import digest
from hq.checkpoint import first_line
from hq.errors import HQError
from hq.gguf.file import GGUFFile
from hq.neurons import GGUF_ORIGIN

_READ_BY = ("gguf", "tokenizers", "transformers")
_EDITION = 2  # of what is made here; another one is another folder


def checkpoint_of(gguf: Path) -> Path:
    """The checkpoint folder, made in the cache the first time.

    Raises HQError for a damaged or split file, a missing package, an architecture that transformers
    does not read from GGUF, or a tokenizer that is not known.
    """
    if find_spec("gguf") is None:
        raise HQError("Reading a GGUF model needs gguf: pip install 'hq[embedded]'.")
    file = GGUFFile(gguf)
    file.require_whole()  # transformers reads one part, and draws the rest at random
    key = digest([GGUF_ORIGIN + file.fingerprint, versions(*_READ_BY), _EDITION])
    folder = cache_folder() / "models" / key / gguf.stem
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            draft = folder.with_name("partial")
            shutil.rmtree(draft, ignore_errors=True)
            for part in _read(file):
                part.save_pretrained(draft)
            os.rename(draft, folder)
    return folder


def _read(file: GGUFFile) -> tuple[Any, Any]:
    """The model, dequantized, and its tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, GgufConfig
    from transformers.utils import logging

    from hq.gguf.read_tokenizer import tokenizer_of

    logging.disable_progress_bar()
    where = {"pretrained_model_name_or_path": file.path.parent, "gguf_file": file.path.name}
    tokenizer = tokenizer_of(file)
    try:
        model = AutoModelForCausalLM.from_pretrained(
            **where, quantization_config=GgufConfig(dequantize=True), dtype=torch.float16
        )
    except (ValueError, OSError, KeyError, NotImplementedError) as error:
        raise HQError(
            f"transformers cannot read {file.path}: {first_line(error)}; name its checkpoint."
        ) from error
    return model, tokenizer
