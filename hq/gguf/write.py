"""Write a GGUF file from a checkpoint, tensor by tensor: the model is never in memory at once."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from hq.errors import HQError, first_line
from hq.gguf.write_tokenizer import tokenizer_metadata
from hq.models.architectures import RECORDS
from hq.models.architectures.record import Architecture, Conversion, Metadata, Value, Weights
from hq.models.checkpoint import tensor_files, tensors_of, text_config, whole_config
from hq.models.ffn_weights import of_checkpoint
from hq.neurons.neuron_set import ModelIdentity
from hq.storage.atomic import atomic_file

if TYPE_CHECKING:  # the import takes a second
    from transformers import PretrainedConfig

Dtype = Literal["f32", "f16"]

_NUMPY: dict[str, type[np.floating[Any]]] = {"f32": np.float32, "f16": np.float16}
FILE_TYPE = {"f32": 0, "f16": 1}  # llama.cpp's LLAMA_FTYPE_ALL_F32 and LLAMA_FTYPE_MOSTLY_F16
_QUANTIZATION_VERSION = 2
_ROUTER, _SHARED_GATE = "ffn_gate_inp", "ffn_gate_inp_shexp"
_EMBEDDING, _HEAD = "token_embd.weight", "output.weight"

# Prefixes of names in a multimodal checkpoint: of its language model, and of its other parts.
_LANGUAGE_MODEL = ("language_model.", "model.language_model.", "model.text_model.")
_OTHER_PARTS = ("vision_tower.", "multi_modal_projector.", "vision_model.", "connector.")
_ROWS = 4096  # rows of embedding and head that are compared at a time


@dataclass(frozen=True, slots=True)
class PlannedTensor:
    """A tensor that will be written: `read` returns its weights, float32, when it is."""

    name: str
    shape: tuple[int, ...]
    read: Callable[[], Weights]

    def dtype(self, matrices: Dtype) -> type[np.floating[Any]]:
        """The dtype in the file: that of matrices, or float32 for a vector or a router."""
        is_matrix = len(self.shape) > 1 and _part(self.name) != _ROUTER
        return _NUMPY[matrices] if is_matrix else np.float32


def write_gguf(checkpoint: Path, into: Path, dtype: Dtype, identity: ModelIdentity) -> None:
    """Write the model, its tokenizer and its identity into the file `into`.

    `into` appears only when it is complete. Within its `context_length` llama.cpp computes the same
    as the checkpoint: the context is no longer than a sliding window that llama.cpp does not apply.

    Raises HQError if the architecture has no conversion or a setting that llama.cpp does not
    support, if the tokenizer is missing or not supported, if a tensor has an unknown name or is
    quantized, if weights are not finite in `dtype`, or if the package gguf is missing.
    """
    gguf = gguf_package()
    config = text_config(checkpoint)
    conversion = conversion_of(config.model_type)
    hparams = conversion.metadata(config)
    planned = _plan(checkpoint, config, conversion)
    rows = next(tensor.shape[0] for tensor in planned if tensor.name == _EMBEDDING)
    metadata = (
        _general(dtype, identity)
        | {f"{conversion.architecture}.{key}": value for key, value in hparams.items()}
        | tokenizer_metadata(checkpoint, config, rows)
    )
    with atomic_file(into) as path:
        writer = gguf.GGUFWriter(path, conversion.architecture)
        try:
            _write(gguf, writer, metadata, planned, dtype)
        finally:
            writer.close()


def conversion_of(model_type: str) -> Conversion:
    """The conversion for the `model_type` of a text config.

    Raises HQError if its architecture record has none.
    """
    conversion = RECORDS[model_type].conversion if model_type in RECORDS else None
    if conversion is None:
        convertible = sorted(name for name in RECORDS if RECORDS[name].conversion is not None)
        raise HQError(
            f"A model of type {model_type!r} cannot be written as GGUF: hq writes "
            f"{', '.join(convertible)}; use a precision of the torch backend."
        )
    return conversion


def gguf_package() -> ModuleType:
    """Import the package gguf. Raises HQError if it is missing."""
    try:
        import gguf
    except ImportError as error:
        raise HQError("GGUF files need the package gguf: pip install 'hq[llama]'.") from error
    return gguf


def _general(dtype: Dtype, identity: ModelIdentity) -> Metadata:
    """Keys that describe the file and its source checkpoint."""
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


def _plan(
    checkpoint: Path, config: "PretrainedConfig", conversion: Conversion
) -> list[PlannedTensor]:
    """List the tensors of the file and check their names, without reading weights."""
    names = _names(conversion, config)
    family = RECORDS[config.model_type]
    is_expert = _expert_names(family)
    planned = [
        _planned(path, key, shape, names(checkpoint, key), config, conversion)
        for path, key, shape in _sources(checkpoint)
        if not is_expert(key)
    ]
    if family.experts is not None:
        family.experts.require_count(config, tensors_of(checkpoint).values())
        planned += _experts(checkpoint, config, family)
    extra = conversion.made(config)
    planned += [
        PlannedTensor(name, extra[name].shape, partial(extra.__getitem__, name)) for name in extra
    ]
    # A multimodal model decides itself whether the head is tied, whatever its text config says.
    tied = whole_config(checkpoint).tie_word_embeddings
    required = {_EMBEDDING} if tied else {_EMBEDDING, _HEAD}
    missing = required - {tensor.name for tensor in planned}
    if missing:
        raise HQError(
            f"{checkpoint} has no {min(missing)} (by llama.cpp's name): copy all of the model's "
            "safetensors files."
        )
    return planned


def _sources(checkpoint: Path) -> Iterator[tuple[Path, str, tuple[int, ...]]]:
    """File, name and shape of each of the language model's tensors.

    The checkpoint of a tied model may repeat the embedding as its head, which is left out. A head
    with other weights is used, as in transformers, whatever the config says.
    """
    tied = whole_config(checkpoint).tie_word_embeddings
    files = tensor_files(checkpoint)
    embedding = next((key for key in files if key.endswith("embed_tokens.weight")), None)
    for path in sorted(set(files.values())):
        with _open(path) as file:
            for key in file.keys():  # noqa: SIM118 - not a dict
                shape = tuple(file.get_slice(key).get_shape())
                is_copy = (
                    tied
                    and embedding is not None
                    and key.endswith("lm_head.weight")
                    and _is_equal(file, key, files[embedding], embedding)
                )
                is_buffer = key.endswith("rotary_emb.inv_freq")  # in old checkpoints
                is_other = key.removeprefix("model.").startswith(_OTHER_PARTS)
                if not is_copy and not is_buffer and not is_other:
                    yield path, key, shape


def _is_equal(file: Any, key: str, other_path: Path, other_key: str) -> bool:
    """Whether two matrices have the same weights, read in blocks of rows."""
    with _open(other_path) as other_file:
        one, two = file.get_slice(key), other_file.get_slice(other_key)
        if one.get_shape() != two.get_shape():
            return False
        starts = range(0, one.get_shape()[0], _ROWS)
        return all(torch.equal(one[i : i + _ROWS], two[i : i + _ROWS]) for i in starts)


def _names(conversion: Conversion, config: "PretrainedConfig") -> Callable[[Path, str], str]:
    """A function that returns llama.cpp's name of a checkpoint's tensor.

    It raises HQError if llama.cpp has no such tensor.
    """
    gguf = gguf_package()
    arch = {name: arch for arch, name in gguf.MODEL_ARCH_NAMES.items()}[conversion.architecture]
    table = gguf.get_tensor_name_map(arch, config.num_hidden_layers)

    def name(checkpoint: Path, key: str) -> str:
        prefix = next((p for p in _LANGUAGE_MODEL if key.startswith(p)), "")
        inner = key.removeprefix(prefix)
        inner = inner if inner.startswith(("model.", "lm_head.")) else f"model.{inner}"
        gguf_name: str | None = table.get_name(inner, try_suffixes=(".weight", ".bias"))
        is_bias = gguf_name is not None and gguf_name.endswith(".bias")
        if gguf_name is None or (is_bias and _part(gguf_name) not in conversion.biases):
            raise HQError(
                f"{checkpoint} has a tensor {key!r}, which llama.cpp's {conversion.architecture} "
                "does not have, so the GGUF file would be another model: use a precision of the "
                "torch backend."
            )
        return gguf_name

    return name


def _expert_names(family: Architecture) -> Callable[[str], bool]:
    """A function that says whether a tensor of a checkpoint belongs to a routed expert."""
    if family.experts is None:
        return lambda _: False
    one = family.experts.stored.partition("{}")[0]
    prefixes = "|".join(map(re.escape, (one, f"{family.experts.block}.experts.")))
    pattern = re.compile(rf"(?:^|\.){re.escape(family.layers)}\.\d+\.(?:{prefixes})")
    return lambda key: pattern.search(key) is not None


def _experts(
    checkpoint: Path, config: "PretrainedConfig", family: Architecture
) -> Iterator[PlannedTensor]:
    """The matrices of the routed experts, packed layer by layer: [expert, row, column]."""
    experts, blocks = family.experts, family.space(config).blocks
    assert experts is not None
    count, width = int(getattr(config, experts.count)), int(getattr(config, experts.width))
    ffns = of_checkpoint(checkpoint, folded=False)

    def read(numbers: list[int], matrix: Literal["gate", "up", "down"]) -> Weights:
        packed = torch.stack([getattr(ffns[number], matrix) for number in numbers])
        return np.ascontiguousarray(packed.numpy())

    for layer in range(config.num_hidden_layers):
        routed = [
            n
            for n, block in enumerate(blocks)
            if block.layer == layer and block.expert is not None and block.expert < count
        ]
        matrices: tuple[Literal["gate", "up", "down"], ...] = ("gate", "up", "down")
        for matrix in matrices:
            shape = (width, config.hidden_size)
            shape = shape[::-1] if matrix == "down" else shape
            name = f"blk.{layer}.ffn_{matrix}_exps.weight"
            yield PlannedTensor(name, (count, *shape), partial(read, routed, matrix))


def _part(name: str) -> str:
    """The part of a tensor's name that a conversion knows: attn_q of blk.3.attn_q.weight."""
    return name.split(".")[-2]


def _planned(
    path: Path,
    key: str,
    shape: tuple[int, ...],
    name: str,
    config: "PretrainedConfig",
    conversion: Conversion,
) -> PlannedTensor:
    if _part(name) == _SHARED_GATE:
        shape = shape[-1:]  # a matrix of one row in checkpoints

    def read() -> Weights:
        with _open(path) as file:
            tensor = file.get_tensor(key)
        if not tensor.is_floating_point():
            raise HQError(
                f"{path} has {key!r} as {tensor.dtype}: write the GGUF file from the dense "
                "checkpoint, before quantization."
            )
        converted = conversion.edit(_part(name), tensor.to(torch.float32).numpy(), config)
        return np.ascontiguousarray(converted).reshape(shape)

    return PlannedTensor(name, shape, read)


def _open(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise HQError(
            f"{path} is not a complete safetensors file ({first_line(error)}): copy it again."
        ) from error


def _write(
    gguf: ModuleType, writer: Any, metadata: Metadata, planned: list[PlannedTensor], dtype: Dtype
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
    """GGUF's type of a value; integers are counts and ids, so they are unsigned."""
    types = gguf.GGUFValueType
    return {
        bool: types.BOOL,
        int: types.UINT32,
        float: types.FLOAT32,
        str: types.STRING,
        list: types.ARRAY,
    }[type(value)]


def _cast(tensor: PlannedTensor, dtype: type[np.floating[Any]]) -> NDArray[np.floating[Any]]:
    weights = tensor.read()
    with np.errstate(over="ignore"):
        cast = weights.astype(dtype, copy=False)
    if not np.isfinite(cast).all():
        raise HQError(
            f"Tensor {tensor.name} has weights that are not finite as {np.dtype(dtype).name}: "
            "write the file as f32, or check the checkpoint."
        )
    return cast
