"""A GGUF file as an FP16 checkpoint, so that a study can begin from one.

Settings come from `hq.gguf.read_config`, weights from transformers' reader. Where llama.cpp is
installed, its logits prove once that the checkpoint computes what the file says; where it is not, a
file with settings that hq does not know is refused.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from filelock import FileLock

from harness.store.environment import versions
from harness.store.places import cache_folder
from harness.store.store import digest
from hq.errors import HQError, first_line
from hq.gguf.file import GGUFFile
from hq.neurons.neuron_set import GGUF_ORIGIN

_READ_BY = ("gguf", "tokenizers", "transformers")
_EDITION = 3  # of what is made here; another one is another folder


def checkpoint_of(gguf: Path) -> Path:
    """The checkpoint folder, made in the cache the first time.

    Raises HQError for a damaged file, a split one where llama.cpp is not installed to merge it, a
    missing package, an architecture that transformers does not read from GGUF, a setting or tensor
    that is not carried over, a tokenizer that is not known, and a checkpoint whose logits are not
    llama.cpp's.
    """
    if find_spec("gguf") is None:
        raise HQError("Reading a GGUF model needs gguf: pip install 'hq[embedded]'.")
    from harness.models import equality
    from hq.gguf.read_config import config_of

    file = GGUFFile(gguf)
    if not equality.can_verify():
        file.require_single_file()
    read_by = versions(*_READ_BY)
    # The fingerprint is that of the tensors; the header says what is computed of them.
    key = digest([GGUF_ORIGIN + file.fingerprint, file.header.digest, read_by, _EDITION])
    folder = cache_folder() / "models" / key / gguf.stem
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            draft = folder.with_name("partial")
            shutil.rmtree(draft, ignore_errors=True)
            try:
                with _in_one_file(file, folder.parent) as merged:
                    _make(merged, draft)
                os.rename(draft, folder)
            finally:
                shutil.rmtree(draft, ignore_errors=True)
        elif equality.can_verify() and not equality.is_verified(folder):
            # It was made while llama.cpp was not installed.
            try:
                equality.verify_logits(file, config_of(file).unread, folder)
            except HQError:
                shutil.rmtree(folder)
                raise
    return folder


@contextmanager
def _in_one_file(file: GGUFFile, folder: Path) -> Iterator[GGUFFile]:
    """The file, or a copy that holds all of its parts, in `folder` while the context lasts.

    transformers reads one part of a split model, and draws the weights of the others at random.
    """
    if len(file.paths) == 1:
        yield file
        return
    from hq.gguf.quantize import merge

    with tempfile.TemporaryDirectory(dir=folder, ignore_cleanup_errors=True) as scratch:
        merged = Path(scratch) / file.path.name
        merge(file.path, merged)
        yield GGUFFile(merged)


def _make(file: GGUFFile, folder: Path) -> None:
    """Writes the checkpoint, and proves it where that can be done."""
    from harness.models import equality
    from hq.gguf.read_config import config_of
    from hq.gguf.read_tokenizer import tokenizer_of

    read = config_of(file)
    if read.unread and not equality.can_verify():
        raise HQError(
            f"{file.path} says {read.unread[0]}, and hq does not know whether that changes what "
            "the model computes: install llama-cpp-python (pip install 'hq[llama]'), whose logits "
            "then decide, or name the model's checkpoint."
        )
    tokenizer = tokenizer_of(file)
    _model(file, read.config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if equality.can_verify():
        equality.verify_logits(file, read.unread, folder)


def _model(file: GGUFFile, config: Any) -> Any:
    """The file's weights, dequantized to float16, in a model of this config."""
    import torch
    from transformers import AutoModelForCausalLM, GgufConfig

    where = {"pretrained_model_name_or_path": file.path.parent, "gguf_file": file.path.name}
    try:
        with _quietly():
            model, loading = AutoModelForCausalLM.from_pretrained(
                **where,
                config=config,
                quantization_config=GgufConfig(dequantize=True),
                dtype=torch.float16,
                output_loading_info=True,
            )
    except (ValueError, OSError, KeyError, NotImplementedError, RuntimeError) as error:
        raise HQError(
            f"transformers cannot read {file.path}: {first_line(error)}; name its checkpoint."
        ) from error
    _require_all(file, model, set(loading["missing_keys"]))
    return model


def _require_all(file: GGUFFile, model: Any, missing: set[str]) -> None:
    """Every tensor of the file went into the model, and all of the model came from the file.

    A projection without a bias, where another of the same kind has one, gets zeros.
    """
    import torch
    from gguf import MODEL_ARCH_NAMES, get_tensor_name_map

    from hq.gguf.read_config import ROPE_TENSORS

    architecture = next(a for a, name in MODEL_ARCH_NAMES.items() if name == file.architecture)
    table = get_tensor_name_map(architecture, file.n_layers)
    parameters = model.state_dict()
    names = {table.get_name(name, try_suffixes=(".weight", ".bias")) for name in parameters}
    left = file.tensors.keys() - names - ROPE_TENSORS
    if left:
        raise HQError(
            f"{file.path} has a tensor {min(left)}, which transformers' {model.config.model_type} "
            "has no place for: name the model's checkpoint."
        )
    for name in missing:
        if not name.endswith(".bias"):
            raise HQError(f"{file.path} has no weights for {name}: name the model's checkpoint.")
        parameters[name].zero_()
    for name, weights in parameters.items():
        if not torch.isfinite(weights).all():
            raise HQError(
                f"{file.path} has weights at {name} that are not finite in float16: hq's reference "
                "is FP16, so it needs another file, or the model's checkpoint."
            )


@contextmanager
def _quietly() -> Iterator[None]:
    """Without transformers' progress bars; one of them does not ask whether it may be shown."""
    from transformers import modeling_gguf_pytorch_utils as reader
    from transformers.utils import logging

    logging.disable_progress_bar()
    shown, reader.tqdm = reader.tqdm, logging.tqdm
    try:
        yield
    finally:
        reader.tqdm = shown
