"""Rows of the tables of information at one precision."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float, Int

from harness.experiments.information.nodes import Information, high_activation
from harness.experiments.information.section import InformationSection
from harness.experiments.information.tables import InformationRow, LayerRow, NeuronRow
from harness.stages.identify import Rows
from harness.tables.schema import Row
from hq.neurons.neuron_set import NeuronSet
from hq.probe.cross_fit import CrossFit
from hq.probe.held_out import mean_over_folds, require_selections
from hq.probe.regular import RegularNeurons
from hq.stats.equivalence import holm
from hq.stats.information import (
    column_corrections,
    column_information,
    information_statistic,
    miller_madow,
)
from hq.stats.intervals import Estimate, Statistic, Weights, estimate
from hq.stats.permutation import maximum_p
from hq.tracing.traces import Traces, magnitudes

_LAYER_DRAWS = 1000
_LEVEL = 0.05


@dataclass(frozen=True)
class InformationAnalysis:
    """The probes of the reference, and every neuron's information at one precision."""

    probes: CrossFit
    rows: Rows
    reference: Traces  # regular neurons match magnitudes at the reference
    traces: Traces
    information: Information
    section: InformationSection
    seed: int

    def __post_init__(self) -> None:
        require_selections(self.probes)
        info = self.traces.info
        self.neurons.require_present({*info.missing, *info.unmatched}, info.precision)

    @property
    def neurons(self) -> NeuronSet:
        """The FP16 set."""
        return self.probes.neurons

    def tables(self) -> dict[str, list[Row]]:
        """Return all rows of this precision by table."""
        return {
            "information": [self._information()],
            "neurons": [*self._neurons()],
            "layers": [*self._layers()],
        }

    def _information(self) -> InformationRow:
        chosen, of_all = self.neurons.flat_positive, self.information.corrected
        observed = float(of_all[chosen].mean())
        matched = of_all[self._regular.matched(chosen, self.section.draws, self.seed)].mean(axis=1)
        random = of_all[self._regular.random(len(chosen), self.section.draws, self.seed)].mean(
            axis=1
        )
        by_fold = [fold.probe.flat_positive for fold in self.probes.folds]
        held_out = self._estimate(self._mean_held_out(by_fold))
        draws = self._held_out_of_draws(by_fold)
        regular = np.delete(of_all, self.neurons.flat)
        family_wise = maximum_p(self.information.plug_in, self.information.maxima)
        return InformationRow(
            precision=self.traces.info.precision,
            n=len(self.rows.y),
            units=len(np.unique(self.rows.units)),
            quantile=self.section.quantile,
            h_neurons=len(chosen),
            information=self._estimate(self._mean(chosen)),
            chance=float(self.information.chance[chosen].mean()),
            matched=Estimate.of_draws(matched),
            matched_p=_share(matched, observed),
            random=Estimate.of_draws(random),
            random_p=_share(random, observed),
            held_out=held_out,
            held_out_matched=Estimate.of_draws(draws),
            held_out_p=_share(draws, held_out.value),
            significant=int((holm(self.information.p[chosen]) < _LEVEL).sum()),
            all_significant=int((family_wise < _LEVEL).sum()),
            all_above=int((regular > np.median(of_all[chosen])).sum()),
        )

    def _neurons(self) -> list[NeuronRow]:
        chosen, info = self.neurons.flat_positive, self.information
        layers = self._layer_of
        adjusted, family_wise = holm(info.p[chosen]), maximum_p(info.plug_in, info.maxima)
        rows = []
        for i, (neuron, flat) in enumerate(zip(self.neurons.positive, chosen, strict=True)):
            of_layer = info.corrected[self._regular.mask & (layers == neuron.layer)]
            rows.append(
                NeuronRow(
                    precision=self.traces.info.precision,
                    layer=neuron.layer,
                    expert=neuron.expert,
                    index=neuron.index,
                    weight=neuron.weight,
                    information=self._estimate(self._mean(np.array([flat]))),
                    plug_in=float(info.plug_in[flat]),
                    chance=float(info.chance[flat]),
                    p=float(info.p[flat]),
                    p_holm=float(adjusted[i]),
                    p_all=float(family_wise[flat]),
                    layer_share=float((of_layer < info.corrected[flat]).mean()),
                )
            )
        return rows

    def _layers(self) -> list[LayerRow]:
        of_all, layers = self.information.corrected, self._layer_of
        chosen = self.neurons.flat_positive
        means: list[float | None] = []
        shares: list[float | None] = []
        for layer in range(self.neurons.model.n_layers):
            h = chosen[layers[chosen] == layer]
            regular = of_all[self._regular.mask & (layers == layer)]
            means.append(float(of_all[h].mean()) if len(h) else None)
            if len(h):
                rng = np.random.default_rng((self.seed, layer))
                drawn = [
                    rng.choice(regular, len(h), replace=False).mean() for _ in range(_LAYER_DRAWS)
                ]
                shares.append(_share(np.array(drawn), float(of_all[h].mean())))
            else:
                shares.append(None)
        adjusted = iter(holm([share for share in shares if share is not None]).tolist())
        return [
            LayerRow(
                precision=self.traces.info.precision,
                layer=layer,
                h_neurons=int((layers[chosen] == layer).sum()),
                information=means[layer],
                regular=Estimate.of_draws(of_all[self._regular.mask & (layers == layer)]),
                p=shares[layer],
                p_holm=None if shares[layer] is None else next(adjusted),
            )
            for layer in range(self.neurons.model.n_layers)
        ]

    def _estimate(self, statistic: Statistic) -> Estimate:
        return estimate(statistic, len(self.rows.y), self.rows.units, "mutual information")

    def _mean(self, flats: Int[np.ndarray, " k"]) -> Statistic:
        """Mean corrected information of some neurons over all samples."""
        everyone = np.arange(len(self.rows.y))
        return mean_over_folds([flats], [everyone], self._of_neuron)

    def _mean_held_out(self, by_fold: Sequence[Int[np.ndarray, " k"]]) -> Statistic:
        return mean_over_folds(by_fold, self._rows_of_folds, self._of_neuron)

    def _held_out_of_draws(
        self, by_fold: Sequence[Int[np.ndarray, " k"]]
    ) -> Float[np.ndarray, " draws"]:
        """Mean corrected information of neurons that match those of each fold, on the fold."""
        totals = np.zeros(self.section.draws)
        for flats, rows in zip(by_fold, self._rows_of_folds, strict=True):
            drawn = self._regular.matched(flats, self.section.draws, self.seed)
            distinct, position = np.unique(drawn, return_inverse=True)
            high, y = self._high(distinct)[rows].T, self.rows.y[rows][None]
            values = (column_information(high, y) + column_corrections(high, y))[0]
            totals += values[position].reshape(drawn.shape).sum(axis=1)
        return totals / sum(map(len, by_fold))

    def _of_neuron(self, flat: int, rows: Int[np.ndarray, " m"]) -> Statistic:
        high, y = self._of_selected[flat][rows], self.rows.y[rows]
        plug_in, correction = information_statistic(high, y), miller_madow(high, y)

        def corrected(weights: Weights) -> Float[np.ndarray, " weightings"]:
            return plug_in(weights) + correction

        return corrected

    def _high(self, flats: Int[np.ndarray, " k"]) -> Bool[np.ndarray, "n k"]:
        matrix = self.traces.matrix(self.neurons.cett, self.neurons.tokens)
        return high_activation(matrix[:, flats], self.section.quantile)

    @cached_property
    def _of_selected(self) -> dict[int, Bool[np.ndarray, " n"]]:
        """High activation of the H-Neurons, and of those of the folds."""
        fits = (self.neurons, *(fold.probe for fold in self.probes.folds))
        flats = np.unique(np.concatenate([fit.flat_positive for fit in fits]))
        return dict(zip(flats.tolist(), self._high(flats).T, strict=True))

    @property
    def _rows_of_folds(self) -> list[Int[np.ndarray, " m"]]:
        folds = self.rows.folds
        return [np.flatnonzero(folds == fold) for fold in range(len(self.probes.folds))]

    @cached_property
    def _layer_of(self) -> Int[np.ndarray, " p"]:
        model = self.neurons.model
        return model.space.locate(np.arange(model.n_neurons)).layer

    @cached_property
    def _regular(self) -> RegularNeurons:
        everyone = np.arange(len(self.rows.y))
        size = magnitudes(self.reference, self.neurons.tokens, everyone)
        return RegularNeurons(self.neurons, size, self.traces.info.missing)


def _share(draws: Float[np.ndarray, " draws"], observed: float) -> float:
    """Return (1 + #{draw ≥ observed}) / (1 + draws)."""
    return float((1 + (draws >= observed).sum()) / (1 + len(draws)))
