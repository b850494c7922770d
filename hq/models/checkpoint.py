"""A source checkpoint on disk: its files, config, tensors and identity (the fingerprint)."""

import hashlib
import json
import struct
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Float
from pydantic import BaseModel, Field, ValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor

from hq.errors import HQError, first_line
from hq.models.architectures import Architecture, architecture_of
from hq.models.norm_digest import norm_digest
from hq.neurons.neuron_set import ModelIdentity
from hq.storage.fingerprints import cached_fingerprint

if TYPE_CHECKING:  # the import takes a second
    from transformers import PretrainedConfig

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
ADAPTER_CONFIG_FILE = "adapter_config.json"
_CHUNK = 1 << 22
DENSE_DTYPES = frozenset({"BF16", "F16", "F32", "F64"})
"""Types of weights in safetensors that are not codes."""


def resolve(model: str) -> Path:
    """Return the folder of `model`: a local checkpoint, or a hub id (downloaded or cached).

    Raises HQError if it is neither, is an adapter, has a config that cannot be read, or has weights
    that are not safetensors: pickles are never loaded.
    """
    path = Path(model).expanduser()
    if not path.exists():
        path = _from_hub(model)
    require_no_adapter(path)
    if not (path / "config.json").is_file():
        raise HQError(f"{path} is not a checkpoint: it has no config.json; name a model folder.")
    text_config(path)  # report a damaged config here, not where it is used
    if not weight_files(path):
        raise HQError(
            f"{path} has no *.safetensors file: convert its weights to safetensors first."
        )
    return path


def weight_files(path: Path) -> list[Path]:
    """Return the safetensors files that transformers loads, sorted by name.

    These are model.safetensors, else the shards in the index, else (packed checkpoints have other
    names) all files. Raises HQError if the index cannot be read or names a missing file.
    """
    single, index = path / SINGLE_FILE, path / INDEX_FILE
    if single.is_file():
        return [single]
    if not index.is_file():
        return sorted(path.glob("*.safetensors"))
    try:
        names = _Index.model_validate_json(index.read_bytes()).weight_map.values()
    except ValidationError as error:
        raise HQError(
            f"{index} cannot be read: {error.errors()[0]['msg']}; copy it again."
        ) from error
    files = [path / name for name in sorted(set(names))]
    missing = [file for file in files if not file.is_file()]
    if missing:
        raise HQError(f"{missing[0]} is missing, which {index.name} lists: copy it again.")
    return files


class _Index(BaseModel):
    weight_map: dict[str, str] = Field(min_length=1)


def tensor_files(path: Path) -> dict[str, Path]:
    """Return the file of each tensor of a checkpoint. Raises HQError as `tensors_of` does."""
    return {name: tensor.file for name, tensor in tensors_of(path).items()}


def tensors_of(path: Path) -> dict[str, "StoredTensor"]:
    """Return every tensor of a checkpoint by name.

    Raises HQError if a file is incomplete or two files contain the same tensor.
    """
    tensors: dict[str, StoredTensor] = {}
    for file in weight_files(path):
        for tensor in stored_tensors(file):
            first = tensors.setdefault(tensor.name, tensor)
            if first is not tensor:
                raise HQError(
                    f"{first.file.name} and {file.name} in {path} both contain {tensor.name}: "
                    "remove the file that does not belong to the checkpoint."
                )
    return tensors


class StoredTensor(NamedTuple):
    """The location of one tensor: bytes `start` to `end` of a safetensors file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    start: int
    end: int


def stored_tensors(file: Path) -> Iterator[StoredTensor]:
    """Yield the tensors of a safetensors file from its header, which is read once.

    Raises HQError if the file is incomplete.
    """
    try:
        stat = file.stat()
    except OSError as error:
        raise HQError(f"{file} cannot be read: {first_line(error)}.") from error
    stamp = (stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino)
    return iter(_header(file, stamp))


@lru_cache(maxsize=256)  # files; a large model has some 200
def _header(file: Path, _: tuple[int, ...]) -> tuple[StoredTensor, ...]:
    """Return the tensors in the header of a file with this stamp."""
    _require_complete(file)
    with open(file, "rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        header: dict[str, Any] = json.loads(stream.read(length))
    header.pop("__metadata__", None)
    tensors = []
    for name, entry in header.items():
        start, end = (8 + length + offset for offset in entry["data_offsets"])
        tensors.append(StoredTensor(name, entry["dtype"], tuple(entry["shape"]), file, start, end))
    return tuple(tensors)


def read_tensor(file: Path, name: str) -> Tensor:
    """Read one tensor of a safetensors file in its stored dtype."""
    with safe_open(file, framework="pt") as opened:
        tensor: Tensor = opened.get_tensor(name)
    return tensor


def checkpoint_identity(path: Path) -> ModelIdentity:
    """Return the name, fingerprint, shape and norm digest of the checkpoint in `path`."""
    config, architecture = text_config(path), architecture_at(path)
    if architecture.experts is not None:
        architecture.experts.require_count(config, tensors_of(path).values())
    return ModelIdentity.of(
        name=path.name,
        fingerprint=fingerprint(path),
        architecture=config.model_type,
        space=architecture.space(config),
        norm_digest=_norm_digest(path, config, architecture),
    )


def text_config(path: Path) -> "PretrainedConfig":
    """Return the config of the language model, which may be part of a multimodal config.

    Raises HQError as `whole_config` does.
    """
    text: PretrainedConfig = whole_config(path).get_text_config()
    return text


def whole_config(path: Path) -> "PretrainedConfig":
    """Return the config of a checkpoint, multimodal parts included.

    Raises HQError if the config cannot be read, or makes transformers load weights from other files
    than the usual ones: an adapter in the folder, or a file that the config names.
    """
    from transformers import AutoConfig

    require_no_adapter(path)
    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(path)
    except (ValueError, OSError, KeyError) as error:
        raise HQError(f"{path / 'config.json'} cannot be read: {first_line(error)}.") from error
    weights = getattr(config, "transformers_weights", None)
    if weights is not None and weights not in (SINGLE_FILE, INDEX_FILE):
        raise HQError(
            f"{path / 'config.json'} has transformers_weights = {weights!r}: name that file "
            f"{SINGLE_FILE} and remove the key, so that every tool reads the same weights."
        )
    return config


def architecture_at(path: Path) -> Architecture:
    """Return the architecture of the checkpoint in `path`.

    Raises HQError if it has no record and detection fails.
    """
    return architecture_of(whole_config(path))


def require_no_adapter(path: Path) -> None:
    """Raise HQError if the folder has a LoRA adapter, with or without a model's weights.

    If peft is installed, transformers attaches an adapter that is in the folder of a model: the
    model then runs with other weights than those in its files.
    """
    file = path / ADAPTER_CONFIG_FILE
    if not file.is_file():
        return
    if not (path / "config.json").is_file():
        base = _base_of(file)
        raise HQError(
            f"{path} is an adapter{base and f' of {base}'}, not a model: merge it into its base "
            "model (peft's merge_and_unload), save that, and name the merged folder."
        )
    raise HQError(
        f"{path} has an adapter beside its weights ({ADAPTER_CONFIG_FILE}), which transformers "
        "would attach: merge it (peft's merge_and_unload) and save the model, or move the adapter "
        "out of the folder."
    )


def _base_of(adapter_config: Path) -> str:
    """Return the base model that an adapter names; empty if it names none."""
    try:
        stated = json.loads(adapter_config.read_bytes())
    except ValueError:
        return ""
    return str(stated.get("base_model_name_or_path") or "") if isinstance(stated, dict) else ""


def quantization_of(path: Path) -> str | None:
    """Return the quantization method in config.json, or None for a dense model."""
    stated = quantization_config(path)
    return None if stated is None else str(stated.get("quant_method") or "another method").lower()


def quantization_config(path: Path) -> dict[str, Any] | None:
    """Return the quantization config in config.json, or None for a dense model.

    Multimodal configs may have it in the config of the language model.
    """
    try:
        config = json.loads((path / "config.json").read_bytes())
    except (OSError, ValueError) as error:
        raise HQError(f"{path / 'config.json'} cannot be read: {first_line(error)}.") from error
    for part in (config, config.get("text_config")):
        for key in ("quantization_config", "compression_config"):
            stated = part.get(key) if isinstance(part, dict) else None
            if isinstance(stated, dict) and stated:
                return stated
    return None


def fingerprint(path: Path) -> str:
    """Return 16 hex digits of BLAKE2b over every tensor's name, dtype, shape and bytes.

    Sharding and file headers do not change it; one bit of one weight does. It is computed once for
    files that do not change. Raises HQError if a safetensors file is incomplete or cannot be read.
    """
    return cached_fingerprint("safetensors 1", weight_files(path), lambda: _fingerprint(path))


def _fingerprint(path: Path) -> str:
    digest = hashlib.blake2b(digest_size=8)
    for name, dtype, shape, file, start, end in sorted(tensors_of(path).values()):
        digest.update(f"{name} {dtype} {list(shape)}\n".encode())
        with open(file, "rb") as stream:
            stream.seek(start)
            while start < end:
                chunk = stream.read(min(_CHUNK, end - start))
                digest.update(chunk)
                start += len(chunk)
    return digest.hexdigest()


def file_digests(path: Path, names: Iterable[str]) -> dict[str, str]:
    """Return 16 hex digits of BLAKE2b for each of these files that exists, by name.

    The fingerprint covers only the weights; what they compute also depends on config.json.
    """
    return {
        name: hashlib.blake2b((path / name).read_bytes(), digest_size=8).hexdigest()
        for name in names
        if (path / name).is_file()
    }


def end_tokens(path: Path) -> frozenset[int]:
    """Return every `eos_token_id` of generation_config.json; none if there is no such file.

    Raises HQError if the file cannot be read or an id is not a number.
    """
    file = path / "generation_config.json"
    if not file.is_file():
        return frozenset()
    try:
        stated = _GenerationConfig.model_validate_json(file.read_bytes()).eos_token_id
    except ValidationError as error:
        raise HQError(
            f"{file} cannot be read: {error.errors()[0]['msg']}; copy it again, or remove it."
        ) from error
    return frozenset([stated] if isinstance(stated, int) else stated or ())


class _GenerationConfig(BaseModel):
    eos_token_id: int | list[int] | None = None


def _norm_digest(path: Path, config: "PretrainedConfig", architecture: Architecture) -> str:
    """Return the norm digest; empty if the family has no GGUF names or a norm is missing."""
    names = architecture.norms
    if names is None:
        return ""
    norms: dict[str, Float[np.ndarray, " d"]] = {}
    for tensor in tensors_of(path).values():
        canonical = names.canonical(tensor.name)
        if canonical is not None and tensor.dtype in _TO_FLOAT32:
            norms[canonical] = _vector(tensor) + np.float32(names.offset)
    ordered = list(names.ordered(config.num_hidden_layers))
    return norm_digest(norms[name] for name in ordered) if norms.keys() >= set(ordered) else ""


_TO_FLOAT32: dict[str, Callable[[bytes], Float[np.ndarray, " d"]]] = {
    "F32": lambda stored: np.frombuffer(stored, "<f4"),
    "F16": lambda stored: np.frombuffer(stored, "<f2").astype(np.float32),
    "BF16": lambda stored: (np.frombuffer(stored, "<u2").astype(np.uint32) << 16).view(np.float32),
}


def _vector(tensor: StoredTensor) -> Float[np.ndarray, " d"]:
    """Read a small tensor as float32, exactly."""
    with open(tensor.file, "rb") as stream:
        stream.seek(tensor.start)
        return _TO_FLOAT32[tensor.dtype](stream.read(tensor.end - tensor.start))


def _require_complete(file: Path) -> None:
    """Raise HQError unless the header is valid and the tensors cover the file."""
    try:
        with safe_open(file, framework="numpy"):
            pass
    except (SafetensorError, OSError) as error:
        raise HQError(
            f"{file} is not a complete safetensors file ({first_line(error)}): copy it again."
        ) from error


def _from_hub(model: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        return Path(
            snapshot_download(
                model, allow_patterns=["*.safetensors", "*.json", "*.jinja", "*.model"]
            )
        )
    except (HFValidationError, HfHubHTTPError, OSError) as error:
        raise HQError(
            f"Model {model!r} is neither a local folder nor a hub id that could be downloaded: "
            f"{first_line(error)}."
        ) from error
