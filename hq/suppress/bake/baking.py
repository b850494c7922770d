"""Bake α into the stored weights of a model, and restore the original."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from hq import __version__
from hq.errors import HQError
from hq.neurons.factors import Factors, check_factors
from hq.suppress.bake.checkpoint import CheckpointModel
from hq.suppress.bake.gguf import GGUFModel
from hq.suppress.bake.record import BakeRecord, ReplacedBytes, ScaledNeuron
from hq.suppress.bake.strided_scales import (
    Patch,
    StoredNumbers,
    StridedScales,
    largest_alpha,
    nearest_exact,
)
from hq.suppress.bake.target import BakeTarget


def bake(source: Path, target: Path, factors: Factors) -> BakeRecord:
    """Write the model in `source` to `target` with h_i scaled by α for each (layer, index).

    Only the numbers that scale those neurons change, and the record is added. `target` appears
    when it is complete and synced to disk.

    Raises HQError for a neuron that the model lacks, an α that is negative or makes a number
    overflow, weights that have no numbers which scale one neuron alone, a model that is baked
    already, and a target that exists.
    """
    model = open_target(source)
    if model.space.has_experts:
        raise HQError(
            f"{source} is a mixture of experts, into which hq does not bake factors: scale its "
            "neurons at run time (hq.load and Model.scale)."
        )
    check_factors(factors, model.space)
    if not factors:
        raise HQError("No neuron is named, so there is nothing to bake: name H-Neurons.")
    if model.record is not None:
        raise HQError(
            f"{source} is baked already, and a model is baked once: bake its original, which "
            "`hq bake --undo` restores."
        )
    _require_new(target, source)
    edits = [
        _edit(model, scales, alpha)
        for (layer, index), alpha in sorted(factors.items())
        for scales in model.strided_scales(layer, index)
    ]
    _require_finite(source, edits)
    record = BakeRecord(
        hq=__version__,
        neurons=tuple(
            ScaledNeuron(layer=layer, index=index, alpha=alpha)
            for (layer, index), alpha in sorted(factors.items())
        ),
        exact=all(edit.is_exact for edit in edits),
        sha256={},
        kept=tuple(
            ReplacedBytes.of(
                edit.scales, edit.scales.bytes_in(model.tensor_bytes(edit.scales.tensor))
            )
            for edit in edits
        ),
    )
    return model.bake(target, [edit.patch for edit in edits], record)


def undo(baked: Path, target: Path) -> BakeRecord:
    """Write the original of a baked model to `target`, byte for byte, and return the record.

    Raises HQError for a model that is not baked or was changed since, and a target that exists.
    """
    model = open_target(baked)
    record = require_record(model)
    _require_new(target, baked)
    model.restore(target, undo_patches(model, record), record)
    return record


def nearest_factors(source: Path, factors: Factors) -> dict[float, float]:
    """For each α of the factors, the nearest α for which no stored number has to be rounded."""
    model = open_target(source)
    return {
        alpha: nearest_exact(
            alpha,
            [
                (scales.number_format, scales.read(model.tensor_bytes(scales.tensor)))
                for neuron, own in factors.items()
                if own == alpha
                for scales in model.strided_scales(*neuron)
            ],
        )
        for alpha in sorted(set(factors.values()))
    }


def read_record(path: Path) -> BakeRecord:
    """The record of a baked model. Raises HQError if it is not baked."""
    return require_record(open_target(path))


def open_target(path: Path) -> BakeTarget:
    """The model in a GGUF file or in the folder of a checkpoint. Raises HQError for others."""
    return CheckpointModel(path) if path.is_dir() else GGUFModel(path)


def require_record(model: BakeTarget) -> BakeRecord:
    """The record of a baked model. Raises HQError if it is not baked."""
    record = model.record
    if record is None:
        raise HQError(f"{model.path} has no baking record: name a model that `hq bake` wrote.")
    return record


def undo_patches(model: BakeTarget, record: BakeRecord) -> list[Patch]:
    """The patches that undo a record. Raises HQError if one does not fit the model's tensors."""
    patches = [replaced.patch for replaced in record.kept]
    for patch in patches:
        if patch.scales.end > len(model.tensor_bytes(patch.scales.tensor)):
            raise HQError(
                f"The record of {model.path} does not fit its tensor {patch.scales.tensor}: use "
                "the model that `hq bake` wrote."
            )
    return patches


def _require_new(target: Path, source: Path) -> None:
    """Raises HQError if the target exists, as no model is overwritten, or lies in the source."""
    if target.exists():
        raise HQError(f"{target} exists already: name another path, or remove it.")
    if source.resolve() in target.resolve().parents:
        raise HQError(f"{target} is inside {source}, which is copied: name another path.")


class _ScaleEdit(NamedTuple):
    """Strided scales before and after they are multiplied by α."""

    scales: StridedScales
    alpha: float
    before: Float[np.ndarray, " n"]
    after: Float[np.ndarray, " n"]

    @property
    def is_exact(self) -> bool:
        """Whether no product is rounded."""
        return bool((self.after == self.alpha * self.before).all())

    @property
    def patch(self) -> Patch:
        """The patch that writes the products."""
        return Patch(self.scales, self.scales.number_format.write(self.after))

    @property
    def numbers(self) -> StoredNumbers:
        """The numbers before, with their format."""
        return self.scales.number_format, self.before


def _edit(model: BakeTarget, scales: StridedScales, alpha: float) -> _ScaleEdit:
    before = scales.read(model.tensor_bytes(scales.tensor))
    if not np.isfinite(before).all():
        raise HQError(
            f"{model.path} has scales in {scales.tensor} that are not finite: quantize it again."
        )
    return _ScaleEdit(scales, alpha, before, scales.number_format.rounded(alpha * before))


def _require_finite(source: Path, edits: Sequence[_ScaleEdit]) -> None:
    for edit in edits:
        if not np.isfinite(edit.after).all():
            limit = largest_alpha([each.numbers for each in edits])
            raise HQError(
                f"α = {edit.alpha:g} makes {edit.scales.tensor} of {source} overflow "
                f"{edit.scales.number_format.name}: use at most {limit:g}."
            )
