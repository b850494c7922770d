"""Dequantizes a GGUF file into an FP16 checkpoint, so that a study can use it as its source.

Settings are read by `hq.gguf.read_config`, weights by transformers. If llama.cpp is installed, the
logits of the checkpoint are compared with llama.cpp's once; otherwise a file with settings that hq
does not know is rejected.
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
from harness.store.store import digest
from hq.errors import HQError, first_line
from hq.gguf.file import GGUFFile
from hq.neurons.neuron_set import GGUF_ORIGIN
from hq.storage.places import cache_folder

_READ_BY = ("gguf", "tokenizers", "transformers")
_VERSION = 3  # of the checkpoints that are made here; part of their folder's name


def checkpoint_of(gguf: Path) -> Path:
    """Return the checkpoint folder of a GGUF file, which is made in the cache the first time.

    Raises HQError if the file is damaged, is split and llama.cpp is not installed to merge it, has
    an architecture, setting, tensor or tokenizer that cannot be converted, or if the logits of the
    checkpoint differ from llama.cpp's.
    """
    if find_spec("gguf") is None:
        raise HQError("Reading a GGUF model needs gguf: pip install 'hq[embedded]'.")
    from harness.models import equality
    from hq.gguf.read_config import config_of

    file = GGUFFile(gguf)
    if not equality.can_verify():
        file.require_single_file()
    read_by = versions(*_READ_BY)
    # The fingerprint covers the tensors, the header determines what is computed from them.
    key = digest([GGUF_ORIGIN + file.fingerprint, file.header.digest, read_by, _VERSION])
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
            # The checkpoint was made when llama.cpp was not installed.
            try:
                equality.verify_logits(file, config_of(file).unread, folder)
            except HQError:
                shutil.rmtree(folder)
                raise
    return folder


@contextmanager
def _in_one_file(file: GGUFFile, folder: Path) -> Iterator[GGUFFile]:
    """Yield the file, or a temporary copy in `folder` that merges the parts of a split file.

    transformers would read one part only, and initialize the weights of the others at random.
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
    """Write the checkpoint, and compare it with llama.cpp if that is installed."""
    from harness.models import equality
    from hq.gguf.read_config import config_of
    from hq.gguf.read_tokenizer import tokenizer_of

    read = config_of(file)
    if read.unread and not equality.can_verify():
        raise HQError(
            f"{file.path} has the setting {read.unread[0]}, which may change what the model "
            "computes: install llama-cpp-python (pip install 'hq[llama]') to compare its logits, "
            "or name the model's checkpoint."
        )
    tokenizer = tokenizer_of(file)
    _model(file, read.config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if equality.can_verify():
        equality.verify_logits(file, read.unread, folder)


def _model(file: GGUFFile, config: Any) -> Any:
    """Return a model of this config with the file's weights, dequantized to float16."""
    import torch
    from transformers import AutoModelForCausalLM, GgufConfig

    source = {"pretrained_model_name_or_path": file.path.parent, "gguf_file": file.path.name}
    try:
        with _quietly():
            model, loading = AutoModelForCausalLM.from_pretrained(
                **source,
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
    """Raise HQError unless the file and the model have the same tensors, all of them finite.

    A bias that only some layers of the file have is set to zero in the others.
    """
    import torch
    from gguf import MODEL_ARCH_NAMES, get_tensor_name_map

    from hq.gguf.read_config import ROPE_TENSORS

    architecture = next(a for a, name in MODEL_ARCH_NAMES.items() if name == file.architecture)
    table = get_tensor_name_map(architecture, file.n_layers)
    parameters = model.state_dict()
    names = {table.get_name(name, try_suffixes=(".weight", ".bias")) for name in parameters}
    unused = file.tensors.keys() - names - ROPE_TENSORS
    if unused:
        raise HQError(
            f"{file.path} has a tensor {min(unused)}, which transformers' "
            f"{model.config.model_type} does not have: name the model's checkpoint."
        )
    for name in missing:
        if not name.endswith(".bias"):
            raise HQError(f"{file.path} has no weights for {name}: name the model's checkpoint.")
        parameters[name].zero_()
    for name, weights in parameters.items():
        if not torch.isfinite(weights).all():
            raise HQError(
                f"{file.path} has weights at {name} that are not finite in float16: hq's reference "
                "is FP16, so name another file or the model's checkpoint."
            )


@contextmanager
def _quietly() -> Iterator[None]:
    """Hide the progress bars of transformers, one of which ignores the library's setting."""
    from transformers import modeling_gguf_pytorch_utils as reader
    from transformers.utils import logging

    logging.disable_progress_bar()
    original, reader.tqdm = reader.tqdm, logging.tqdm
    try:
        yield
    finally:
        reader.tqdm = original
