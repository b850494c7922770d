"""Rows of the tables of specifications."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.stats import spearmanr

from harness.experiments.specifications.nodes import (
    Agreement,
    EstimatedSpecification,
    Fit,
    Specification,
)
from harness.experiments.specifications.partitions import ALL, OWN, Partition, Placed
from harness.experiments.specifications.tables import (
    Curve,
    Influence,
    NotFitted,
    PartitionRow,
    SelectedNeuron,
    SpecificationRow,
    SplitHalfRow,
    Stability,
)
from harness.stages.identify import Rows
from harness.tables.schema import Row
from hq.neurons.neuron_set import NeuronSet
from hq.probe.overlap import consistency, expected_jaccard, jaccard, mean_jaccard
from hq.probe.rules import FoldSets
from hq.stats.equivalence import Equivalence, decide
from hq.stats.intervals import Estimate
from hq.stats.variance import share_between

MARGIN = 0.02
"""The largest change of an AUROC that counts as negligible, as in the table of detection."""
SETTINGS = ("cett", "tokens", "labels", "rule")
"""Choices whose levels are combined in every way."""
_LISTED = 0.5  # share of the settings from which a neuron of other sets is listed

Choose = Callable[[Specification], bool]
SCOPES: Mapping[str, Choose] = {
    "settings": lambda s: s.fit.partition == Partition(),
    "folds": lambda s: s.fit.partition.folds != OWN,
    "halves": lambda s: s.fit.partition.samples != ALL,
    "all": lambda _: True,
}


@dataclass(frozen=True)
class SpecificationAnalysis:
    """The sets of every specification, its estimates and scores, and the agreement of halves.

    In every mapping of specifications, the study's own is the first.
    """

    rows: Rows
    sets: Mapping[Specification, FoldSets]
    partitions: Mapping[Partition, Placed]
    estimates: Mapping[str, Mapping[Specification, EstimatedSpecification]]  # by precision
    scores: Mapping[str, Mapping[Specification, Float[np.ndarray, " n"]]]
    agreement: Agreement
    failures: Mapping[Fit, str]  # fits without sets, each with the reason

    def tables(self) -> dict[str, list[Row]]:
        """Return all rows by table."""
        return {
            "curve": [row for p in self.estimates for row in self.curve(p)],
            "influence": [row for p in self.estimates for row in self.influence(p)],
            "specifications": [row for p in self.estimates for row in self.specifications(p)],
            "split_half": [self.split_half()],
            "stability": [*self.stability()],
            "neurons": [*self.selected()],
            "partitions": [*self.placed()],
            "not_fitted": [*self.not_fitted()],
        }

    @property
    def own(self) -> Specification:
        """The study's own specification."""
        return next(iter(self.sets))

    @property
    def neurons(self) -> NeuronSet:
        """The study's own set."""
        return self.sets[self.own].neurons

    @property
    def _p(self) -> int:
        return self.neurons.model.n_neurons

    def specifications(self, precision: str) -> list[SpecificationRow]:
        """Return one row per specification."""
        scores, own = self.scores[precision], self.neurons.flat
        rows = []
        for s, estimates in self.estimates[precision].items():
            inside = self.partitions[s.fit.partition].rows
            flat = self.sets[s].neurons.flat
            rows.append(
                SpecificationRow(
                    precision=precision,
                    **s.choices,
                    changes=s.changes(self.own),
                    n=len(inside),
                    units=estimates.auroc.n,
                    neurons=len(flat),
                    h_neurons=len(self.sets[s].neurons.positive),
                    auroc=estimates.auroc,
                    difference=estimates.difference,
                    change=estimates.change,
                    verdict=_verdict(estimates.change),
                    common=len(np.intersect1d(flat, own)),
                    jaccard=jaccard(flat, own),
                    jaccard_chance=expected_jaccard(len(flat), len(own), self._p),
                    rank_correlation=float(
                        spearmanr(scores[s][inside], scores[self.own][inside]).statistic
                    ),
                )
            )
        return rows

    def curve(self, precision: str) -> list[Curve]:
        """Return one row per scope."""
        rows = dict(zip(self.sets, self.specifications(precision), strict=True))
        own = rows[self.own]
        scopes = {
            scope: [row for s, row in rows.items() if chosen(s)] for scope, chosen in SCOPES.items()
        }
        return [_curve(precision, scope, own, inside) for scope, inside in scopes.items() if inside]

    def influence(self, precision: str) -> list[Influence]:
        """Return one row per choice."""
        fit = self.own.fit
        compared: dict[str, Choose] = {
            **dict.fromkeys(SETTINGS, SCOPES["settings"]),
            "folds": lambda s: s.fit == fit or SCOPES["folds"](s),
            "samples": SCOPES["halves"],
        }
        estimates = self.estimates[precision]
        choices = {
            choice: {s: e for s, e in estimates.items() if chosen(s)}
            for choice, chosen in compared.items()
        }
        return [_influence(precision, *choice) for choice in choices.items() if choice[1]]

    def placed(self) -> list[PartitionRow]:
        """Return one row per partition."""
        return [
            PartitionRow(
                folds=name.folds,
                samples=name.samples,
                n=len(placed.rows),
                units=len(np.unique(self.rows.units[placed.rows])),
                **{name.replace("-", "_"): area for name, area in placed.texts.items()},
            )
            for name, placed in self.partitions.items()
        ]

    def not_fitted(self) -> list[NotFitted]:
        """Return one row per fit without sets."""
        return [
            NotFitted(
                cett=fit.cett,
                tokens=fit.tokens,
                labels=fit.labels,
                folds=fit.partition.folds,
                samples=fit.partition.samples,
                reason=reason,
            )
            for fit, reason in self.failures.items()
        ]

    def selected(self) -> list[SelectedNeuron]:
        """Return one row per neuron of the study's own set, or in half of those of the settings."""
        sources = {
            "in_folds": self._of_folds(lambda s: s == self.own),
            "in_seeds": self._of_folds(lambda s: SCOPES["folds"](s) and self._has_own_rule(s)),
            "in_halves": self._sets(lambda s: SCOPES["halves"](s) and self._has_own_rule(s)),
            "in_settings": self._sets(SCOPES["settings"]),
        }
        shares = {name: _frequency(sets, self._p) for name, sets in sources.items() if sets}
        weights = {
            flat: neuron.weight
            for flat, neuron in zip(self.neurons.flat.tolist(), self.neurons.neurons, strict=True)
        }
        often = np.flatnonzero(shares["in_settings"] >= _LISTED).tolist()
        listed = np.array(sorted({*weights, *often}), dtype=np.int64)
        positions = self.neurons.model.space.positions(listed)
        return [
            SelectedNeuron(
                layer=layer,
                expert=expert[0] if expert else None,
                index=index,
                weight=weights.get(flat),
                **{name: float(share[flat]) for name, share in shares.items()},
            )
            for flat, (layer, *expert, index) in zip(listed.tolist(), positions, strict=True)
        ]

    def stability(self) -> list[Stability]:
        """Return one row per respect in which sets differ."""
        halves = {
            s.fit.partition.samples: self.sets[s].neurons.flat
            for s in self.sets
            if SCOPES["halves"](s) and self._has_own_rule(s)
        }
        names = [[f"{name[:-1]}{side}" for side in "ab"] for name in halves if name.endswith("a")]
        pairs = [[halves[name] for name in pair] for pair in names if pair[1] in halves]
        return [
            self._stability(source, families)
            for source, families in {
                "folds": [self._of_folds(lambda s: s == self.own)],
                "seeds": [self._sets(self._is_of_seeds)],
                "folds of seeds": [self._of_folds(self._is_of_seeds)],
                "halves": pairs,
                "settings": [self._sets(self._is_of_settings)],
            }.items()
            if families and min(map(len, families)) > 1
        ]

    def split_half(self) -> SplitHalfRow:
        """Return the agreement of probes on complementary halves."""
        values = {name: np.array(v) for name, v in self.agreement.splits.items()}
        defined = ~np.isnan(values["nearest"])
        drawn = {
            name: Estimate.of_draws(values[name])
            for name in (
                *("neurons", "jaccard", "consistency", "correlation", "correlation_within"),
                "auroc",
            )
        }
        near = {
            name: Estimate.of_draws(values[name][defined]) if defined.any() else None
            for name in ("nearest", "nearest_chance")
        }
        return SplitHalfRow(
            splits=len(defined),
            jaccard_chance=float(values["jaccard_chance"].mean()),
            frequencies=Estimate.of_draws(np.array(self.agreement.frequencies)),
            **drawn,
            **near,
        )

    def _has_own_rule(self, s: Specification) -> bool:
        return s.rule == self.own.rule

    def _is_of_seeds(self, s: Specification) -> bool:
        return s == self.own or (SCOPES["folds"](s) and self._has_own_rule(s))

    def _is_of_settings(self, s: Specification) -> bool:
        return SCOPES["settings"](s) and self._has_own_rule(s)

    def _sets(self, chosen: Choose) -> list[np.ndarray]:
        return [sets.neurons.flat for s, sets in self.sets.items() if chosen(s)]

    def _of_folds(self, chosen: Choose) -> list[np.ndarray]:
        return [fold.flat for s, sets in self.sets.items() if chosen(s) for fold in sets.folds]

    def _stability(self, source: str, families: Sequence[Sequence[np.ndarray]]) -> Stability:
        """The row of one or several families of sets; overlaps are means over the families."""
        sets = [one for family in families for one in family]
        overlaps = np.array([mean_jaccard(family, self._p) for family in families]).mean(axis=0)
        frequency = _frequency(sets, self._p)
        return Stability(
            source=source,
            sets=len(sets),
            neurons=float(np.mean([len(one) for one in sets])),
            in_all=int((frequency == 1).sum()),
            in_any=int((frequency > 0).sum()),
            jaccard=float(overlaps[0]),
            jaccard_chance=float(overlaps[1]),
            consistency=float(np.mean([consistency(family, self._p) for family in families])),
        )


def _frequency(sets: Sequence[np.ndarray], p: int) -> Float[np.ndarray, " p"]:
    """The share of the sets that contain each neuron."""
    share: Float[np.ndarray, " p"] = np.bincount(np.concatenate(sets), minlength=p) / len(sets)
    return share


def _verdict(change: Estimate | None) -> str:
    return "" if change is None else str(decide(change, MARGIN).verdict)


def _curve(
    precision: str, scope: str, own: SpecificationRow, rows: Sequence[SpecificationRow]
) -> Curve:
    areas = np.array([row.auroc.value for row in rows])
    changes = np.array([row.change.value for row in rows if row.change is not None])
    verdicts = np.array([row.verdict for row in rows])

    def share(verdict: str) -> float | None:
        return float((verdicts == verdict).mean()) if len(changes) else None

    def of_changes(summary: Callable[[np.ndarray], float]) -> float | None:
        return float(summary(changes)) if len(changes) else None

    return Curve(
        precision=precision,
        scope=scope,
        specifications=len(rows),
        auroc=own.auroc.value,
        auroc_median=float(np.median(areas)),
        auroc_least=float(areas.min()),
        auroc_most=float(areas.max()),
        better=float((areas > own.auroc.value).mean()),
        above_chance=float(np.mean([row.auroc.low > 0.5 for row in rows])),
        change=None if own.change is None else own.change.value,
        change_median=of_changes(np.median),
        change_least=of_changes(np.min),
        change_most=of_changes(np.max),
        verdict=own.verdict,
        same_verdict=share(own.verdict),
        preserved=share(Equivalence.PRESERVED),
        changed=share(Equivalence.CHANGED),
        undecided=share(Equivalence.UNDECIDED),
        jaccard_median=float(np.median([row.jaccard for row in rows])),
        jaccard_chance=float(np.median([row.jaccard_chance for row in rows])),
        rank_correlation_median=float(np.median([row.rank_correlation for row in rows])),
    )


def _influence(
    precision: str, choice: str, estimates: Mapping[Specification, EstimatedSpecification]
) -> Influence:
    levels = np.array([s.choices[choice] for s in estimates])
    areas = np.array([e.auroc.value for e in estimates.values()])
    changes = [e.change.value for e in estimates.values() if e.change is not None]
    auroc_low, auroc_high, auroc_range = _extremes(areas, levels)
    row = Influence(
        precision=precision,
        choice=choice,
        levels=len(np.unique(levels)),
        specifications=len(levels),
        auroc_share=share_between(areas, levels),
        auroc_range=auroc_range,
        auroc_low=auroc_low,
        auroc_high=auroc_high,
        change_share=None,
        change_range=None,
        change_low="",
        change_high="",
    )
    if not changes:
        return row
    low, high, between = _extremes(np.array(changes), levels, signed=True)
    return row.model_copy(
        update={
            "change_share": share_between(np.array(changes), levels),
            "change_range": between,
            "change_low": low,
            "change_high": high,
        }
    )


def _extremes(
    values: Float[np.ndarray, " n"], levels: np.ndarray, signed: bool = False
) -> tuple[str, str, float]:
    """The levels with the lowest and the highest mean, with the means, and their difference."""
    means = {str(level): float(values[levels == level].mean()) for level in np.unique(levels)}
    low, high = min(means, key=means.__getitem__), max(means, key=means.__getitem__)
    sign = "+" if signed else ""
    texts = [f"{level}: {means[level]:{sign}.3f}" for level in (low, high)]
    return texts[0], texts[1], means[high] - means[low]


def largest(influence: Sequence[Influence], column: str) -> Influence:
    """Return the choice with the largest range of a column: auroc or change."""
    return max(influence, key=lambda row: getattr(row, f"{column}_range"))
