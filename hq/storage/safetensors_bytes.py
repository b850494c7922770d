"""Safetensors files whose bytes depend on their content only.

safetensors writes the metadata of a file in random order, so two files of the same content differ.
"""

import json
import struct
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

_ALIGNMENT = 8  # of the first tensor, as safetensors pads headers


def safetensors_bytes(tensors: "Mapping[str, Tensor]", metadata: Mapping[str, str]) -> bytes:
    """Return the content of a safetensors file, with its metadata sorted by key."""
    from safetensors.torch import save

    stored = save(dict(tensors))
    (length,) = struct.unpack_from("<Q", stored)
    header: dict[str, Any] = json.loads(stored[8 : 8 + length])
    header = {"__metadata__": dict(sorted(metadata.items())), **header}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return struct.pack("<Q", len(text)) + text + stored[8 + length :]
