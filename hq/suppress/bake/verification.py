"""Verify that a baked model is its original with scaled neurons: by bytes, weights and logits."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from jaxtyping import Int, UInt8

from hq.neurons.factors import Factors
from hq.neurons.prompt_response import PromptResponse
from hq.neurons.space import Position
from hq.suppress.bake.baking import open_target, require_record, undo_patches
from hq.suppress.bake.record import BakeRecord
from hq.suppress.bake.strided_scales import StoredNumbers, StridedScales, nearest_exact
from hq.suppress.bake.target import BakeTarget

_MAX_ULPS = 0.5  # error of rounding to the nearest number
_CHUNK = 1 << 24
_TEXTS, _TOKENS = 4, 24  # of random token ids, if no texts are given


@dataclass(frozen=True)
class Verification:
    """The measured differences, and each problem as a clause; without problems it is verified.

    `exact` is true if no stored number had to be rounded. If each α is 0 or a power of two as
    well, no intermediate result is rounded either, so the logits must be equal.
    """

    exact: bool = False
    units: float = 0.0  # largest error of a stored number, in units in the last place (ULP)
    rows: float = 0.0  # largest error of a dequantized weight, relative to one ULP of its scales
    logits: float | None = None  # largest difference from scaling at run time; None: not measured
    effect: float | None = None  # largest change of a logit that scaling makes
    nearest: Mapping[float, float] = field(
        default_factory=dict
    )  # α that was rounded: nearest exact
    problems: tuple[str, ...] = ()

    @property
    def is_verified(self) -> bool:
        """Whether there is no problem."""
        return not self.problems


def verify_baked(
    baked: Path, source: Path, factors: Factors, exchanges: Sequence[PromptResponse] = ()
) -> Verification:
    """Compare a baked model with its original, in which these neurons are scaled at run time.

    Logits are compared on random token ids if no `exchanges` are given.

    Raises HQError for a model that cannot be read or run, and for one that is not baked.
    """
    model, original = open_target(baked), open_target(source)
    record = require_record(model)
    if record.factors != dict(factors):
        return Verification(
            problems=(
                f"it scales {_summary(record.factors)}, and {_summary(factors)} was to be scaled",
            )
        )
    scales = {neuron: original.strided_scales(*neuron) for neuron in sorted(factors)}
    problems = _byte_problems(
        model, original, record, [s for each in scales.values() for s in each]
    )
    if problems:
        return Verification(problems=problems)
    verification = _compare_numbers(model, original, scales, factors)
    if not verification.is_verified:
        return verification
    error, effect = _logit_differences(model, original, factors, exchanges)
    if verification.exact and all(map(_rounds_nothing, factors.values())) and error != 0:
        problems = (f"its logits are off by up to {error:.2g} although nothing was rounded",)
    return replace(verification, logits=error, effect=effect, problems=problems)


def _summary(factors: Factors) -> str:
    alphas = ", ".join(f"{alpha:g}" for alpha in sorted(set(factors.values())))
    return f"{len(factors)} neurons by {alphas}"


def _byte_problems(
    model: BakeTarget, original: BakeTarget, record: BakeRecord, scales: Sequence[StridedScales]
) -> tuple[str, ...]:
    """Differences outside of the scales, and entries of the record that are not the original."""
    parts, original_parts = dict(model.parts()), dict(original.parts())
    if {n: len(p) for n, p in parts.items()} != {n: len(p) for n, p in original_parts.items()}:
        return ("it was made from another file",)
    scaled_bytes: dict[str, list[Int[np.ndarray, " byte"]]] = {name: [] for name in parts}
    for each in scales:
        name, start = original.location(each.tensor)
        scaled_bytes[name].append(start + _byte_offsets(each))
    problems = []
    for name in parts:
        different = _different_bytes(parts[name], original_parts[name])
        outside = np.setdiff1d(different, np.concatenate([_NO_OFFSETS, *scaled_bytes[name]]))
        if outside.size:
            problems.append(
                f"{outside.size} bytes of its {name} differ that scale none of these neurons, the "
                f"first at {outside[0]}"
            )
    for patch in undo_patches(model, record):
        tensor = patch.scales.tensor
        if not np.array_equal(patch.scales.bytes_in(original.tensor_bytes(tensor)), patch.content):
            problems.append(f"its record does not have the original bytes of {tensor}")
    return tuple(problems)


_NO_OFFSETS = np.empty(0, np.int64)


def _byte_offsets(scales: StridedScales) -> Int[np.ndarray, " byte"]:
    """Offsets of the scales' bytes in their tensor."""
    starts = scales.start + scales.stride * np.arange(scales.count)
    return (starts[:, None] + np.arange(scales.number_format.nbytes)).ravel()


def _different_bytes(
    one: UInt8[np.ndarray, " byte"], other: UInt8[np.ndarray, " byte"]
) -> Int[np.ndarray, " different"]:
    offsets = [
        start + np.flatnonzero(one[start : start + _CHUNK] != other[start : start + _CHUNK])
        for start in range(0, len(one), _CHUNK)
    ]
    return np.concatenate([_NO_OFFSETS, *offsets])


def _compare_numbers(
    model: BakeTarget,
    original: BakeTarget,
    scales: Mapping[Position, Sequence[StridedScales]],
    factors: Factors,
) -> Verification:
    """Compare each stored number with α times its original, then the dequantized weights."""
    units = rows = 0.0
    by_alpha: dict[float, list[StoredNumbers]] = {}
    rounded: set[float] = set()
    for neuron, alpha in factors.items():
        for each in scales[neuron]:
            before, after = (each.read(m.tensor_bytes(each.tensor)) for m in (original, model))
            with np.errstate(invalid="ignore"):  # numbers that are not finite fail the comparison
                error = np.abs(after - alpha * before)
            units = float(np.maximum(units, (error / each.number_format.ulp(after)).max()))
            by_alpha.setdefault(alpha, []).append((each.number_format, before))
            if error.any():
                rounded.add(alpha)
        rows = float(np.maximum(rows, _weight_error(model, original, neuron, alpha)))
    nearest = {alpha: nearest_exact(alpha, by_alpha[alpha]) for alpha in sorted(rounded)}
    problems = []
    if not units <= _MAX_ULPS:  # true for NaN as well
        problems.append(f"its numbers are off by up to {units:.2g} units in the last place")
    if not rows <= 1:
        problems.append(
            f"its weights are off by {rows:.2g} times a unit in the last place of their scales"
        )
    return Verification(
        exact=not rounded, units=units, rows=rows, nearest=nearest, problems=tuple(problems)
    )


def _weight_error(model: BakeTarget, original: BakeTarget, neuron: Position, alpha: float) -> float:
    """Largest error of a dequantized weight, relative to the error that is allowed for it."""
    before, after = (each.neuron_weights(*neuron) for each in (original, model))
    with np.errstate(invalid="ignore"):
        error = np.abs(after.values - alpha * before.values)
    rounding = 4 * np.finfo(np.float32).eps * alpha * before.magnitudes  # of dequantization
    allowed = after.ulps + rounding
    return float(np.divide(error, allowed, out=np.zeros_like(error), where=error > 0).max())


def _logit_differences(
    model: BakeTarget, original: BakeTarget, factors: Factors, exchanges: Sequence[PromptResponse]
) -> tuple[float, float]:
    """(largest difference from the original scaled at run time, largest effect of that scaling)."""
    texts = exchanges or list(_random_texts(original.vocabulary))
    plain, scaled = original.logits(texts, [{}, factors])
    (baked,) = model.logits(texts, [{}])
    return float(np.abs(baked - scaled).max()), float(np.abs(plain - scaled).max())


def _rounds_nothing(alpha: float) -> bool:
    """Whether no product with α is rounded: α is 0 or a power of two."""
    return alpha == 0 or math.frexp(alpha)[0] == 0.5


def _random_texts(vocabulary: int) -> Iterator[PromptResponse]:
    generator = np.random.default_rng(0)
    for ids in generator.integers(vocabulary, size=(_TEXTS, _TOKENS)).tolist():
        yield PromptResponse((ids[0],), tuple(ids[1:]))
