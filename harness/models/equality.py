"""The proof that a dequantized checkpoint computes what llama.cpp computes from its GGUF file.

llama.cpp rewrites the file's weights to float16, as the checkpoint has them, and those to float32,
so that its kernels round no activations; all of the file's settings stay. The checkpoint then runs
in float32 on the same tokens. What is left between the two are orders of sums, norms that float16
rounds, and GELU, which ggml takes from a table in float16.
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
    """Compares logits on a random text, and writes down what was found.

    `unread` are the file's settings that hq does not know.

    Raises HQError where they differ by more than the tolerance, or the disk has no room for the
    rewritten file (6 bytes for each weight, beside the checkpoint, for as long as it is needed).
    """
    from hq.backends.transformers.backend import TorchBackend
    from hq.neurons.prompt_response import PromptResponse

    length = min(_TOKENS, _longest(file))
    ids = np.random.default_rng(0).integers(file.vocabulary, size=length).tolist()
    cut = max(1, length - _COMPARED)
    text = PromptResponse(tuple(ids[:cut]), tuple(ids[cut:]))
    with TorchBackend(folder, device="cpu") as backend:
        ((_, ours),) = backend.logits([text])
    theirs = _llama_logits(file, folder, text)
    difference, tolerance = _difference(ours, theirs), _tolerance(folder)
    if not difference <= tolerance:
        raise HQError(
            f"{file.path} as transformers computes it differs from llama.cpp's logits by "
            f"{difference:.2g} of their size, where {tolerance:g} is allowed: a setting of the "
            f"file is not carried over{_suspects(unread)}; name the model's checkpoint."
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
    """Tokens of a text that both sides compute alike.

    Past the original context of LongRoPE they choose frequencies by different lengths: llama.cpp by
    that of its cache, transformers by that of the tokens so far.
    """
    keys = ["context_length"]
    if "rope_factors_long.weight" in file.tensors:
        keys.append("rope.scaling.original_context_length")
    said = (file.metadata.get(f"{file.architecture}.{key}") for key in keys)
    return min(length for length in said if isinstance(length, int))


def _llama_logits(
    file: "GGUFFile", folder: Path, text: "PromptResponse"
) -> Float[np.ndarray, "token vocab"]:
    """llama.cpp's logits with the file's settings and float32 arithmetic."""
    from hq.backends.llamacpp.backend import LlamaBackend
    from hq.gguf.quantize import dequantize

    needed = 6 * sum(math.prod(tensor.shape) for tensor in file.tensors.values())
    free = shutil.disk_usage(folder.parent).free
    if needed > free:
        raise HQError(
            f"Comparing {file.path} with llama.cpp needs {needed / 1e9:.1f} GB in {folder.parent} "
            f"for a while, and {free / 1e9:.1f} GB are free: make room, or set HQ_CACHE."
        )
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix="proof-") as room:
        half, whole = Path(room, "f16.gguf"), Path(room, "f32.gguf")
        dequantize(file.path, half, "f16")
        dequantize(half, whole, "f32")
        half.unlink()
        with LlamaBackend(whole) as backend:
            ((_, found),) = backend.logits([text])
    return found


def _difference(
    ours: Float[np.ndarray, "token vocab"], theirs: Float[np.ndarray, "token vocab"]
) -> float:
    """The largest relative difference at a token; what shifts all logits alike changes nothing."""
    ours, theirs = (x - x.mean(axis=1, keepdims=True) for x in (ours, theirs))
    sizes = np.linalg.norm(theirs, axis=1)
    return float((np.linalg.norm(ours - theirs, axis=1) / sizes).max())


def _tolerance(folder: Path) -> float:
    config = text_config(folder)
    names = ("hidden_activation", "hidden_act", "activation_function")
    gelu = any("gelu" in (getattr(config, name, None) or "") for name in names)
    return _TOLERANCE_OF_GELU if gelu else _TOLERANCE


def _suspects(unread: tuple[str, ...]) -> str:
    return f" (perhaps {', '.join(unread)})" if unread else ""
