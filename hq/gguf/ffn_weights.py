"""The weights of the FFNs of a GGUF file, dequantized, layer by layer."""

import numpy as np
import torch
from torch import Tensor

from hq.gguf.file import GGUFFile
from hq.models.ffn_weights import FFN, FFNs


def of_gguf(file: GGUFFile) -> FFNs:
    """The FFNs of a GGUF file, whose norms have their offset in them."""

    def read(layer: int) -> FFN:
        def tensor(name: str) -> Tensor:
            return torch.from_numpy(np.array(file.dense(f"blk.{layer}.{name}.weight")))

        names = [
            n
            for n in ("ffn_gate", "ffn_up", "ffn_down")
            if f"blk.{layer}.{n}.weight" in file.tensors
        ]
        stored = min(file.tensors[f"blk.{layer}.{n}.weight"].bits_per_weight for n in names)
        up, down, norm = tensor("ffn_up"), tensor("ffn_down"), tensor("ffn_norm").ravel()
        gate = tensor("ffn_gate") if "ffn_gate" in names else None
        if gate is None and len(up) == 2 * down.shape[1]:
            gate, up = up.chunk(2)
        return FFN(None if gate is None else gate * norm, up * norm, down, stored)

    return FFNs(file.n_layers, read)
