"""Baking into a checkpoint's folder: safetensors are patched in place, in a copy of the folder.

The record is a file of its own in the folder, which is what travels: no tensor moves and no header
changes. What is stored how is told by the tensors themselves, projection by projection.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8

from hq.errors import HQError
from hq.models.checkpoint import StoredTensor, architecture_at, identity, tensors_of, text_config
from hq.neurons.neuron_set import ModelIdentity
from hq.neurons.prompt_response import PromptResponse
from hq.storage.atomic import atomic_folder
from hq.suppress.bake import bitsandbytes, packed, plain  # noqa: F401 - registers its schemes
from hq.suppress.bake.copying import changed, copy_to_disk, patch, sha256
from hq.suppress.bake.model import Factors, NeuronWeights
from hq.suppress.bake.record import BakeRecord
from hq.suppress.bake.running import run
from hq.suppress.bake.scheme import SCHEMES, storage_scheme
from hq.suppress.bake.strided_scales import Patch, StridedScales

RECORD_FILE = "hq-bake.json"
_HOMOGENEOUS = ("relu",)  # activations with act(α·x) = α·act(x) for α ≥ 0


class CheckpointModel:
    """A checkpoint's folder: dense, bitsandbytes or packed. HQError for one that hq cannot read."""

    def __init__(self, path: Path) -> None:
        if not (path / "config.json").is_file():
            raise HQError(
                f"{path} is not a checkpoint: it has no config.json; name a model folder."
            )
        self.path = path
        self._config = text_config(path)
        self._family = architecture_at(path)
        self.tensors: Mapping[str, StoredTensor] = tensors_of(path)
        self.transposed = self._family.transposed
        self.space = self._family.space(self._config)
        self.vocabulary = int(self._config.vocab_size)
        self._maps: dict[str, UInt8[np.ndarray, " byte"]] = {}

    @property
    def identity(self) -> ModelIdentity:
        """The folder's own."""
        return identity(self.path)

    @property
    def quantized(self) -> bool:
        """Whether the first layer's W_up is stored in another way than as plain numbers."""
        return storage_scheme(self, self._up(0, 0)[0]) is not SCHEMES["weight"]

    @cached_property
    def record(self) -> BakeRecord | None:
        """The record's file."""
        file = self.path / RECORD_FILE
        if not file.is_file():
            return None
        return BakeRecord.parse(file.read_text(encoding="utf-8", errors="replace"), str(file))

    def strips(self, layer: int, index: int) -> list[StridedScales]:
        """Scales of the neuron's row of W_up, and its bias.

        Where an activation that is not homogeneous stands between that row and h, the neuron's
        column of W_down, in dense checkpoints.
        """
        if not self._linear:
            return [self._column(layer, index)]
        projection, row = self._up(layer, index)
        scales = storage_scheme(self, projection).strip(self, projection, row)
        bias = self.tensors.get(f"{projection}.bias")
        return [scales] if bias is None else [scales, plain.number(bias, row)]

    def stored(self, tensor: str) -> UInt8[np.ndarray, " byte"]:
        """A tensor's bytes. HQError where there is no such tensor."""
        if tensor not in self.tensors:
            raise HQError(f"{self.path} has no tensor {tensor!r}, which its record names.")
        place = self.tensors[tensor]
        return self._bytes(place.file)[place.start : place.end]

    def parts(self) -> Mapping[str, UInt8[np.ndarray, " byte"]]:
        """Every file but the record's."""
        return {name: self._bytes(self.path / name) for name in self._files()}

    def place(self, tensor: str) -> tuple[str, int]:
        """Its file, and where in that."""
        found = self.tensors[tensor]
        return self._name(found.file), found.start

    def weights(self, layer: int, index: int) -> NeuronWeights:
        """By the definition of the format."""
        strips = self.strips(layer, index)
        return NeuronWeights.joined([self._weights(layer, index, strip) for strip in strips])

    def logits(
        self, exchanges: Sequence[PromptResponse], scalings: Sequence[Factors]
    ) -> list[Float[np.ndarray, "token vocab"]]:
        """As torch computes them on a CPU, in float32."""
        return run(self.path, exchanges, scalings)

    def bake(self, target: Path, patches: Sequence[Patch], record: BakeRecord) -> BakeRecord:
        """Writes the patched folder; originals are hashed while they are copied."""
        touched = self._touched(patches)
        with atomic_folder(target) as folder, ThreadPoolExecutor(1) as other:
            digests = other.map(sha256, [self.path / name for name in touched])
            self._copy(folder, patches)
            whole = record.model_copy(update={"sha256": dict(zip(touched, digests, strict=True))})
            (folder / RECORD_FILE).write_bytes(whole.model_dump_json(indent=1).encode() + b"\n")
        return whole

    def restore(self, target: Path, patches: Sequence[Patch], record: BakeRecord) -> None:
        """Writes the folder as it was. HQError where a digest is not the original's."""
        with atomic_folder(target) as folder:
            self._copy(folder, patches)
            if record.sha256 != {n: sha256(folder / n) for n in self._touched(patches)}:
                raise changed(self.path)

    def _copy(self, folder: Path, patches: Sequence[Patch]) -> None:
        placed: dict[str, list[tuple[int, Patch]]] = {}
        for each in patches:
            name, start = self.place(each.strip.tensor)
            placed.setdefault(name, []).append((start, each))
        for name in self._files():
            copy_to_disk(self.path / name, folder / name)
            if name in placed:
                patch(folder / name, placed[name])

    def _touched(self, patches: Sequence[Patch]) -> list[str]:
        """Names of the files that patches change."""
        return sorted({self.place(each.strip.tensor)[0] for each in patches})

    @property
    def _linear(self) -> bool:
        """Whether h is proportional to the row of W_up, for α from 0 up."""
        if self._family.gated:
            return self._family.linear_in_up
        return getattr(self._config, "activation_function", "") in _HOMOGENEOUS

    def _projection(self, layer: int, name: str) -> str:
        """The whole name of a layer's projection. HQError where the checkpoint lacks it."""
        ending = f".{self._family.layers}.{layer}.{name}."
        for tensor in self.tensors:
            before, found, _ = f".{tensor}".partition(ending)
            if found:
                return f"{before}{ending}"[1:-1]
        raise HQError(f"{self.path} lacks {ending[1:]}weight: the checkpoint is incomplete.")

    def _up(self, layer: int, index: int) -> tuple[str, int]:
        """W_up's name, and the neuron's row in it: behind the gate's where they are fused."""
        row = index + self.space.widths[layer] if self._family.fused else index
        return self._projection(layer, self._family.up), row

    def _column(self, layer: int, index: int) -> StridedScales:
        projection = self._projection(layer, self._family.down)
        if storage_scheme(self, projection) is not SCHEMES["weight"]:
            raise HQError(
                f"A neuron of {self.path} is not known to be linear in its row of W_up (an FFN "
                "with a gate, or with ReLU, is), so it is scaled by its column of "
                f"{projection}; quantized, its scales are other columns' too: bake into the dense "
                "checkpoint."
            )
        return plain.line(self.tensors[f"{projection}.weight"], index, not self.transposed)

    def _weights(self, layer: int, index: int, strip: StridedScales) -> NeuronWeights:
        numbers = strip.read(self.stored(strip.tensor))
        unit = strip.form.unit(numbers)
        if self._linear and not strip.tensor.endswith(".bias"):
            projection, row = self._up(layer, index)
            scheme = storage_scheme(self, projection)
            numbers, unit = (scheme.row(self, projection, row, each) for each in (numbers, unit))
        return NeuronWeights(numbers, np.abs(numbers), np.abs(unit))

    def _files(self) -> list[str]:
        """Names of all files in the folder but the record's."""
        found = (self._name(file) for file in self.path.rglob("*") if file.is_file())
        return sorted(name for name in found if name != RECORD_FILE)

    def _name(self, file: Path) -> str:
        return file.relative_to(self.path).as_posix()

    def _bytes(self, file: Path) -> UInt8[np.ndarray, " byte"]:
        name = self._name(file)
        if name not in self._maps:
            empty = file.stat().st_size == 0
            self._maps[name] = np.empty(0, np.uint8) if empty else np.memmap(file, np.uint8, "r")
        return self._maps[name]
