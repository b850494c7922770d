"""Comparison of one precision with FP16, as rows of the result tables.

Three results are separate: the frozen FP16 probe at the precision, the same probe with a threshold
transferred without labels, and neurons re-identified at the precision.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int, Shaped

from harness.experiments.detect.alarms import alarms
from harness.experiments.detect.tables import (
    Alarm,
    AlignmentRow,
    ControlRow,
    Detection,
    Fidelity,
    ModelRow,
)
from harness.stages import mapping
from harness.stages.identify import THRESHOLD, Rows, require_same_tokens
from harness.stages.samples import Sample
from harness.stages.uncertainty import Uncertainty, perplexity
from harness.studies.study import CompareSection
from harness.tables.schema import Row
from hq.errors import HQError
from hq.models.audit import AuditRow
from hq.neurons.features import Features
from hq.neurons.neuron_set import NeuronSet
from hq.probe.controls import (
    control_auroc,
    magnitude_ratio,
    matched_neurons,
    outliers,
    random_neurons,
    ridge_probe,
)
from hq.probe.fidelity import correlation, over_draws, over_questions, rank_change, relative_error
from hq.probe.overlap import expected_jaccard, jaccard, overlap_p_value
from hq.stats.bootstrap import (
    Estimate,
    bootstrap,
    bootstrap_auroc,
    bootstrap_auroc_difference,
    bootstrap_mean,
)
from hq.stats.thresholds import bootstrap_f1, match_quantile
from hq.tracing.traces import Traces, magnitudes

MIB = 2**20
ANY = 1000  # neurons that represent the whole model


@dataclass(frozen=True)
class Comparison:
    """Traces and neurons of a precision and of the reference, on the same samples.

    Intervals resample components of the samples, which are independent; questions about one entity
    are not.
    """

    samples: list[Sample]
    neurons: NeuronSet
    reference: Traces
    variant: Traces
    reidentified: NeuronSet
    uncertainty: Uncertainty | None  # None if only traces are given
    section: CompareSection
    seed: int
    text_components: Sequence[str] | None = None  # of the held-out texts; None if all differ

    def __post_init__(self) -> None:
        for traces in (self.reference, self.variant):
            require_same_tokens(traces, self.samples)
            _require_model(traces, self.neurons)
        info = self.variant.info
        self.neurons.require_present(info.unmatched, info.precision)
        if THRESHOLD not in self.neurons.thresholds:
            raise HQError(
                f"The neuron set has no threshold {THRESHOLD!r}: identify it with `hq identify`."
            )

    def tables(self) -> dict[str, list[Row]]:
        """Return all rows of this precision by table."""
        return {
            "detection": [self.detection()],
            "alarms": [*self.alarms()],
            "controls": [*self.controls()],
            "fidelity": [*self.fidelity()],
            "model": [] if self.uncertainty is None else [self.model(self.uncertainty)],
        }

    def detection(self) -> Detection:
        """Return the three results on the test split."""
        before, after, y = self._before, self._after, self._y
        threshold = self.neurons.thresholds[THRESHOLD]
        calibration = self._rows.calibration
        transferred = match_quantile(
            threshold, self._before_all[calibration], self._after_all[calibration]
        )
        common = len(np.intersect1d(self.neurons.flat, self.reidentified.flat))
        sizes = len(self.neurons.flat), len(self.reidentified.flat), self.neurons.model.n_neurons
        return Detection(
            precision=self.variant.info.precision,
            compute=self.variant.info.compute,
            n=len(y),
            entities=self._entities,
            seed=self.seed,
            neurons=sizes[0],
            h_neurons=len(self.neurons.positive),
            per_mille=1000 * sizes[0] / sizes[2],
            auroc=bootstrap_auroc(after, y, *self._draw),
            auroc_change=bootstrap_auroc_difference(after, before, y, *self._draw),
            auroc_h=bootstrap_auroc(self._h_only, y, *self._draw),
            accuracy=self._accuracy(threshold),
            f1=bootstrap_f1(after, y, threshold, *self._draw),
            accuracy_recalibrated=self._accuracy(transferred),
            f1_recalibrated=bootstrap_f1(after, y, transferred, *self._draw),
            flips=bootstrap_mean((after >= threshold) != (before >= threshold), *self._draw),
            auroc_again=bootstrap_auroc(
                self.reidentified.score(self._variant_cett[self._rows.test]), y, *self._draw
            ),
            neurons_again=sizes[1],
            common=common,
            jaccard=jaccard(self.neurons.flat, self.reidentified.flat),
            jaccard_chance=expected_jaccard(*sizes),
            overlap_p=overlap_p_value(common, *sizes),
        )

    def alarms(self) -> Iterator[Alarm]:
        """Yield the rates on the test split of thresholds that promise a false-alarm rate."""
        return alarms(
            self.samples,
            self._rows,
            self._before_all,
            self._after_all,
            self.variant.info.precision,
            self.seed,
        )

    def controls(self) -> list[ControlRow]:
        """Return probes on random and matched neurons and on other features, fitted here."""
        return [
            *(self._drawn(name, draws) for name, draws in self._draws.items()),
            *(self._baseline(name, features) for name, features in self._baselines.items()),
        ]

    def fidelity(self) -> list[Fidelity]:
        """Return the change of contributions of probe, H-, matched and arbitrary neurons."""
        span, test = self.neurons.tokens, self._rows.test
        a = self.reference.matrix("contribution", span)[test]
        b = self.variant.matrix("contribution", span)[test]
        return [
            self._fidelity(a, b, "probe", self.neurons.flat),
            self._fidelity(a, b, "h_neurons", self.neurons.flat_positive),
            self._fidelity(a, b, "matched", self._draws["matched"]),
            self._fidelity(a, b, "any", self._any),
        ]

    def model(self, u: Uncertainty) -> ModelRow:
        """Return what ran, and how much its outputs differ from the reference's."""
        audit = self.variant.info.audit
        share = u.tokens / u.tokens.sum()
        groups = None if self.text_components is None else np.array(self.text_components)
        draw = (self.seed, self.section.replicates, groups)
        loss = perplexity(u.nll, u.tokens, *draw)
        divergence = bootstrap(lambda w: w @ (u.kl * share) / (w @ share), len(share), *draw, "KL")
        return ModelRow(
            precision=self.variant.info.precision,
            modules=_modules(audit),
            storage=storage(audit),
            bits_per_weight=sum(row.bits_per_weight * row.weights for row in audit)
            / sum(row.weights for row in audit),
            weights_mib=self.variant.info.weight_bytes / MIB,
            n=len(share),
            entities=loss.n,
            seed=self.seed,
            perplexity=loss,
            kl=divergence,
        )

    def _accuracy(self, threshold: float) -> Estimate:
        return bootstrap_mean((self._after >= threshold) == (self._y == 1), *self._draw)

    def _fidelity(
        self,
        a: Float[np.ndarray, "test p"],
        b: Float[np.ndarray, "test p"],
        group: str,
        neurons: Int[np.ndarray, "*draws k"],
    ) -> Fidelity:
        """Return a row of these neurons, or of draws of neurons."""
        flat, columns = np.unique(neurons, return_inverse=True)
        measures = {
            "correlation": correlation(a[:, flat], b[:, flat]),
            "relative_error": relative_error(a[:, flat], b[:, flat]),
            "rank_change": rank_change(a, b, flat, self.neurons.model.space),
        }
        estimates = {
            name: over_questions(measure, len(a), name, *self._draw)
            if neurons.ndim == 1
            else over_draws(measure, len(a), name, columns, self.seed)
            for name, measure in measures.items()
        }
        return Fidelity(
            precision=self.variant.info.precision,
            group=group,
            neurons=neurons.shape[-1],
            draws=1 if neurons.ndim == 1 else len(neurons),
            magnitude=magnitude_ratio(neurons, self.neurons.flat, self._magnitudes),
            n=len(a),
            entities=self._entities,
            seed=self.seed,
            **estimates,
        )

    def _drawn(self, name: str, draws: Int[np.ndarray, "draws k"]) -> ControlRow:
        X, y, (train, test) = self._variant_cett.values, self._rows.y, self._fitted
        control = control_auroc(X[train], y[train], X[test], y[test], draws, self.seed)
        return self._control(name, len(draws), control.estimate, control.decisions)

    def _baseline(self, name: str, features: Float[np.ndarray, "n q"]) -> ControlRow:
        train, test = self._fitted
        probe = ridge_probe(features[train], self._rows.y[train])
        decisions = probe.decision_function(features[test])
        estimate = bootstrap_auroc(decisions, self._y, *self._draw)
        return self._control(name, 1, estimate, decisions)

    def _control(
        self, name: str, draws: int, auroc: Estimate, decisions: Float[np.ndarray, "*draws n"]
    ) -> ControlRow:
        return ControlRow(
            precision=self.variant.info.precision,
            control=name,
            n=len(self._y),
            entities=self._entities,
            draws=draws,
            seed=self.seed,
            auroc=auroc,
            probe_minus_control=bootstrap_auroc_difference(
                self._after, decisions, self._y, *self._draw
            ),
        )

    @property
    def _draw(self) -> tuple[int, int, Shaped[np.ndarray, " test"]]:
        """Arguments of an interval: seed, replicates, and the component of each test row."""
        return self.seed, self.section.replicates, self._rows.components[self._rows.test]

    @property
    def _entities(self) -> int:
        return len(np.unique(self._rows.components[self._rows.test]))

    @cached_property
    def _rows(self) -> Rows:
        return Rows(self.samples)

    @property
    def _fitted(self) -> tuple[Int[np.ndarray, " train"], Int[np.ndarray, " test"]]:
        return self._rows.train, self._rows.test

    @property
    def _y(self) -> Int[np.ndarray, " test"]:
        return self._at(self._rows.y, self._rows.test)

    @cached_property
    def _variant_cett(self) -> Features:
        return self.variant.features(self.neurons.cett, self.neurons.tokens)

    @cached_property
    def _before_all(self) -> Float[np.ndarray, " n"]:
        return self.neurons.score(self.reference.features(self.neurons.cett, self.neurons.tokens))

    @cached_property
    def _after_all(self) -> Float[np.ndarray, " n"]:
        return self.neurons.score(self._variant_cett)

    @property
    def _before(self) -> Float[np.ndarray, " test"]:
        return self._at(self._before_all, self._rows.test)

    @property
    def _after(self) -> Float[np.ndarray, " test"]:
        return self._at(self._after_all, self._rows.test)

    @staticmethod
    def _at(values: np.ndarray, rows: Int[np.ndarray, " row"]) -> np.ndarray:
        chosen: np.ndarray = values[rows]
        return chosen

    @property
    def _h_only(self) -> Float[np.ndarray, " test"]:
        """Scores by the positive weights only."""
        h_neurons = self.neurons.model_copy(update={"neurons": self.neurons.positive})
        return h_neurons.score(self._variant_cett[self._rows.test])

    @cached_property
    def _magnitudes(self) -> Float[np.ndarray, " p"]:
        """Mean contribution of each neuron at FP16 on the training rows."""
        return magnitudes(self.reference, self.neurons.tokens, self._rows.train)

    @cached_property
    def _draws(self) -> dict[str, Int[np.ndarray, "draws k"]]:
        flat, model = self.neurons.flat, self.neurons.model
        draws, seed = self.section.draws, self.seed
        missing = np.array(self.variant.info.missing, dtype=np.int64)
        extreme = np.flatnonzero(outliers(self._magnitudes))
        exclude = np.union1d(np.union1d(flat, extreme), missing)
        return {
            "random": random_neurons(len(flat), model.n_neurons, draws, seed, exclude),
            "matched": matched_neurons(
                flat, self._magnitudes, model.space, draws, seed, exclude=missing
            ),
        }

    @property
    def _any(self) -> Int[np.ndarray, " k"]:
        """Neurons that depend only on the seed, so that they are the same for another probe."""
        p, missing = self.neurons.model.n_neurons, self.variant.info.missing
        return random_neurons(min(ANY, p - len(missing)), p, 1, self.seed, missing).ravel()

    @property
    def _baselines(self) -> dict[str, Float[np.ndarray, "n q"]]:
        lengths = [[len(s.response_ids), len(s.text)] for s in self.samples]
        relations = np.array([s.relation for s in self.samples])
        baselines = {
            "length": np.array(lengths, dtype=float),
            "relation": (relations[:, None] == np.unique(relations)).astype(float),
        }
        if self.uncertainty is not None:
            baselines["entropy"] = self.uncertainty.entropy[:, None]
        return baselines


def _modules(audit: Sequence[AuditRow]) -> str:
    counts: Counter[str] = Counter()
    for row in audit:
        counts[row.module] += row.count
    return " + ".join(f"{count} × {module}" for module, count in counts.items())


def storage(audit: Sequence[AuditRow]) -> str:
    """Return the storage type of the weights, or the number of each type per module."""
    if len({row.storage for row in audit}) == 1:
        return audit[0].storage
    types: dict[str, list[str]] = defaultdict(list)
    for row in audit:
        types[row.module].append(f"{row.count} × {row.storage}")
    return ", ".join(f"{module} {' + '.join(counted)}" for module, counted in types.items())


def _require_model(traces: Traces, neurons: NeuronSet) -> None:
    neurons.require(traces.info.model, f"The neuron set that {traces.folder} is compared by")


def alignment(folder: Path, precision: str, probe: Sequence[tuple[int, int]]) -> AlignmentRow:
    """Return the row of table `mapping`, from the output of stage `map`."""
    layers, neurons = mapping.rows(folder), mapping.read(folder)
    kinds = Counter(row.relation for row in layers)
    errors = np.array([row.error for row in layers])
    low, high = mapping.quantiles(neurons.permutation, neurons.factors)
    matched = neurons.by_layer(neurons.matched)
    return AlignmentRow(
        precision=precision,
        layers=", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items())),
        bits=min(row.bits for row in layers),
        error=float(np.median(errors)),
        error_worst=float(errors.max()),
        worst=int(errors.argmax()),
        found=float(neurons.matched.mean()),
        probe=len(probe),
        probe_found=sum(bool(matched[layer][index]) for layer, index in probe),
        h_low=low,
        h_high=high,
    )
