"""The tensors of a checkpoint by layer, read from safetensors without mapping the files.

Mapped pages count as resident memory, so tensors are read into memory of their own.
"""

from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from hq.errors import HQError
from hq.models.architectures import Architecture
from hq.models.checkpoint import DENSE_DTYPES, StoredTensor, tensors_of

Weights = Mapping[str, Tensor]
"""Tensors by their names inside a layer, in the type of the file, on the CPU."""

_TYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}


class LayerFiles:
    """A dense checkpoint, of which layers are read one by one.

    `decoder` has the modules of the checkpoint without weights. Raises HQError if tensors are
    missing, quantized, or have other names or shapes than in transformers.
    """

    def __init__(self, path: Path, family: Architecture, decoder: nn.Module) -> None:
        self.path = path
        self._tensors = tensors_of(path)
        layers = decoder.get_submodule(family.layers)
        assert isinstance(layers, nn.ModuleList)
        self._prefix = _decoder_prefix(path, family, layers[0], self._tensors)
        self.layers = [
            self._located(f"{family.layers}.{number}.", layer)
            for number, layer in enumerate(layers)
        ]
        of_decoder = self._located("", decoder, without=f"{family.layers}.")
        self.outside: Mapping[str, StoredTensor] = of_decoder

    def _located(
        self, where: str, module: nn.Module, without: str = "-"
    ) -> dict[str, StoredTensor]:
        """The stored tensor of every parameter of a module, and of buffers that are stored."""
        found: dict[str, StoredTensor] = {}
        shapes = {name: tuple(p.shape) for name, p in module.named_parameters()}
        buffers = {name for name, _ in module.named_buffers()}
        for name in [*shapes, *buffers]:
            if name.startswith(without):
                continue
            stored = self._tensors.get(f"{self._prefix}{where}{name}")
            if stored is None:
                if name in buffers:
                    continue
                raise HQError(
                    f"{self.path} lacks {self._prefix}{where}{name}: the checkpoint is "
                    "incomplete, or its tensors have other names than in transformers; save it "
                    "again with save_pretrained."
                )
            if stored.dtype not in DENSE_DTYPES:
                raise HQError(
                    f"{self.path} has {stored.name} in {stored.dtype}: only dense checkpoints can "
                    "be read layer by layer; name its dense source."
                )
            if name in shapes and stored.shape != shapes[name]:
                raise HQError(
                    f"{stored.name} in {self.path} has the shape {stored.shape}, not "
                    f"{shapes[name]}: config.json is of another model."
                )
            found[name] = stored
        return found

    def head(self, model: Any, part: str = "weight") -> StoredTensor:
        """The stored weight or bias of the output head, which may be that of the embeddings.

        Raises HQError if the checkpoint has none.
        """
        names = {module: name for name, module in model.named_modules()}
        own = f"{names[model.get_output_embeddings()]}.{part}"
        found = [n for n in self._tensors if n == own or n.endswith(f".{own}")]
        if len(found) == 1:
            return self._tensors[found[0]]
        embeddings = model.get_input_embeddings()
        inside = (n for n, m in model.get_decoder().named_modules() if m is embeddings)
        tied = self.outside.get(f"{next(inside, '')}.{part}")
        if found or tied is None:
            raise HQError(f"{self.path} lacks {own}: the checkpoint is incomplete.")
        return tied

    def read(self, layer: int, names: Iterable[str] | None = None) -> dict[str, Tensor]:
        """Read the tensors of a layer, or some of them. Raises HQError if a file was cut off."""
        located = self.layers[layer]
        return {name: read(located[name]) for name in (located if names is None else names)}

    def in_order(self, first: int, last: int) -> Iterator[tuple[int, dict[str, Tensor]]]:
        """Yield the layers `first` to `last` - 1; a thread reads one while the last one is used."""
        if first >= last:
            return
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="hq-layer") as reader:
            ahead = reader.submit(self.read, first)
            for layer in range(first, last):
                weights = ahead.result()
                if layer + 1 < last:
                    ahead = reader.submit(self.read, layer + 1)
                else:
                    del ahead
                yield layer, weights
                weights.clear()  # also those that the caller has: three layers would be in memory


def read(stored: StoredTensor) -> Tensor:
    """Read a tensor into memory of its own. Raises HQError if its file was cut off."""
    return _filled(stored, stored.shape, [(0, stored.start)])


def read_rows(stored: StoredTensor, rows: Int[Tensor, " k"]) -> Float[Tensor, "k width"]:
    """Read some rows of a stored matrix. Raises HQError if its file was cut off."""
    _, width = stored.shape
    size = (stored.end - stored.start) // stored.shape[0]
    places = [(i * size, stored.start + row * size) for i, row in enumerate(rows.tolist())]
    return _filled(stored, (len(rows), width), places, size)


def _filled(
    stored: StoredTensor,
    shape: tuple[int, ...],
    places: Iterable[tuple[int, int]],
    size: int | None = None,
) -> Tensor:
    """A tensor with the bytes of the file at each place: (offset in the tensor, in the file)."""
    made = torch.empty(shape, dtype=_TYPES[stored.dtype])
    bytes_of: Any = made.reshape(-1).view(torch.uint8).numpy()
    into = memoryview(bytes_of)
    with open(stored.file, "rb", buffering=0) as stream:
        for begin, offset in places:
            stream.seek(offset)
            end = len(into) if size is None else begin + size
            while begin < end:
                count = stream.readinto(into[begin:end])
                if not count:
                    raise HQError(f"{stored.file} was cut off while it was read: copy it again.")
                begin += count
    return made


def _decoder_prefix(
    path: Path, family: Architecture, layer: nn.Module, tensors: Mapping[str, StoredTensor]
) -> str:
    """What precedes the decoder's names in the checkpoint. Raises HQError unless there is one."""
    shapes = {name: tuple(p.shape) for name, p in layer.named_parameters()}
    first = next(iter(shapes))
    ending = f"{family.layers}.0.{first}"
    prefixes = [
        name.removesuffix(ending)
        for name in tensors
        if name == ending or name.endswith(f".{ending}")
    ]

    def fits(prefix: str) -> bool:
        named = ((f"{prefix}{family.layers}.0.{name}", shape) for name, shape in shapes.items())
        return all(name in tensors and tensors[name].shape == shape for name, shape in named)

    fitting = [prefix for prefix in prefixes if fits(prefix)]
    if len(fitting) != 1:
        raise HQError(
            f"{path} cannot be read layer by layer: its tensors do not have the names and shapes "
            "of the model in transformers; save it again with save_pretrained."
        )
    return fitting[0]
