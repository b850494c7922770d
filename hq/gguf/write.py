"""A GGUF file from a checkpoint, written tensor by tensor: no model is ever whole in memory."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from transformers import PretrainedConfig

from hq.errors import HQError, first_line
from hq.gguf.conversion import Conversion, Metadata, Value, Weights, conversion_of
from hq.gguf.tokenizer import tokenizer_metadata
from hq.models.checkpoint import tensor_files, text_config, whole_config
from hq.neurons.neuron_set import ModelIdentity
from hq.storage.atomic import atomic_file

Dtype = Literal["f32", "f16"]

_NUMPY: dict[str, type[np.floating[Any]]] = {"f32": np.float32, "f16": np.float16}
FILE_TYPE = {"f32": 0, "f16": 1}  # llama.cpp's LLAMA_FTYPE_ALL_F32 and LLAMA_FTYPE_MOSTLY_F16
_QUANTIZATION_VERSION = 2
_EMBEDDING, _HEAD = "token_embd.weight", "output.weight"

# A multimodal checkpoint: where its language model stands, and what else it has.
_INNER = ("language_model.", "model.language_model.", "model.text_model.")
_OTHER = ("vision_tower.", "multi_modal_projector.", "vision_model.", "connector.")
_ROWS = 4096  # of the embedding that are compared with the head's at a time


@dataclass(frozen=True, slots=True)
class Planned:
    """One tensor of the file to be: its weights are read, as float32, when they are written."""

    name: str
    shape: tuple[int, ...]
    read: Callable[[], Weights]

    def dtype(self, wanted: Dtype) -> type[np.floating[Any]]:
        """Vectors stay float32."""
        return _NUMPY[wanted] if len(self.shape) > 1 else np.float32


def write(checkpoint: Path, into: Path, dtype: Dtype, identity: ModelIdentity) -> None:
    """Writes the model and its tokenizer into the file `into`, and says there who it is.

    `into` appears when it is whole. Within its `context_length` llama.cpp computes what the
    checkpoint does; a model whose sliding window llama.cpp does not know has a context no longer
    than the window.

    Raises HQError, naming the cause, for an architecture whose record has no conversion, or that
    asks for what llama.cpp does not do; for a missing or unknown tokenizer; for a tensor with an
    unexpected name or type; for weights that float16 cannot hold; for a missing `gguf`.
    """
    gguf = gguf_package()
    config = text_config(checkpoint)
    conversion = conversion_of(config.model_type)
    own = conversion.metadata(config)
    planned = _plan(checkpoint, config, conversion)
    rows = next(tensor.shape[0] for tensor in planned if tensor.name == _EMBEDDING)
    metadata = (
        _general(dtype, identity)
        | {f"{conversion.architecture}.{key}": value for key, value in own.items()}
        | tokenizer_metadata(checkpoint, config, rows)
    )
    with atomic_file(into) as path:
        writer = gguf.GGUFWriter(path, conversion.architecture)
        try:
            _write(gguf, writer, metadata, planned, dtype)
        finally:
            writer.close()


def gguf_package() -> ModuleType:
    """The package gguf, which writes files. Raises HQError where it is missing."""
    try:
        import gguf
    except ImportError as error:
        raise HQError("GGUF files need the package gguf: pip install 'hq[llama]'.") from error
    return gguf


def _general(dtype: Dtype, identity: ModelIdentity) -> Metadata:
    """What the file is, and the checkpoint that it was made of."""
    source = {
        "name": identity.name,
        "fingerprint": identity.fingerprint,
        "architecture": identity.architecture,
        "kin": identity.norm_digest,
    }
    general: Metadata = {
        "general.type": "model",
        "general.name": identity.name,
        "general.file_type": FILE_TYPE[dtype],
        "general.quantization_version": _QUANTIZATION_VERSION,
    }
    return general | {f"hq.source.{key}": text for key, text in source.items() if text}


def _plan(checkpoint: Path, config: PretrainedConfig, conversion: Conversion) -> list[Planned]:
    """The tensors of the file, with their names checked and nothing of their weights read."""
    names = _names(conversion, config)
    found = [
        _planned(path, key, shape, names(checkpoint, key), config, conversion)
        for path, key, shape in _sources(checkpoint)
    ]
    made = conversion.made(config)
    found += [Planned(name, made[name].shape, partial(made.__getitem__, name)) for name in made]
    there = {tensor.name for tensor in found}
    # The head is the whole model's: a multimodal one ties it, whatever its language model says.
    tied = whole_config(checkpoint).tie_word_embeddings
    needed = {_EMBEDDING} if tied else {_EMBEDDING, _HEAD}
    if needed - there:
        raise HQError(
            f"{checkpoint} has no {min(needed - there)} (by llama.cpp's name): copy all of the "
            "model's safetensors files."
        )
    return found


def _sources(checkpoint: Path) -> Iterator[tuple[Path, str, tuple[int, ...]]]:
    """File, name and shape of each of the language model's tensors.

    A tied model's checkpoint may repeat the embedding as its head, which is left out. A head with
    other weights counts, as in transformers, whatever the config says.
    """
    tied = whole_config(checkpoint).tie_word_embeddings
    files = tensor_files(checkpoint)
    embedding = next((key for key in files if key.endswith("embed_tokens.weight")), None)
    for path in sorted(set(files.values())):
        with _opened(path) as file:
            for key in file.keys():  # noqa: SIM118 - not a dict
                shape = tuple(file.get_slice(key).get_shape())
                repeats = (
                    tied
                    and embedding is not None
                    and key.endswith("lm_head.weight")
                    and _same(file, key, files[embedding], embedding)
                )
                buffer = key.endswith("rotary_emb.inv_freq")  # old checkpoints have it
                if not repeats and not buffer and not key.removeprefix("model.").startswith(_OTHER):
                    yield path, key, shape


def _same(file: Any, key: str, other_file: Path, other: str) -> bool:
    """Whether two matrices have the same weights, read in blocks of rows."""
    with _opened(other_file) as opened:
        one, two = file.get_slice(key), opened.get_slice(other)
        if one.get_shape() != two.get_shape():
            return False
        starts = range(0, one.get_shape()[0], _ROWS)
        return all(torch.equal(one[i : i + _ROWS], two[i : i + _ROWS]) for i in starts)


def _names(conversion: Conversion, config: PretrainedConfig) -> Callable[[Path, str], str]:
    """llama.cpp's name of a checkpoint's tensor; HQError for one that it has no place for."""
    gguf = gguf_package()
    arch = {name: arch for arch, name in gguf.MODEL_ARCH_NAMES.items()}[conversion.architecture]
    table = gguf.get_tensor_name_map(arch, config.num_hidden_layers)

    def name(checkpoint: Path, key: str) -> str:
        inner = _without(key, _INNER)
        inner = inner if inner.startswith(("model.", "lm_head.")) else f"model.{inner}"
        found: str | None = table.get_name(inner, try_suffixes=(".weight", ".bias"))
        biased = found is not None and found.endswith(".bias")
        if found is None or (biased and _part(found) not in conversion.biases):
            raise HQError(
                f"{checkpoint} has a tensor {key!r} that llama.cpp's {conversion.architecture} has "
                "no place for: a GGUF file without it would be another model."
            )
        return found

    return name


def _without(key: str, prefixes: tuple[str, ...]) -> str:
    return next((key.removeprefix(p) for p in prefixes if key.startswith(p)), key)


def _part(name: str) -> str:
    """attn_q of blk.3.attn_q.weight."""
    return name.split(".")[-2]


def _planned(
    path: Path,
    key: str,
    shape: tuple[int, ...],
    name: str,
    config: PretrainedConfig,
    conversion: Conversion,
) -> Planned:
    def read() -> Weights:
        with _opened(path) as file:
            tensor = file.get_tensor(key)
        if not tensor.is_floating_point():
            raise HQError(
                f"{path} holds {key!r} as {tensor.dtype}: a GGUF file is written from the dense "
                "checkpoint, before quantization."
            )
        edited = conversion.edit(_part(name), tensor.to(torch.float32).numpy(), config)
        return np.ascontiguousarray(edited)

    return Planned(name, shape, read)


def _opened(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise HQError(
            f"{path} is no whole safetensors file ({first_line(error)}): copy it again."
        ) from error


def _write(
    gguf: ModuleType, writer: Any, metadata: Metadata, planned: list[Planned], dtype: Dtype
) -> None:
    for key, value in metadata.items():
        writer.add_key_value(key, value, _type(gguf, value))
    for tensor in planned:
        kind = np.dtype(tensor.dtype(dtype))
        size = kind.itemsize * int(np.prod(tensor.shape))
        writer.add_tensor_info(tensor.name, tensor.shape, kind, size)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for tensor in planned:
        writer.write_tensor_data(_cast(tensor, tensor.dtype(dtype)))


def _type(gguf: ModuleType, value: Value) -> Any:
    """GGUF's type of a value; whole numbers are counts and ids."""
    types = gguf.GGUFValueType
    return {
        bool: types.BOOL,
        int: types.UINT32,
        float: types.FLOAT32,
        str: types.STRING,
        list: types.ARRAY,
    }[type(value)]


def _cast(tensor: Planned, dtype: type[np.floating[Any]]) -> NDArray[np.floating[Any]]:
    weights = tensor.read()
    with np.errstate(over="ignore"):
        cast = weights.astype(dtype, copy=False)
    if not np.isfinite(cast).all():
        raise HQError(
            f"Tensor {tensor.name} has weights that are not finite as {np.dtype(dtype).name}: "
            "write the file as f32, or check the checkpoint."
        )
    return cast
