"""Rows of the tables of detectors: AUROCs, paired differences, and nested models."""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float

from harness.experiments.detectors.registry import DETECTORS, H_NEURONS, Readings
from harness.experiments.detectors.tables import DetectorRow, NestedRow
from harness.stages.identify import Rows
from hq.errors import HQError
from hq.probe.stacking import CrossFittedScores, for_folds, log_losses, stacked
from hq.stats.auroc import estimate_auroc
from hq.stats.intervals import Estimate, estimate_mean
from hq.stats.paired import estimate_auroc_difference, holm, two_sided_p

Scored = Mapping[str, CrossFittedScores]


def score_all(readings: Readings, precision: str) -> Scored:
    """Return the scores of every detector. Raises HQError if a score is not finite."""
    scored = {name: DETECTORS[name].score(readings) for name in DETECTORS}
    for name, values in scored.items():
        if not np.isfinite(values.out_of_fold).all():
            raise HQError(
                f"{int((~np.isfinite(values.out_of_fold)).sum())} scores of the detector {name} at "
                f"{precision} are not finite: trace those answers again."
            )
    return scored


def detector_rows(
    precision: str, readings: Readings, before: Scored, after: Scored, responses: int
) -> list[DetectorRow]:
    """Return a row per detector; `before` are the scores at the reference."""
    rows = readings.rows
    probe = after[H_NEURONS].out_of_fold
    differences = {
        name: _difference(probe, scores.out_of_fold, rows) for name, scores in after.items()
    }
    adjusted = _holm({name: d for name, d in differences.items() if name != H_NEURONS})
    return [
        DetectorRow(
            precision=precision,
            detector=name,
            about=DETECTORS[name].about,
            fitted=DETECTORS[name].is_fitted,
            passes=responses if DETECTORS[name].passes == "responses" else DETECTORS[name].passes,
            numbers=DETECTORS[name].size(readings),
            n=len(rows.y),
            units=len(np.unique(rows.units)),
            auroc=estimate_auroc(scores.out_of_fold, rows.y, rows.units, rows.folds),
            change=_difference(scores.out_of_fold, before[name].out_of_fold, rows),
            probe_minus=differences[name],
            p=adjusted.get(name, 1.0),
        )
        for name, scores in after.items()
    ]


def nested_rows(precision: str, rows: Rows, scored: Scored) -> list[NestedRow]:
    """Return a row per detector other than the probe of H-Neurons."""
    probe = scored[H_NEURONS]
    probe_features = for_folds(probe.out_of_fold, probe.calibration)
    probe_alone = stacked(probe_features, rows.y, rows.folds)
    pending: dict[str, dict[str, Estimate]] = {}
    for name, scores in scored.items():
        if name == H_NEURONS:
            continue
        features = for_folds(scores.out_of_fold, scores.calibration)
        alone = stacked(features, rows.y, rows.folds)
        both = stacked(
            [np.column_stack(pair) for pair in zip(features, probe_features, strict=True)],
            rows.y,
            rows.folds,
        )
        pending[name] = {
            "auroc_both": estimate_auroc(both, rows.y, rows.units, rows.folds),
            "probe_adds": _difference(both, scores.out_of_fold, rows),
            "probe_adds_loss": _loss_gain(alone, both, rows),
            "detector_adds": _difference(both, probe.out_of_fold, rows),
            "detector_adds_loss": _loss_gain(probe_alone, both, rows),
        }
    adjusted = _holm({name: values["probe_adds_loss"] for name, values in pending.items()})
    units = len(np.unique(rows.units))
    return [
        NestedRow(
            precision=precision,
            detector=name,
            n=len(rows.y),
            units=units,
            probe_p=adjusted[name],
            **values,
        )
        for name, values in pending.items()
    ]


def _holm(differences: Mapping[str, Estimate]) -> dict[str, float]:
    p_values = [two_sided_p(difference) for difference in differences.values()]
    return dict(zip(differences, holm(p_values).tolist(), strict=True))


def _difference(
    one: Float[np.ndarray, " n"], other: Float[np.ndarray, " n"], rows: Rows
) -> Estimate:
    return estimate_auroc_difference(one, other, rows.y, rows.units, rows.folds)


def _loss_gain(
    before: Float[np.ndarray, " n"], after: Float[np.ndarray, " n"], rows: Rows
) -> Estimate:
    gains = log_losses(before, rows.y) - log_losses(after, rows.y)
    return estimate_mean(gains, rows.units)
