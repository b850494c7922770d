"""Finds which neuron of a variant corresponds to each neuron of its source, from FFN weights.

A neuron is its rows of W_gate and W_up, which read, and its column of W_down, which writes. The
directions of these vectors are compared first: quantization changes them slightly, and scales that
are folded into them (AWQ, SmoothQuant) do not change them. The lengths then show how far a neuron
was rescaled.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hq.models.ffn_weights import FFN

MATCH = 0.6  # smallest cosine of matching vectors; unrelated vectors stay below 5.5 / √d
# Smallest mean cosine of the vectors of a neuron and of its remainder after rounding or pruning;
# for unrelated neurons the mean cosine stays below 0.3 if d is at least 128.
REMAINS = 0.3
MISSING = -1  # index of a neuron that the variant does not have
MIN_MATCHED = 0.9  # share of neurons that have to match; the others may have been pruned
# Largest log distance of a factor from the median of an unscaled layer: constant + slope · error.
RESCALED = 0.1, 0.3
_OUTLIERS = 0.995  # quantile of the factors' distances that is compared with RESCALED
_TINY = 1e-30
_SAMPLE = 256  # neurons that are compared when searching for a layer


class LayerRelation(StrEnum):
    """How a variant's layer relates to its source's."""

    IDENTICAL = "identical"  # up to quantization error
    RESCALED = "rescaled"  # contributions are comparable, h is not
    PERMUTED = "permuted"
    MIXED = "mixed"  # rotated: a coordinate of h is no neuron
    CHANGED = "changed"  # differs by more than its precision explains: fine-tuned, pruned
    OTHER = "another"


ALIGNED = frozenset({LayerRelation.IDENTICAL, LayerRelation.RESCALED, LayerRelation.PERMUTED})


@dataclass(frozen=True)
class LayerMap:
    """One layer: neuron i of the source is neuron `permutation[i]` of the variant.

    A neuron is `matched` if all of its directions match. Other neurons have the index of their
    remainder, as rounding to 2 to 4 bits and pruning change some neurons that far, or `MISSING` if
    there is no remainder.
    """

    layer: int
    relation: LayerRelation
    bits: float  # per weight, as stored in the variant
    error: float  # median over neurons of the relative error without rescaling; NaN if unrelated
    permutation: Int[Tensor, " d_ff"]
    matched: Bool[Tensor, " d_ff"]
    factors: Float[Tensor, " d_ff"]  # the variant's h ÷ the source's; NaN for missing neurons
    note: str = ""

    @property
    def is_aligned(self) -> bool:
        """Whether the source's neurons can be read in the variant."""
        return self.relation in ALIGNED


def rounding_error(bits: float) -> float:
    """Return the largest relative error of weights that a precision of so many bits explains.

    Slightly above the error of rounding normally distributed weights to that many bits, including
    the error that GPTQ moves between weights and a format's coarsest blocks. A smaller change
    cannot be distinguished from quantization.
    """
    return next((error for low, error in _ROUNDING_ERRORS if bits >= low), 1.0)


# Smallest number of bits, error
_ROUNDING_ERRORS = (
    (15, 2e-3),
    (7.5, 0.03),
    (5.5, 0.06),
    (4.9, 0.1),
    (3.9, 0.2),
    (3, 0.35),
    (2, 0.7),
)


def map_model(source: Sequence[FFN], variant: Iterable[FFN]) -> Iterator[LayerMap]:
    """Compare each layer of a variant with the source's; both have the same number of layers.

    Layers are read one at a time; the source's are read again to search for a layer.
    """
    for layer, (source_ffn, variant_ffn) in enumerate(zip(source, variant, strict=True)):
        mapped = map_layer(layer, source_ffn, variant_ffn)
        if mapped.relation is LayerRelation.OTHER:
            origin = _source_layer(variant_ffn, source)
            if origin is not None:
                mapped = replace(mapped, note=f"it is the source's layer {origin}")
        yield mapped


def map_layer(layer: int, source: FFN, variant: FFN) -> LayerMap:
    """Compare one layer of a variant with the source's."""
    width = len(source.up)
    own, none = torch.arange(width), torch.zeros(width, dtype=torch.bool)
    unrelated = LayerMap(
        layer,
        LayerRelation.OTHER,
        variant.bits,
        torch.nan,
        own,
        none,
        torch.full([width], torch.nan),
    )
    if [part.shape for part in source.parts] != [part.shape for part in variant.parts]:
        shapes = tuple(variant.up.shape), tuple(source.up.shape)
        return replace(unrelated, note=f"its FFN has the shape {shapes[0]}, not {shapes[1]}")
    pairs, note = _pairs(source, variant), ""
    if pairs is None:
        if _share(source.reads, variant.reads) >= MIN_MATCHED:
            return replace(unrelated, relation=LayerRelation.MIXED, note="W_down mixes neurons")
        rotation = _rotation(source.parts, variant.parts)
        if rotation is None:
            if _rotation(source.reads, variant.reads) is not None:
                return replace(
                    unrelated, relation=LayerRelation.MIXED, note="W_down is not rotated with them"
                )
            return replace(unrelated, note="its neurons do not match")
        note = "in a rotated residual stream"
        variant = variant.rotated(rotation.T)
        pairs = _pairs(source, variant)
        if pairs is None:
            return replace(unrelated, note="its neurons do not match")
    permutation, matched = pairs
    missing = permutation == MISSING
    paired = torch.where(missing, own, permutation)  # too few are missing to change a median
    measured = _measured(layer, source, variant.at(paired), paired, matched)
    return replace(
        measured,
        permutation=permutation,
        factors=measured.factors.masked_fill(missing, torch.nan),
        note=" ".join(filter(None, (measured.note, note))),
    )


def _measured(
    layer: int,
    source: FFN,
    variant: FFN,
    permutation: Int[Tensor, " d_ff"],
    matched: Bool[Tensor, " d_ff"],
) -> LayerMap:
    """Measure how far each neuron of a matched layer is scaled, and the error that remains."""
    tolerance = min(rounding_error(variant.bits), variant.rounding_error)
    up, down = _factors(source.up, variant.up), _factors(source.down.T, variant.down.T)
    scales = [up, down] if source.gate is None else [torch.ones_like(up), up, down]
    errors = [_errors(*rows) for rows in zip(source.parts, variant.parts, scales, strict=True)]
    error = float(torch.stack(errors).amax(0).median())
    identical = LayerMap(
        layer, LayerRelation.IDENTICAL, variant.bits, error, permutation, matched, up
    )
    # Rescaling cancels in a contribution: scales of W_up and W_down that do not are another change.
    uneven = float((up * down).log().abs().median())
    if not (error <= tolerance and uneven <= tolerance):  # also if they are NaN
        note = (
            f"weights differ by {max(error, uneven):.1%}; its precision explains {tolerance:.1%}"
            if math.isfinite(error + uneven)
            else "weights are not finite"
        )
        return replace(identical, relation=LayerRelation.CHANGED, note=note)
    moved = int((permutation != torch.arange(len(permutation))).sum())
    if moved:
        note = f"{moved} neurons have another index"
        return replace(identical, relation=LayerRelation.PERMUTED, note=note)
    far = (up / up.median()).log().abs().quantile(_OUTLIERS)
    if float(far) > RESCALED[0] + RESCALED[1] * error:
        low, high = up.quantile(torch.tensor([0.05, 0.95])).tolist()
        note = f"h × {low:.2f} to {high:.2f}"
        return replace(identical, relation=LayerRelation.RESCALED, note=note)
    return identical


def _pairs(source: FFN, variant: FFN) -> tuple[Int[Tensor, " d_ff"], Bool[Tensor, " d_ff"]] | None:
    """Return each neuron's index in the variant and whether it matches; None if too few match.

    Neurons that do not match at their own index are searched for at the indices of such neurons. A
    neuron that matches nowhere has the index of the most similar one, if that is similar enough
    (`REMAINS`) and is the remainder of no other neuron.
    """
    permutation = torch.arange(len(source.up))
    matched = _match(source.parts, variant.parts)
    if not matched.all():
        unmatched = permutation[~matched]
        old, new = source.at(unmatched), variant.at(unmatched)
        parts = zip(old.parts, new.parts, strict=True)
        similarity, best = torch.stack([_unit(a) @ _unit(b).T for a, b in parts]).mean(0).max(1)
        matches = _match(old.parts, new.at(best).parts)
        if int(torch.bincount(best[matches], minlength=1).max()) > 1:
            return None  # two neurons of the source match one of the variant
        paired = matches | (similarity >= REMAINS)
        paired &= matches | (torch.bincount(best[paired], minlength=len(best))[best] == 1)
        permutation[unmatched] = torch.where(paired, unmatched[best], MISSING)
        matched[unmatched[matches]] = True
    return (permutation, matched) if float(matched.float().mean()) >= MIN_MATCHED else None


def _share(source: Sequence[Tensor], variant: Sequence[Tensor]) -> float:
    """Share of the rows of these matrices that match."""
    return float(_match(source, variant).float().mean())


def _match(source: Sequence[Tensor], variant: Sequence[Tensor]) -> Bool[Tensor, " d_ff"]:
    """Whether row i has the same direction in both, for every pair of matrices."""
    cosines = [(_unit(a) * _unit(b)).sum(1) for a, b in zip(source, variant, strict=True)]
    return torch.stack(cosines).amin(0) > MATCH


def _rotation(
    source: Sequence[Tensor], variant: Sequence[Tensor]
) -> Float[Tensor, "d_model d_model"] | None:
    """Return the rotation of the residual stream that maps the source to the variant, if any.

    Orthogonal Procrustes problem (Schönemann 1966), fitted on one half of the neurons and tested on
    the other: any two models with few neurons can be rotated into each other.
    """
    fitted, tested = (slice(start, None, 2) for start in (0, 1))
    a, b = (torch.cat([part[fitted] for part in parts]) for parts in (source, variant))
    left, _, right = torch.linalg.svd(a.T @ b)
    rotation: Tensor = left @ right
    rotated = [part[tested] @ rotation for part in source]
    share = _share(rotated, [part[tested] for part in variant])
    return rotation if share >= MIN_MATCHED else None


def _source_layer(variant: FFN, source: Sequence[FFN]) -> int | None:
    """Return the source's layer that a layer of the variant matches, by some of its neurons."""
    some = torch.arange(min(_SAMPLE, len(variant.up)))
    for layer, candidate in enumerate(source):
        same_shape = [p.shape for p in candidate.parts] == [p.shape for p in variant.parts]
        if same_shape and _share(candidate.at(some).parts, variant.at(some).parts) >= MIN_MATCHED:
            return layer
    return None


def _factors(source: Tensor, variant: Tensor) -> Float[Tensor, " d_ff"]:
    """Least-squares scale of each row."""
    factors: Tensor = (source * variant).sum(1) / source.square().sum(1).clamp(min=_TINY)
    return factors.clamp(min=_TINY)


def _errors(source: Tensor, variant: Tensor, scales: Tensor) -> Float[Tensor, " d_ff"]:
    """Relative error of each row after its scale is removed."""
    difference = variant / scales[:, None] - source
    return _lengths(difference)[:, 0] / _lengths(source)[:, 0]


def _unit(rows: Tensor) -> Tensor:
    return rows / _lengths(rows)


def _lengths(rows: Tensor) -> Float[Tensor, "row 1"]:
    lengths: Tensor = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    return lengths.clamp(min=_TINY)
