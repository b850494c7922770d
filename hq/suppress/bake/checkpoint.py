"""Baking into a checkpoint: its folder is copied, and the safetensors in the copy are patched.

The record is a file of its own in the folder, so no tensor moves and no header changes. The
tensors themselves show how each projection is stored.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8

from hq.backends.transformers.hooks import scaled
from hq.errors import HQError
from hq.models.architectures import down_projections
from hq.models.checkpoint import (
    StoredTensor,
    architecture_at,
    checkpoint_identity,
    tensor_files,
    tensors_of,
    text_config,
)
from hq.neurons.factors import Factors
from hq.neurons.neuron_set import ModelIdentity
from hq.neurons.prompt_response import PromptResponse
from hq.precisions.base import from_pretrained
from hq.precisions.bitsandbytes import compute_four_bit_in, import_bitsandbytes
from hq.precisions.packed import Exact, Recipe
from hq.precisions.packed_checkpoints.checkpoint import PackedCheckpoint
from hq.storage.atomic import atomic_folder
from hq.storage.copying import copy_to_disk
from hq.storage.verified_folder import sha256_of
from hq.suppress.bake.record import BakeRecord, changed_since_baked
from hq.suppress.bake.storage_schemes import DenseScheme, matrix_line, storage_scheme, vector_number
from hq.suppress.bake.strided_scales import Patch, StridedScales, apply_patches
from hq.suppress.bake.target import NeuronWeights

RECORD_FILE = "hq-bake.json"
_HOMOGENEOUS = ("relu",)  # activations with act(α·x) = α·act(x) for α ≥ 0
_CPU = torch.device("cpu")


class CheckpointModel:
    """The folder of a checkpoint: dense, bitsandbytes or packed.

    Raises HQError for a folder that hq cannot read.
    """

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
        """The identity of the checkpoint."""
        return checkpoint_identity(self.path)

    @property
    def is_quantized(self) -> bool:
        """Whether W_up of the first layer is not stored as plain numbers."""
        return not isinstance(storage_scheme(self, self._up(0, 0)[0]), DenseScheme)

    @cached_property
    def record(self) -> BakeRecord | None:
        """The record in its file."""
        file = self.path / RECORD_FILE
        if not file.is_file():
            return None
        return BakeRecord.parse(file.read_text(encoding="utf-8", errors="replace"), str(file))

    def strided_scales(self, layer: int, index: int) -> list[StridedScales]:
        """Scales of the neuron's row of W_up, and its bias.

        If h is not linear in that row, because of the activation: the neuron's column of W_down, in
        dense checkpoints.
        """
        if not self._is_linear:
            return [self._column(layer, index)]
        projection, row = self._up(layer, index)
        scales = storage_scheme(self, projection).row_scales(self, projection, row)
        bias = self.tensors.get(f"{projection}.bias")
        return [scales] if bias is None else [scales, vector_number(bias, row)]

    def tensor_bytes(self, tensor: str) -> UInt8[np.ndarray, " byte"]:
        """The bytes of a tensor. Raises HQError if there is no such tensor."""
        if tensor not in self.tensors:
            raise HQError(f"{self.path} has no tensor {tensor!r}, which its record names.")
        stored = self.tensors[tensor]
        return self._bytes(stored.file)[stored.start : stored.end]

    def parts(self) -> Mapping[str, UInt8[np.ndarray, " byte"]]:
        """All files except the record."""
        return {name: self._bytes(self.path / name) for name in self._files()}

    def location(self, tensor: str) -> tuple[str, int]:
        """The file of a tensor, and its offset there."""
        stored = self.tensors[tensor]
        return self._name(stored.file), stored.start

    def neuron_weights(self, layer: int, index: int) -> NeuronWeights:
        """The weights that the neuron's scales multiply, dequantized as the format defines."""
        scales = self.strided_scales(layer, index)
        return NeuronWeights.concatenated([self._weights(layer, index, each) for each in scales])

    def logits(
        self, exchanges: Sequence[PromptResponse], scalings: Sequence[Factors]
    ) -> list[Float[np.ndarray, "token vocab"]]:
        """Logits as torch computes them on a CPU in float32.

        Raises HQError if the checkpoint cannot be loaded, or a package that it needs is missing.
        """
        model = load_float32(self.path)
        downs = down_projections(model.get_decoder(), self._family)
        logits = []
        for factors in scalings:
            with torch.inference_mode(), scaled(model, downs, factors, self.space):
                rows = [_response_logits(model, exchange) for exchange in exchanges]
            logits.append(torch.cat(rows).numpy())
        return logits

    def bake(self, target: Path, patches: Sequence[Patch], record: BakeRecord) -> BakeRecord:
        """Write the patched folder; the originals are hashed while they are copied."""
        names = self._patched_files(patches)
        with atomic_folder(target) as folder, ThreadPoolExecutor(1) as executor:
            digests = executor.map(sha256_of, [self.path / name for name in names])
            self._copy(folder, patches)
            complete = record.model_copy(update={"sha256": dict(zip(names, digests, strict=True))})
            (folder / RECORD_FILE).write_bytes(complete.model_dump_json(indent=1).encode() + b"\n")
        return complete

    def restore(self, target: Path, patches: Sequence[Patch], record: BakeRecord) -> None:
        """Write the original folder. Raises HQError if a digest is not that of the record."""
        with atomic_folder(target) as folder:
            self._copy(folder, patches)
            names = self._patched_files(patches)
            if record.sha256 != {name: sha256_of(folder / name) for name in names}:
                raise changed_since_baked(self.path)

    def _copy(self, folder: Path, patches: Sequence[Patch]) -> None:
        by_file: dict[str, list[tuple[int, Patch]]] = {}
        for patch in patches:
            name, start = self.location(patch.scales.tensor)
            by_file.setdefault(name, []).append((start, patch))
        for name in self._files():
            copy_to_disk(self.path / name, folder / name)
            if name in by_file:
                apply_patches(folder / name, by_file[name])

    def _patched_files(self, patches: Sequence[Patch]) -> list[str]:
        """Names of the files that patches change."""
        return sorted({self.location(patch.scales.tensor)[0] for patch in patches})

    @property
    def _is_linear(self) -> bool:
        """Whether h is proportional to the row of W_up for each α ≥ 0."""
        if self._family.gated:
            return self._family.linear_in_up
        return getattr(self._config, "activation_function", "") in _HOMOGENEOUS

    def _projection(self, layer: int, name: str) -> str:
        """The full name of a projection of a layer. Raises HQError if the checkpoint lacks it."""
        ending = f".{self._family.layers}.{layer}.{name}."
        for tensor in self.tensors:
            before, separator, _ = f".{tensor}".partition(ending)
            if separator:
                return f"{before}{ending}"[1:-1]
        raise HQError(f"{self.path} lacks {ending[1:]}weight: the checkpoint is incomplete.")

    def _up(self, layer: int, index: int) -> tuple[str, int]:
        """(name of W_up, row of the neuron in it); a fused gate comes first."""
        row = index + self.space.widths[layer] if self._family.fused else index
        return self._projection(layer, self._family.up), row

    def _column(self, layer: int, index: int) -> StridedScales:
        projection = self._projection(layer, self._family.down)
        if not isinstance(storage_scheme(self, projection), DenseScheme):
            raise HQError(
                f"A neuron of {self.path} is not known to be linear in its row of W_up (it is with "
                f"a gate or ReLU), so it is scaled by its column of {projection}, and the "
                "quantized scales there are shared with other columns: bake into the dense "
                "checkpoint."
            )
        return matrix_line(self.tensors[f"{projection}.weight"], index, not self.transposed)

    def _weights(self, layer: int, index: int, scales: StridedScales) -> NeuronWeights:
        values = scales.read(self.tensor_bytes(scales.tensor))
        ulps = scales.number_format.ulp(values)
        if self._is_linear and not scales.tensor.endswith(".bias"):
            projection, row = self._up(layer, index)
            scheme = storage_scheme(self, projection)
            values, ulps = (
                scheme.row_weights(self, projection, row, each) for each in (values, ulps)
            )
        return NeuronWeights(values, np.abs(values), np.abs(ulps))

    def _files(self) -> list[str]:
        """Names of all files in the folder except the record."""
        names = (self._name(file) for file in self.path.rglob("*") if file.is_file())
        return sorted(name for name in names if name != RECORD_FILE)

    def _name(self, file: Path) -> str:
        return file.relative_to(self.path).as_posix()

    def _bytes(self, file: Path) -> UInt8[np.ndarray, " byte"]:
        name = self._name(file)
        if name not in self._maps:
            empty = file.stat().st_size == 0
            self._maps[name] = np.empty(0, np.uint8) if empty else np.memmap(file, np.uint8, "r")
        return self._maps[name]


def load_float32(path: Path) -> Any:
    """A checkpoint that computes in float32 on a CPU, from the weights as they are stored."""
    names = tensor_files(path)
    if any(name.endswith((".qweight", ".weight_packed")) for name in names):
        scheme = PackedCheckpoint(path).scheme
        return Exact(str(scheme), Recipe(scheme.method, scheme.bits)).load(path, _CPU)
    if not any(name.endswith((".SCB", ".absmax")) for name in names):
        return from_pretrained(path, _CPU, dtype=torch.float32)
    import_bitsandbytes("bitsandbytes")
    model = from_pretrained(path, _CPU, dtype=torch.float32)
    compute_four_bit_in(model, torch.float32)
    return model


def _response_logits(model: Any, exchange: PromptResponse) -> Float[torch.Tensor, "token vocab"]:
    """Logits that predict the tokens of the response."""
    logits: torch.Tensor = model(torch.tensor([exchange.ids])).logits[0]
    return logits[len(exchange.prompt) - 1 : -1]
