"""Compares the logits of a dequantized checkpoint with llama.cpp's on its GGUF file.

llama.cpp converts the file's weights to float16, as in the checkpoint, and then to float32, so that
its kernels do not round activations; all settings of the file are kept. The checkpoint runs in
float32 on the same tokens. The remaining differences are orders of sums, norms that float16 rounds,
and GELU, which ggml looks up in a float16 table.
"""

import json
import math
import shutil
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from harness.store.environment import versions
from hq.errors import HQError
from hq.models.checkpoint import text_config

if TYPE_CHECKING:
    from hq.gguf.file import GGUFFile
    from hq.neurons.prompt_response import PromptResponse

RECORD = "hq-proof.json"
_TOKENS, _COMPARED = 576, 64  # a text past Gemma 3's window of 512; the last tokens are compared
# Largest relative difference of the logits at one token. Measured: 3e-6 on 3 layers and 4e-5 on 30
# (SiLU), 5e-4 on 3 layers and 4e-3 on 46 with GELU; norms that float16 rounds may add 5e-4.
_TOLERANCE, _TOLERANCE_OF_GELU = 1e-3, 1e-2


def can_verify() -> bool:
    """Whether llama.cpp is installed."""
    return find_spec("llama_cpp") is not None


def is_verified(folder: Path) -> bool:
    """Whether the checkpoint in `folder` has been compared with llama.cpp."""
    return (folder / RECORD).is_file()


def verify_logits(file: "GGUFFile", unread: tuple[str, ...], folder: Path) -> None:
    """Compare logits on a random text, and write a record of the result into `folder`.

    `unread` has the file's settings that hq does not know. Raises HQError if the logits differ by
    more than the tolerance, or if the disk has no space for the converted file (temporarily 6 bytes
    per weight, next to the checkpoint).
    """
    from hq.backends.transformers.backend import TorchBackend
    from hq.neurons.prompt_response import PromptResponse

    length = min(_TOKENS, _longest(file))
    ids = np.random.default_rng(0).integers(file.vocabulary, size=length).tolist()
    cut = max(1, length - _COMPARED)
    text = PromptResponse(tuple(ids[:cut]), tuple(ids[cut:]))
    with TorchBackend(folder, device="cpu") as backend:
        ((_, logits),) = backend.logits([text])
    expected = _llama_logits(file, folder, text)
    difference, tolerance = _difference(logits, expected), _tolerance(folder)
    if not difference <= tolerance:
        raise HQError(
            f"transformers' result for {file.path} differs from llama.cpp's logits by "
            f"{difference:.2g} of their norm, more than {tolerance:g}: a setting of the file is "
            f"not converted{_suspects(unread)}; name the model's checkpoint."
        )
    record = {
        "difference": difference,
        "tolerance": tolerance,
        "tokens": length,
        "compared": len(text.response),
        "weights": "the file's own, rounded to float16, in float32 arithmetic on both sides",
        "packages": versions("llama-cpp-python", "torch", "transformers"),
        "unknown_settings": unread,
    }
    (folder / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def _longest(file: "GGUFFile") -> int:
    """Return the largest number of tokens that both compute in the same way.

    Beyond the original context of LongRoPE, llama.cpp selects frequencies by the length of its
    cache, transformers by the number of tokens so far.
    """
    keys = ["context_length"]
    if "rope_factors_long.weight" in file.tensors:
        keys.append("rope.scaling.original_context_length")
    lengths = (file.metadata.get(f"{file.architecture}.{key}") for key in keys)
    return min(length for length in lengths if isinstance(length, int))


def _llama_logits(
    file: "GGUFFile", folder: Path, text: "PromptResponse"
) -> Float[np.ndarray, "token vocab"]:
    """Return llama.cpp's logits with the file's settings and float32 arithmetic."""
    from hq.backends.llamacpp.backend import LlamaBackend
    from hq.gguf.quantize import dequantize

    needed = 6 * sum(math.prod(tensor.shape) for tensor in file.tensors.values())
    free = shutil.disk_usage(folder.parent).free
    if needed > free:
        raise HQError(
            f"Comparing {file.path} with llama.cpp needs {needed / 1e9:.1f} GB in {folder.parent} "
            f"temporarily, but only {free / 1e9:.1f} GB are free: free some, or set HQ_CACHE."
        )
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix="proof-") as scratch:
        half, single = Path(scratch, "f16.gguf"), Path(scratch, "f32.gguf")
        dequantize(file.path, half, "f16")
        dequantize(half, single, "f32")
        half.unlink()
        with LlamaBackend(single) as backend:
            ((_, logits),) = backend.logits([text])
    return logits


def _difference(
    logits: Float[np.ndarray, "token vocab"], expected: Float[np.ndarray, "token vocab"]
) -> float:
    """Return the largest relative difference at a token, ignoring a shift of all logits."""
    logits, expected = (x - x.mean(axis=1, keepdims=True) for x in (logits, expected))
    sizes = np.linalg.norm(expected, axis=1)
    return float((np.linalg.norm(logits - expected, axis=1) / sizes).max())


def _tolerance(folder: Path) -> float:
    config = text_config(folder)
    names = ("hidden_activation", "hidden_act", "activation_function")
    gelu = any("gelu" in (getattr(config, name, None) or "") for name in names)
    return _TOLERANCE_OF_GELU if gelu else _TOLERANCE


def _suspects(unread: tuple[str, ...]) -> str:
    return f" (perhaps {', '.join(unread)})" if unread else ""
