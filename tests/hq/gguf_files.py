"""Tiny, random, seeded GGUF models of several architectures, written by the package gguf.

Every weight is random, norms too, and norms are FP16 values, as a checkpoint's are.
"""

from collections.abc import Mapping
from pathlib import Path

import gguf
import numpy as np

LAYERS, D_MODEL, D_FF, HEADS, KV_HEADS, VOCABULARY = 3, 64, 128, 4, 2, 128
HEAD = D_MODEL // HEADS
SPECIAL = ("<unk>", "<s>", "</s>", "<pad>")


def _alphabet() -> tuple[list[str], list[str]]:
    """A byte-level BPE of 128 tokens: specials, the printable characters, and merges of them."""
    letters = [chr(code) for code in range(33, 127)] + ["Ġ", "Ċ"]
    merges = [f"{a} {b}" for a in "Ġteo" for b in "abcdefg"]
    tokens = [*SPECIAL, *letters, *(merge.replace(" ", "") for merge in merges)]
    return tokens[:VOCABULARY], merges[: VOCABULARY - len(SPECIAL) - len(letters)]


TOKENS, MERGES = _alphabet()


def llama_weights(seed: int = 0) -> dict[str, np.ndarray]:
    """Float32 weights in NumPy's order [out, in], by their GGUF names."""
    draw = np.random.default_rng(seed)

    def matrix(rows: int, columns: int) -> np.ndarray:
        return (0.15 * draw.standard_normal((rows, columns))).astype(np.float16).astype(np.float32)

    def norm(width: int = D_MODEL) -> np.ndarray:
        return (1 + 0.15 * draw.standard_normal(width)).astype(np.float16).astype(np.float32)

    weights = {"token_embd.weight": matrix(VOCABULARY, D_MODEL), "output_norm.weight": norm()}
    for layer in range(LAYERS):
        weights |= {
            f"blk.{layer}.{name}.weight": weight
            for name, weight in {
                "attn_norm": norm(),
                "attn_q": matrix(D_MODEL, D_MODEL),
                "attn_k": matrix(KV_HEADS * HEAD, D_MODEL),
                "attn_v": matrix(KV_HEADS * HEAD, D_MODEL),
                "attn_output": matrix(D_MODEL, D_MODEL),
                "ffn_norm": norm(),
                "ffn_gate": matrix(D_FF, D_MODEL),
                "ffn_up": matrix(D_FF, D_MODEL),
                "ffn_down": matrix(D_MODEL, D_FF),
            }.items()
        }
    return weights


def metadata(architecture: str = "llama") -> dict[str, object]:
    """Hyperparameters and vocabulary, by their keys; int is uint32 and float is float32."""
    epsilon = "layer_norm_epsilon" if architecture == "gpt2" else "layer_norm_rms_epsilon"
    return {
        "general.name": f"tiny {architecture}",
        f"{architecture}.block_count": LAYERS,
        f"{architecture}.context_length": 128,
        f"{architecture}.embedding_length": D_MODEL,
        f"{architecture}.feed_forward_length": D_FF,
        f"{architecture}.attention.head_count": HEADS,
        f"{architecture}.attention.head_count_kv": HEADS if architecture == "gpt2" else KV_HEADS,
        f"{architecture}.attention.{epsilon}": 1e-5,
        f"{architecture}.rope.dimension_count": HEAD,
        f"{architecture}.rope.freq_base": 10000.0,
        f"{architecture}.vocab_size": VOCABULARY,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": TOKENS,
        "tokenizer.ggml.token_type": [3] * len(SPECIAL) + [1] * (VOCABULARY - len(SPECIAL)),
        "tokenizer.ggml.merges": MERGES,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.padding_token_id": 3,
        "tokenizer.ggml.add_bos_token": False,
    }


def write(
    path: Path,
    kind: str = "F16",
    *,
    weights: Mapping[str, np.ndarray] | None = None,
    changes: Mapping[str, object] | None = None,
    architecture: str = "llama",
    seed: int = 0,
    alignment: int | None = None,
    kinds: Mapping[str, str] | None = None,
    part_tensors: int = 0,
) -> Path:
    """A GGUF file whose matrices are of the type `kind`, and its vectors float32.

    `changes` overrides the metadata; None leaves a key out. `kinds` are those of tensors whose names
    have a word in them. With `part_tensors` it is split into files of so many tensors each.
    """
    writer = gguf.GGUFWriter(path, architecture, split_max_tensors=part_tensors)
    for key, value in (metadata(architecture) | dict(changes or {})).items():
        _add_key(writer, key, value)
    if alignment is not None:
        writer.add_custom_alignment(alignment)
    for name, weight in (llama_weights(seed) if weights is None else weights).items():
        if weight.ndim == 1:
            writer.add_tensor(name, weight.astype(np.float32))
        else:
            own = [other for word, other in (kinds or {}).items() if word in name]
            quantization = gguf.GGMLQuantizationType[own[0] if own else kind]
            stored = gguf.quants.quantize(weight, quantization)
            writer.add_tensor(name, stored, raw_dtype=quantization)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_key(writer: gguf.GGUFWriter, key: str, value: object) -> None:
    adders = {
        bool: writer.add_bool,
        int: writer.add_uint32,
        float: writer.add_float32,
        str: writer.add_string,
        list: writer.add_array,
    }
    if value is not None:
        adders[type(value)](key, value)


def overwrite(path: Path, at: int, content: bytes) -> None:
    """Overwrite bytes of a file."""
    with open(path, "r+b") as file:
        file.seek(at)
        file.write(content)
