"""Whether neuron i of a variant is neuron i of its source, layer by layer, from weights alone.

A neuron is what it reads, its rows of W_gate and W_up, and what it writes, its column of W_down.
Directions are compared first: quantization turns them a little, and folding scales into them (AWQ,
SmoothQuant) not at all. Lengths then tell how far a neuron was rescaled.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hq.models.ffn_weights import FFN

MATCH = 0.6  # cosine from which two neurons' vectors are one; unrelated ones stay below 5.5 / √d
# Mean cosine of a neuron's vectors from which another is what rounding or pruning left of it; that
# of unrelated ones stays below 0.3 from d = 128 on.
REMAINS = 0.3
MISSING = -1  # the place of a neuron that is nowhere
FOUND = 0.9  # share of neurons that have to match: others may have been pruned
RESCALED = 0.1, 0.3  # how far a factor lies from the median at most, with no error, and for error
_OUTLIERS = 0.995  # where among the factors that is looked for
_TINY = 1e-30
_SAMPLE = 256  # neurons by which a layer is looked for among the others


class LayerRelation(StrEnum):
    """What a variant's layer is to its source's."""

    IDENTICAL = "identical"  # up to quantization error
    RESCALED = "rescaled"  # contributions compare, h does not
    PERMUTED = "permuted"
    MIXED = "mixed"  # rotated: no coordinate of h is a neuron, or not without a turn at run time
    CHANGED = "changed"  # further off than its precision explains: tuned, pruned
    OTHER = "another"


ALIGNED = frozenset({LayerRelation.IDENTICAL, LayerRelation.RESCALED, LayerRelation.PERMUTED})


@dataclass(frozen=True)
class LayerMap:
    """One layer: neuron i of the source is neuron `places[i]` of the variant.

    A neuron whose directions do not all match is not `found`. It still has a place where what is
    left of it is: a few neurons are rounded that far in 2 to 4 bits, or part of their weights was
    cut. Without such a place it is `MISSING`.
    """

    layer: int
    relation: LayerRelation
    bits: float  # of a weight as the variant stores it
    error: float  # median relative error of a neuron's weights, scales undone; nan where none maps
    places: Int[Tensor, " d_ff"]
    found: Bool[Tensor, " d_ff"]  # by direction; pruned neurons are not, and few of those in 2 bits
    factors: Float[Tensor, " d_ff"]  # the variant's h over the source's; nan for missing neurons
    note: str = ""

    @property
    def holds(self) -> bool:
        """Whether a neuron of the source can be read in the variant."""
        return self.relation in ALIGNED


def explained(bits: float) -> float:
    """The largest relative error of weights that a precision of so many bits explains.

    A little above what rounding a normal weight to that many bits costs, GPTQ's spending of error
    and a format's coarsest blocks included. A change that is smaller than this cannot be told from
    quantization.
    """
    return next((error for low, error in _EXPLAINED if bits >= low), 1.0)


_EXPLAINED = ((15, 2e-3), (7.5, 0.03), (5.5, 0.06), (4.9, 0.1), (3.9, 0.2), (3, 0.35), (2, 0.7))


def map_model(source: Sequence[FFN], variant: Iterable[FFN]) -> Iterator[LayerMap]:
    """What each layer of the variant is to the source's. Lengths must be the same.

    Layers are read one at a time, and again where one has to be looked for.
    """
    for layer, (ours, theirs) in enumerate(zip(source, variant, strict=True)):
        found = map_layer(layer, ours, theirs)
        if found.relation is LayerRelation.OTHER:
            home = _home(theirs, source)
            if home is not None:
                found = replace(found, note=f"it is the source's layer {home}")
        yield found


def map_layer(layer: int, source: FFN, variant: FFN) -> LayerMap:
    """What one layer of the variant is to the source's."""
    width = len(source.up)
    own, none = torch.arange(width), torch.zeros(width, dtype=torch.bool)
    lost = LayerMap(
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
        return replace(lost, note=f"its FFN is of {shapes[0]}, not {shapes[1]}")
    placed, note = _places(source, variant), ""
    if placed is None:
        if _share(source.reads, variant.reads) >= FOUND:
            return replace(lost, relation=LayerRelation.MIXED, note="W_down mixes neurons")
        turned = _rotation(source.parts, variant.parts)
        if turned is None:
            if _rotation(source.reads, variant.reads) is not None:
                return replace(
                    lost, relation=LayerRelation.MIXED, note="W_down is not rotated along"
                )
            return replace(lost, note="no neuron is found again")
        note = "in a rotated residual stream"
        variant = variant.turned(turned.T)
        placed = _places(source, variant)
        if placed is None:
            return replace(lost, note="no neuron is found again")
    places, found = placed
    missing = places == MISSING
    paired = torch.where(missing, own, places)  # few enough to leave medians as they are
    measured = _measured(layer, source, variant.at(paired), paired, found)
    return replace(
        measured,
        places=places,
        factors=measured.factors.masked_fill(missing, torch.nan),
        note=" ".join(filter(None, (measured.note, note))),
    )


def _measured(
    layer: int,
    source: FFN,
    variant: FFN,
    places: Int[Tensor, " d_ff"],
    found: Bool[Tensor, " d_ff"],
) -> LayerMap:
    """A layer whose neurons are found: how far each is scaled, and the error that is left."""
    tolerance = min(explained(variant.bits), variant.explained)
    up, down = _factors(source.up, variant.up), _factors(source.down.T, variant.down.T)
    scales = [up, down] if source.gate is None else [torch.ones_like(up), up, down]
    errors = [_errors(*rows) for rows in zip(source.parts, variant.parts, scales, strict=True)]
    error = float(torch.stack(errors).amax(0).median())
    kept = LayerMap(layer, LayerRelation.IDENTICAL, variant.bits, error, places, found, up)
    # W_up's and W_down's scales cancel in a contribution; where they do not, it is another change.
    uneven = float((up * down).log().abs().median())
    if not (error <= tolerance and uneven <= tolerance):  # NaN is no small error
        told = (
            f"weights are off by {max(error, uneven):.1%}; its precision explains {tolerance:.1%}"
            if math.isfinite(error + uneven)
            else "weights are not finite"
        )
        return replace(kept, relation=LayerRelation.CHANGED, note=told)
    if not torch.equal(places, torch.arange(len(places))):
        moved = int((places != torch.arange(len(places))).sum())
        return replace(kept, relation=LayerRelation.PERMUTED, note=f"{moved} neurons are elsewhere")
    far = (up / up.median()).log().abs().quantile(_OUTLIERS)
    if float(far) > RESCALED[0] + RESCALED[1] * error:
        low, high = up.quantile(torch.tensor([0.05, 0.95])).tolist()
        return replace(kept, relation=LayerRelation.RESCALED, note=f"h × {low:.2f} to {high:.2f}")
    return kept


def _places(source: FFN, variant: FFN) -> tuple[Int[Tensor, " d_ff"], Bool[Tensor, " d_ff"]] | None:
    """Where in the variant each neuron is, and which are found; None where too few are.

    Those that are not at their own place are looked for among those places alone. One that is not
    found has the place that is most like it, if that is its `REMAINS` and no other's.
    """
    places = torch.arange(len(source.up))
    found = _match(source.parts, variant.parts)
    if not found.all():
        astray = places[~found]
        old, new = source.at(astray), variant.at(astray)
        pairs = zip(old.parts, new.parts, strict=True)
        likeness, best = torch.stack([_unit(a) @ _unit(b).T for a, b in pairs]).mean(0).max(1)
        met = _match(old.parts, new.at(best).parts)
        if int(torch.bincount(best[met], minlength=1).max()) > 1:
            return None  # one neuron for two
        placed = met | (likeness >= REMAINS)
        placed &= met | (torch.bincount(best[placed], minlength=len(best))[best] == 1)
        places[astray] = torch.where(placed, astray[best], MISSING)
        found[astray[met]] = True
    return (places, found) if float(found.float().mean()) >= FOUND else None


def _share(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> float:
    """The share of rows that match in these matrices."""
    return float(_match(ours, theirs).float().mean())


def _match(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> Bool[Tensor, " d_ff"]:
    """Whether each row of each matrix has the direction of the other's."""
    cosines = [(_unit(a) * _unit(b)).sum(1) for a, b in zip(ours, theirs, strict=True)]
    return torch.stack(cosines).amin(0) > MATCH


def _rotation(
    ours: Sequence[Tensor], theirs: Sequence[Tensor]
) -> Float[Tensor, "d_model d_model"] | None:
    """The rotation of the residual stream that takes these matrices to the others, if one does.

    It is fitted on one half of the neurons (orthogonal Procrustes) and judged on the other, as any
    two models of few neurons can be turned into each other.
    """
    half, other = (slice(start, None, 2) for start in (0, 1))
    a, b = (torch.cat([part[half] for part in parts]) for parts in (ours, theirs))
    left, _, right = torch.linalg.svd(a.T @ b)
    rotation: Tensor = left @ right
    judged = [part[other] @ rotation for part in ours], [part[other] for part in theirs]
    return rotation if _share(*judged) >= FOUND else None


def _home(variant: FFN, source: Sequence[FFN]) -> int | None:
    """The source's layer that a layer of the variant is, if any, by some of its neurons."""
    some = torch.arange(min(_SAMPLE, len(variant.up)))
    for layer, ours in enumerate(source):
        alike = [p.shape for p in ours.parts] == [p.shape for p in variant.parts]
        if alike and _share(ours.at(some).parts, variant.at(some).parts) >= FOUND:
            return layer
    return None


def _factors(ours: Tensor, theirs: Tensor) -> Float[Tensor, " d_ff"]:
    """The scale of each row, by least squares."""
    factors: Tensor = (ours * theirs).sum(1) / ours.square().sum(1).clamp(min=_TINY)
    return factors.clamp(min=_TINY)


def _errors(ours: Tensor, theirs: Tensor, scales: Tensor) -> Float[Tensor, " d_ff"]:
    """Relative error of each row, its scale undone."""
    off = theirs / scales[:, None] - ours
    return _lengths(off)[:, 0] / _lengths(ours)[:, 0]


def _unit(rows: Tensor) -> Tensor:
    return rows / _lengths(rows)


def _lengths(rows: Tensor) -> Float[Tensor, "row 1"]:
    lengths: Tensor = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    return lengths.clamp(min=_TINY)
