"""Whether a baked model is its original with neurons scaled: by its bytes, weights and logits."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import Int, UInt8

from hq.neurons.prompt_response import PromptResponse
from hq.suppress.bake.baking import kept_patches, open_target, record_of
from hq.suppress.bake.model import BakeTarget, Factors
from hq.suppress.bake.numbers import Numbers, nearest_exact
from hq.suppress.bake.record import BakeRecord
from hq.suppress.bake.strided_scales import StridedScales

_UNIT = 0.5  # rounding to the nearest is off by no more
_CHUNK = 1 << 24
_TEXTS, _TOKENS = 4, 24  # random ones, where none are given


@dataclass
class Verification:
    """What was measured, and each `problem` as a clause; without any, the baking is verified.

    `units` is the largest distance of a stored number from α times what it was, in units of its
    format; `rows` that of dequantized weights, as a share of what one unit of their scales is.
    `logits` is the largest difference from scaling at run time, `effect` the largest that scaling
    makes. `exact` says that no stored number had to be rounded; where α is 0 or a power of two
    besides, nothing in between is either, and logits have to be equal. `nearest` names for each α
    that was rounded the nearest that is exact.
    """

    exact: bool = False
    units: float = 0.0
    rows: float = 0.0
    logits: float | None = None  # not measured where bytes are wrong
    effect: float | None = None
    nearest: dict[float, float] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    @property
    def holds(self) -> bool:
        """Whether it is verified."""
        return not self.problems


def verify(
    baked: Path, source: Path, factors: Factors, exchanges: Sequence[PromptResponse] = ()
) -> Verification:
    """Compares a baked model with its original, in which these neurons are scaled at run time.

    Without `exchanges` the logits are those of random tokens.

    Raises HQError for a model that cannot be read or run, or is not baked.
    """
    ours, theirs = open_target(baked), open_target(source)
    record, found = record_of(ours), Verification()
    if record.factors != dict(factors):
        found.problems.append(
            f"it scales {_told(record.factors)}, and {_told(factors)} was to be scaled"
        )
        return found
    strips = {neuron: theirs.strips(*neuron) for neuron in sorted(factors)}
    _compare_bytes(found, ours, theirs, record, [s for each in strips.values() for s in each])
    if found.holds:
        _compare_numbers(found, ours, theirs, strips, factors)
    if found.holds:
        _compare_logits(found, ours, theirs, factors, exchanges)
    return found


def _told(factors: Factors) -> str:
    alphas = ", ".join(f"{alpha:g}" for alpha in sorted(set(factors.values())))
    return f"{len(factors)} neurons by {alphas}"


def _compare_bytes(
    found: Verification,
    ours: BakeTarget,
    theirs: BakeTarget,
    record: BakeRecord,
    strips: Sequence[StridedScales],
) -> None:
    """Nothing but the strips differs, and the record holds what they were."""
    parts, originals = dict(ours.parts()), dict(theirs.parts())
    if {n: len(p) for n, p in parts.items()} != {n: len(p) for n, p in originals.items()}:
        found.problems.append("it was made of another file")
        return
    may: dict[str, list[Int[np.ndarray, " byte"]]] = {name: [] for name in parts}
    for strip in strips:
        name, start = theirs.place(strip.tensor)
        may[name].append(start + _bytes_of(strip))
    for name in parts:
        differ = _differing(parts[name], originals[name])
        outside = np.setdiff1d(differ, np.concatenate([np.empty(0, np.int64), *may[name]]))
        if outside.size:
            found.problems.append(
                f"{outside.size} bytes of its {name} differ that scale none of these neurons, the "
                f"first at {outside[0]}"
            )
    for patch in kept_patches(ours, record):
        original = patch.strip.bytes_in(theirs.stored(patch.strip.tensor))
        if not np.array_equal(original, patch.content):
            found.problems.append(f"its record does not hold what {patch.strip.tensor} was")


def _bytes_of(strip: StridedScales) -> Int[np.ndarray, " byte"]:
    """Places of a strip's bytes in its tensor."""
    firsts = strip.start + strip.step * np.arange(strip.count)
    return (firsts[:, None] + np.arange(strip.form.nbytes)).ravel()


def _differing(
    one: UInt8[np.ndarray, " byte"], other: UInt8[np.ndarray, " byte"]
) -> Int[np.ndarray, " place"]:
    places = [
        start + np.flatnonzero(one[start : start + _CHUNK] != other[start : start + _CHUNK])
        for start in range(0, len(one), _CHUNK)
    ]
    return np.concatenate([np.empty(0, np.int64), *places])


def _compare_numbers(
    found: Verification,
    ours: BakeTarget,
    theirs: BakeTarget,
    strips: Mapping[tuple[int, int], Sequence[StridedScales]],
    factors: Factors,
) -> None:
    """Every number is the nearest to α times what it was, and weights follow."""
    by_alpha: dict[float, list[Numbers]] = {}
    rounded: set[float] = set()
    for neuron, alpha in factors.items():
        for strip in strips[neuron]:
            before, after = (strip.read(model.stored(strip.tensor)) for model in (theirs, ours))
            with np.errstate(invalid="ignore"):  # what is not finite is off
                off = np.abs(after - alpha * before)
            found.units = float(np.maximum(found.units, (off / strip.form.unit(after)).max()))
            by_alpha.setdefault(alpha, []).append((strip.form, before))
            if off.any():
                rounded.add(alpha)
        found.rows = float(np.maximum(found.rows, _row_error(ours, theirs, neuron, alpha)))
    found.exact = not rounded
    found.nearest = {alpha: nearest_exact(alpha, by_alpha[alpha]) for alpha in sorted(rounded)}
    if not found.units <= _UNIT:
        found.problems.append(f"its numbers are off by up to {found.units:.2g} units")
    if not found.rows <= 1:
        found.problems.append(f"its weights are off by {found.rows:.2g} times a unit of scale")


def _row_error(
    ours: BakeTarget, theirs: BakeTarget, neuron: tuple[int, int], alpha: float
) -> float:
    """How far the dequantized weights are from α times the original's, of what is allowed."""
    before, after = (model.weights(*neuron) for model in (theirs, ours))
    with np.errstate(invalid="ignore"):
        off = np.abs(after.values - alpha * before.values)
    arithmetic = 4 * np.finfo(np.float32).eps * alpha * before.size  # of dequantizing itself
    allowed = after.unit + arithmetic
    return float(np.divide(off, allowed, out=np.zeros_like(off), where=off > 0).max())


def _compare_logits(
    found: Verification,
    ours: BakeTarget,
    theirs: BakeTarget,
    factors: Factors,
    exchanges: Sequence[PromptResponse],
) -> None:
    """The baked model computes what the original does with neurons scaled at run time."""
    texts = exchanges or list(_random_texts(theirs.vocabulary))
    plain, scaled = theirs.logits(texts, [{}, factors])
    (baked,) = ours.logits(texts, [{}])
    found.logits = float(np.abs(baked - scaled).max())
    found.effect = float(np.abs(plain - scaled).max())
    if found.exact and all(map(_shifts, factors.values())) and found.logits != 0:
        found.problems.append(
            f"its logits are off by up to {found.logits:.2g} although nothing was rounded"
        )


def _shifts(alpha: float) -> bool:
    """Whether multiplying by α rounds no number: it is 0, or a power of two."""
    return alpha == 0 or math.frexp(alpha)[0] == 0.5


def _random_texts(vocabulary: int) -> Iterator[PromptResponse]:
    draw = np.random.default_rng(0)
    for ids in draw.integers(vocabulary, size=(_TEXTS, _TOKENS)).tolist():
        yield PromptResponse((ids[0],), tuple(ids[1:]))
