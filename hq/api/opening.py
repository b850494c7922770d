"""Opening a model for the Python API: a checkpoint, a hub id, a GGUF file, or a loaded model."""

from functools import partial
from pathlib import Path
from typing import Any

from hq.api.model import Model
from hq.backends.opening import open_backend
from hq.backends.transformers.loaded import LoadedBackend
from hq.errors import HQError
from hq.models.checkpoint import end_tokens, quantization_of, resolve
from hq.models.encoding import end_tokens_of
from hq.models.tokenizer import load_tokenizer
from hq.neurons.neuron_set import ModelIdentity
from hq.precisions import BACKEND_OF
from hq.precisions.gguf import GGUF_SOURCE
from hq.precisions.packed import recipe_of


def load(model: str | Path, precision: str | None = None, *, device: str | None = None) -> Model:
    """Open a model at a precision.

    Args:
        model: A checkpoint folder, the id of a model on the Hugging Face hub, or a GGUF file.
        precision: For a checkpoint, `fp16` (the default), `bf16`, `int8`, `nf4`, `nf4-dq`, `fp4`,
            `fp8`, `nvfp4`, `mxfp4`, `torchao-int8`, `torchao-int4`, `hqq-4`, or for a quantized
            checkpoint the precision that it has, such as `gptq-4`, `awq-4` or `fp8`. A GGUF file
            runs at its own precision: leave it out, or name it to have it checked
            (`gguf-q4_k_m`). The suffixes `+fa` (flash attention, K-V cache in F16), `+kv-q8_0` and
            `+kv-q4_0` (flash attention, K-V cache in that type) say how llama.cpp runs the file:
            `gguf-source+kv-q8_0` for a file of any type.
        device: `cpu`, `cuda`, `cuda:N` or `auto`; CUDA by default if there is any. `auto`
            distributes the layers over all GPUs and, where these are full, leaves weights in the
            memory of the CPU, with a warning (fp16, bf16 and bitsandbytes).

    Raises:
        HQError: The model cannot be found or read, has no neurons that hq knows, or does not run at
            this precision or on this device.
    """
    path = Path(model).expanduser()
    if path.suffix.lower() == ".gguf":
        return _gguf(path, precision or GGUF_SOURCE, device)
    precision = precision or "fp16"
    if BACKEND_OF[precision] != "torch":
        raise HQError(
            f"Precision {precision!r} is of GGUF files, and {model} is a checkpoint: name a file "
            "that ends in .gguf, or another precision."
        )
    folder = resolve(str(model))
    if recipe_of(precision) and not _is_packed(folder):
        raise HQError(
            f"Precision {precision!r} needs a packed checkpoint, and {model} is dense: name one "
            "that was quantized so, or a precision that is quantized while loading, such as nf4."
        )
    backend = open_backend(folder, precision, device)
    return Model(
        backend, partial(load_tokenizer, folder), lambda t: end_tokens(folder) | end_tokens_of(t)
    )


def _is_packed(folder: Path) -> bool:
    """Whether a config in the folder states a method of quantization."""
    return quantization_of(folder) is not None or any(folder.glob("quant*_config.json"))


def _gguf(path: Path, precision: str, device: str | None) -> Model:
    if BACKEND_OF[precision] != "llamacpp":
        raise HQError(
            f"{path} is a GGUF file, which does not run at {precision}: leave out `precision`, or "
            "name the checkpoint that the file was made from."
        )
    from hq.gguf.read_tokenizer import tokenizer_of

    backend: Any = open_backend(path, precision, device)
    return Model(
        backend,
        partial(tokenizer_of, backend.file),
        lambda tokenizer: backend.model.ends | end_tokens_of(tokenizer),
    )


def wrap(
    model: Any, tokenizer: Any = None, *, model_identity: ModelIdentity | None = None
) -> Model:
    """Use a transformers model that is loaded already: dense, or quantized by bitsandbytes.

    Nothing is copied or moved, and the model's own methods keep working. A model in memory is
    recognised by its norms, so that a set found on its checkpoint fits it.

    Args:
        model: A causal language model of transformers, in eval mode.
        tokenizer: Its tokenizer; not needed where only token ids are used.
        model_identity: Which model it is, if its norms are not known:
            `hq.models.checkpoint.checkpoint_identity(folder)`.

    Raises:
        HQError: The model is in training mode, on Apple's GPU, or has no neurons or weights that
            hq can read.
    """

    def given() -> Any:
        if tokenizer is None:
            raise HQError(
                "The model was wrapped without a tokenizer: pass it to hq.wrap, or use token ids."
            )
        return tokenizer

    def ends(of: Any) -> frozenset[int]:
        stated = getattr(model.generation_config, "eos_token_id", None)
        own = set(stated if isinstance(stated, list) else [stated]) - {None}
        return frozenset(own) | end_tokens_of(of)

    return Model(LoadedBackend(model, model_identity), given, ends)
