"""Bench `identify`: rules for the choice of C on planted neurons, and the speed of cross-fitting.

Each data set has a few neurons that determine the label, many neurons that identify a unit, common
factors, and units of very different sizes, which also shift the label.
"""

import warnings
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from harness.bench.base import BenchRow, seconds_of
from harness.bench.l1 import synthetic
from hq.neurons.features import Features, standardise
from hq.neurons.neuron_set import ModelIdentity
from hq.probe.cross_fit import cross_fit
from hq.probe.l1 import TOLERANCE, Columns, l1_path, l1_paths, objective, smallest_c, warm_up
from hq.probe.matrix import InMemory
from hq.probe.regularisation import CurvePoint, Design, choose_c, fit_at

OLD, RULE = "old", "one_se"
_EFFECTS = (0.2, 0.35, 0.6)
_FACTORS, _PLANTED, _IDENTIFY_UNIT = 30, 15, 200
_FOLDS, _REPEATS = 5, 3
_CAP = 60  # more neurons than any rule selects
_LAYERS = 30


class Recovery(NamedTuple):
    """How a selection compares with the planted neurons."""

    neurons: int
    precision: float
    recall: float

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall."""
        total = self.precision + self.recall
        return 2 * self.precision * self.recall / total if total else 0.0


def bench_identify(
    seeds: int = 8, n: int = 1200, p: int = 5000, speed_n: int = 1600, speed_p: int = 46080
) -> list[BenchRow]:
    """Compare rules for C, and time a cross-fit and a path. Takes about 5 minutes and 2 GB.

    Args:
        seeds: Number of data sets per effect size.
        n: Number of responses of a data set.
        p: Number of neurons of a data set.
        speed_n: Number of responses of the timed fits.
        speed_p: Number of neurons of the timed fits, a multiple of 30.
    """
    compiled = warm_up()
    rows, ratios = [], []
    for effect in _EFFECTS:
        of_seeds = [compare_rules(*planted(seed, effect, n, p), seed) for seed in range(seeds)]
        means = {rule: _mean([of_seed[rule] for of_seed in of_seeds]) for rule in of_seeds[0]}
        rows += [_recovery_row(rule, effect, mean) for rule, mean in means.items()]
        ratios.append((means[RULE].f1, means[OLD].f1))
    ours, old = (sum(column) for column in zip(*ratios, strict=True))
    return [
        *rows,
        BenchRow(
            name="f1_over_old_rule",
            value=ours / old if old else float("inf"),
            unit="x",
            goal=">= 1.2",
            note=f"mean F1 of {RULE} over that of {OLD}, all effects, {seeds} data sets of each",
        ),
        *_speed(speed_n, speed_p, compiled),
    ]


def planted(
    seed: int, effect: float, n: int, p: int, units: int = 98
) -> tuple[Design, Int[np.ndarray, " k"]]:
    """Return a simulated design, and the indices of the neurons that determine its labels.

    Args:
        seed: Seed of the data set.
        effect: Mean absolute change of the log odds per standard deviation of a planted neuron.
        n: Number of responses.
        p: Number of neurons.
        units: Number of units; a few of them hold most of the responses.
    """
    rng = np.random.default_rng(seed)
    sizes = rng.pareto(1.2, units) + 0.3
    unit = rng.choice(units, size=n, p=sizes / sizes.sum())
    loadings = 0.18 * rng.standard_normal((_FACTORS, p))
    X = rng.standard_normal((n, _FACTORS)) @ loadings + rng.standard_normal((n, p))
    neurons = rng.permutation(p)
    truth = np.sort(neurons[:_PLANTED])
    identifying = neurons[_PLANTED : _PLANTED + min(_IDENTIFY_UNIT, p // 4)]
    X[:, identifying] += 1.5 * rng.standard_normal((units, len(identifying)))[unit]
    signed = rng.choice([-1, 1], _PLANTED) * rng.uniform(0.6, 1.4, _PLANTED)
    odds = X[:, truth] @ (effect * signed) + 0.6 * rng.standard_normal(units)[unit]
    y = (odds + rng.logistic(size=n) > 0).astype(np.int64)
    scaled = standardise(X)
    return Design(
        InMemory(scaled.Z), scaled.mean, scaled.scale, y, unit, np.ones(n, dtype=bool)
    ), truth


def compare_rules(design: Design, truth: Int[np.ndarray, " k"], seed: int) -> dict[str, Recovery]:
    """Return what each rule for C recovers of the planted neurons.

    - `old`: best AUROC of one cross-validation, on a random half of the units
    - `best_auroc`: best mean AUROC of three cross-validations, on all units
    - `deviance`: smallest mean deviance of the same
    - `one_se`: smallest C within one standard error of the best mean AUROC: the rule of hq
    """
    units = np.random.default_rng(seed).permutation(np.unique(design.groups))
    half = np.flatnonzero(np.isin(design.groups, units[: len(units) // 2]))
    first = choose_c(design, half, _CAP, _FOLDS, 1, seed)
    choice = choose_c(design, design.all_rows, _CAP, _FOLDS, _REPEATS, seed)
    everything = design.all_rows
    return {
        OLD: _recovery(design, half, _best(first.curve, lambda point: point.auroc), truth),
        "best_auroc": _recovery(
            design, everything, _best(choice.curve, lambda point: point.auroc), truth
        ),
        "deviance": _recovery(
            design, everything, _best(choice.curve, lambda point: -point.deviance), truth
        ),
        RULE: _compared(choice.coef, truth),
    }


def _best(curve: Sequence[CurvePoint], value: Callable[[CurvePoint], float]) -> float:
    return max(curve, key=value).C


def _recovery(
    design: Design, rows: Int[np.ndarray, " m"], C: float, truth: Int[np.ndarray, " k"]
) -> Recovery:
    ((_, coef, _),) = fit_at(design, [rows], [C])
    return _compared(coef, truth)


def _compared(coef: Float[np.ndarray, " p"], truth: Int[np.ndarray, " k"]) -> Recovery:
    selected = np.flatnonzero(coef)
    common = len(np.intersect1d(selected, truth))
    return Recovery(len(selected), common / max(len(selected), 1), common / len(truth))


def _mean(recoveries: Sequence[Recovery]) -> Recovery:
    """The mean of each; F1 is then that of the mean precision and recall."""
    sizes, precision, recall = (float(np.mean(column)) for column in zip(*recoveries, strict=True))
    return Recovery(round(sizes), precision, recall)


def _recovery_row(rule: str, effect: float, mean: Recovery) -> BenchRow:
    return BenchRow(
        name=f"f1_{rule}_at_{effect:g}",
        value=mean.f1,
        unit="F1",
        note=f"precision {mean.precision:.2f}, recall {mean.recall:.2f}, {mean.neurons} neurons "
        f"for {_PLANTED} planted ones",
    )


def _speed(n: int, p: int, compiled: float) -> list[BenchRow]:
    X, y = synthetic(0, n, p)
    groups = np.arange(n) // 8
    folds = groups % _FOLDS
    model = ModelIdentity(
        name="synthetic",
        fingerprint="bench",
        architecture="none",
        n_layers=_LAYERS,
        d_ff=p // _LAYERS,
    )
    features = Features(X, "sum", "answer", model, "fp16")
    fraction = max(1e-3, 20 / p)  # the default, and room for some neurons at small sizes
    whole = seconds_of(
        lambda: cross_fit(features, y, groups, folds, repeats=_REPEATS, max_fraction=fraction)
    )
    Z = standardise(X).Z
    del X, features
    grid = smallest_c(Z, y) * np.geomspace(1.1, 100, 48)
    path = l1_path(Z, y, grid.tolist(), max_nonzero=int(fraction * p))
    Cs = path.Cs.tolist()
    one = seconds_of(lambda: l1_path(Z, y, Cs))
    weights: list[Float[np.ndarray, " p1"]] = []
    one_full = seconds_of(lambda: weights.extend(full_matrix_path(Z, y, Cs)))
    trains = [np.flatnonzero(folds != fold) for fold in range(_FOLDS)]
    labels = [y[train] for train in trains]
    all_folds = seconds_of(lambda: l1_paths(Columns.parts(Z, trains), labels, [Cs] * len(trains)))
    all_folds_full = seconds_of(
        lambda: [
            full_matrix_path(standardise(Z[train]).Z, of_fold, Cs)
            for train, of_fold in zip(trains, labels, strict=True)
        ]
    )
    gaps = [
        objective(Z, y, coef, float(b), C) / objective(Z, y, w[:-1], float(w[-1]), C) - 1
        for C, coef, b, w in zip(Cs, path.coefs, path.intercepts, weights, strict=True)
    ]
    return [
        BenchRow(
            name="cross_fit_s",
            value=whole,
            unit="s",
            note=f"{n} responses, {p} neurons, {_FOLDS} folds, {_REPEATS} repeats; compiling "
            f"took {compiled:.1f} s more",
        ),
        BenchRow(
            name="path_speedup_over_full_matrix",
            value=one_full / one,
            unit="x",
            goal=">= 2",
            note=f"one path of {len(Cs)} values of C up to the cap: {one:.2f} s on working sets, "
            f"{one_full:.2f} s on all columns",
        ),
        BenchRow(
            name="folds_speedup_over_full_matrix",
            value=all_folds_full / all_folds,
            unit="x",
            goal=">= 5",
            note=f"the same path in {_FOLDS} folds: {all_folds:.2f} s together, "
            f"{all_folds_full:.2f} s one by one on a standardised copy of the rows",
        ),
        BenchRow(
            name="path_objective_gap_relative",
            value=max(gaps),
            unit="relative",
            goal="<= 1e-4",
            note="largest excess of the objective over that of the path on all columns",
        ),
    ]


def full_matrix_path(
    Z: Float[np.ndarray, "n p"], y: Int[np.ndarray, " n"], Cs: Sequence[float]
) -> list[Float[np.ndarray, " p1"]]:
    """Fit each C by skglm on all columns, warm-started; the intercept is last."""
    from skglm.penalties import L1
    from skglm.solvers import ProxNewton
    from sklearn.exceptions import ConvergenceWarning

    from hq.probe.datafit import StableLogistic

    signs = np.where(y == 1, 1, -1).astype(np.float32)
    w = np.zeros(Z.shape[1] + 1, dtype=np.float32)
    weights = []
    for C in Cs:
        alpha = 1 / (C * len(y))
        solver = ProxNewton(tol=TOLERANCE * alpha, max_iter=50, max_pn_iter=50, fit_intercept=True)
        with warnings.catch_warnings():
            # A fit that stops early has a larger objective, which the gap shows.
            warnings.simplefilter("ignore", ConvergenceWarning)
            w, _, _ = solver.solve(
                Z, signs, StableLogistic(), L1(alpha), w.copy(), Z @ w[:-1] + w[-1]
            )
        weights.append(w.copy())
    return weights
