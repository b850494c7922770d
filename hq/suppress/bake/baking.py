"""α folded into stored weights, and taken out again."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from hq import __version__
from hq.errors import HQError
from hq.neurons.factors import check_factors
from hq.suppress.bake.checkpoint import CheckpointModel
from hq.suppress.bake.gguf import GGUFModel
from hq.suppress.bake.model import BakeTarget, Factors
from hq.suppress.bake.numbers import Numbers, largest_alpha, nearest_exact
from hq.suppress.bake.record import BakeRecord, ReplacedBytes, Scaled
from hq.suppress.bake.strided_scales import Patch, StridedScales


def bake(source: Path, target: Path, factors: Factors) -> BakeRecord:
    """Writes the model in `source` to `target` with h_i scaled by α for each (layer, index).

    Only the numbers that scale those neurons change, and the record is added. `target` appears when
    it is whole and on disk.

    Raises HQError for a neuron that the model lacks, a negative α or one under which a number
    overflows, weights whose format has no number that scales one neuron alone, a model that is
    baked already, and a target that is there.
    """
    model = open_target(source)
    check_factors(factors, model.space)
    if not factors:
        raise HQError("No neuron is named, so there is nothing to bake: give a set of H-Neurons.")
    if model.record is not None:
        raise HQError(
            f"{source} is baked already, and a record is of one baking: bake its original, which "
            "`hq bake --undo` restores."
        )
    _require_new(target, source)
    planned = [
        _planned(model, strip, alpha)
        for (layer, index), alpha in sorted(factors.items())
        for strip in model.strips(layer, index)
    ]
    _require_finite(source, planned)
    record = BakeRecord(
        hq=__version__,
        neurons=tuple(Scaled(layer=n[0], index=n[1], alpha=factors[n]) for n in sorted(factors)),
        exact=all(p.exact for p in planned),
        sha256={},
        kept=tuple(
            ReplacedBytes.of(p.strip, p.strip.bytes_in(model.stored(p.strip.tensor)))
            for p in planned
        ),
    )
    return model.bake(target, [p.patch for p in planned], record)


def undo(baked: Path, target: Path) -> BakeRecord:
    """Writes the original of a baked model to `target`, byte for byte; gives the record.

    Raises HQError for a model that is not baked, or was changed since, and a target that is there.
    """
    model = open_target(baked)
    record = record_of(model)
    _require_new(target, baked)
    patches = kept_patches(model, record)
    model.restore(target, patches, record)
    return record


def nearest_factors(source: Path, factors: Factors) -> dict[float, float]:
    """For each α among the factors, the nearest that is stored without rounding."""
    model = open_target(source)
    return {
        alpha: nearest_exact(
            alpha,
            [
                (strip.form, strip.read(model.stored(strip.tensor)))
                for neuron, own in factors.items()
                if own == alpha
                for strip in model.strips(*neuron)
            ],
        )
        for alpha in sorted(set(factors.values()))
    }


def read_record(path: Path) -> BakeRecord:
    """What was baked into a model. HQError where nothing was."""
    return record_of(open_target(path))


def open_target(path: Path) -> BakeTarget:
    """The model in a GGUF file or a checkpoint's folder. HQError for what is neither."""
    return CheckpointModel(path) if path.is_dir() else GGUFModel(path)


def record_of(model: BakeTarget) -> BakeRecord:
    """What was baked into a model. HQError where nothing was."""
    record = model.record
    if record is None:
        raise HQError(f"{model.path} carries no record of baking: name what `hq bake` wrote.")
    return record


def kept_patches(model: BakeTarget, record: BakeRecord) -> list[Patch]:
    """What undoes the record. HQError where it does not fit the model's tensors."""
    patches = [kept.patch for kept in record.kept]
    for patch in patches:
        if patch.strip.end > len(model.stored(patch.strip.tensor)):
            raise HQError(
                f"The record of {model.path} does not fit its tensor {patch.strip.tensor}: use the "
                "file that `hq bake` wrote."
            )
    return patches


def _require_new(target: Path, source: Path) -> None:
    """HQError for a target that is there, as nobody wants a model overwritten, or in the source."""
    if target.exists():
        raise HQError(f"{target} is there already: name another, or remove it.")
    if source.resolve() in target.resolve().parents:
        raise HQError(f"{target} lies inside {source}, which is copied: name another place.")


class _Planned(NamedTuple):
    """A strip before and after."""

    strip: StridedScales
    alpha: float
    before: np.ndarray
    after: np.ndarray

    @property
    def exact(self) -> bool:
        """Whether nothing is rounded."""
        return bool((self.after == self.alpha * self.before).all())

    @property
    def patch(self) -> Patch:
        """What makes it so."""
        return Patch(self.strip, self.strip.form.write(self.after))

    @property
    def numbers(self) -> Numbers:
        """As they were."""
        return self.strip.form, self.before


def _planned(model: BakeTarget, strip: StridedScales, alpha: float) -> _Planned:
    before = strip.read(model.stored(strip.tensor))
    if not np.isfinite(before).all():
        raise HQError(
            f"{model.path} has scales in {strip.tensor} that are not finite: quantize it again."
        )
    return _Planned(strip, alpha, before, strip.form.rounded(alpha * before))


def _require_finite(source: Path, planned: Sequence[_Planned]) -> None:
    over = next((p for p in planned if not np.isfinite(p.after).all()), None)
    if over is not None:
        numbers = [p.numbers for p in planned]
        raise HQError(
            f"α = {over.alpha:g} takes {over.strip.tensor} of {source} beyond what "
            f"{over.strip.form.name} holds: use at most {largest_alpha(numbers):g}."
        )
