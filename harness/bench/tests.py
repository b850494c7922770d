"""Bench `tests`: how often tests of two detectors reject a hypothesis, in simulations.

A test at 5% should reject a true hypothesis in at most 5% of data sets. Data are the scores of two
or more detectors, or of one at two precisions, on the same rows; they share a part of their noise.
`python -m harness.bench.tests docs [RUNS]` writes the results to docs/levels.csv, and the table of
docs/statistics.md.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from enum import StrEnum
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
from jaxtyping import Float

from harness.bench.base import BenchRow
from harness.bench.simulated import (
    CORRELATIONS,
    SHIFT,
    SIZES,
    Design,
    area_by_unit,
    area_of,
    latent,
    of_rows,
    shift_of,
    write_results,
)
from hq.stats.equivalence import Equivalence, permutation_p
from hq.stats.intervals import Estimate, clopper_pearson, estimate
from hq.stats.paired import decide, delong, holm, mcnemar, smallest_detectable, two_sided_p

NAME = "levels"
LEVEL, POWER = 0.05, 0.8
MARGIN = 0.02  # of AUROC, as in table `detection`
_DETECTORS, _PRECISIONS = 0.5, 0.9  # correlation of the noise of two of them, of rows and of units
_PERMUTATIONS = 199
_THRESHOLD = SHIFT / 2  # both classes have the same accuracy
_FAMILY = (SHIFT,) * 5 + (1.0, 1.0)  # a reference, four equal detectors, two with AUROC 0.76
_PILOTS = 20  # data sets for the mean of the smallest detectable difference

Rejections = Mapping[str, bool]


class Promise(StrEnum):
    """What the share of rejections should be."""

    LEVEL = "at most 0.05"
    DETECTED = "about 0.8"
    POWER = "power"  # the larger, the better
    NONE = "none"  # an assumption of the test does not hold


class Test(NamedTuple):
    """A test, and what it promises under a hypothesis."""

    name: str
    promise: Promise
    of_rows: bool = False  # whether it assumes independent rows

    def promises(self, design: Design) -> Promise:
        """Return what it promises for data sets of this design."""
        return Promise.NONE if self.of_rows and design.correlation > 0 else self.promise


class Hypothesis(NamedTuple):
    """What is true in simulated data sets, and which tests are applied to them."""

    truth: str
    reject: Callable[[Design, np.random.Generator], Rejections]  # by name of the test
    tests: tuple[Test, ...]
    designs: tuple[Design, ...]


class Level(NamedTuple):
    """How often a test rejected in the data sets of one design."""

    test: str
    truth: str
    sizes: str
    units: int
    rows: int
    correlation: float
    promise: str
    runs: int
    rejected: int

    @property
    def share(self) -> float:
        """Share of the data sets in which the test rejected."""
        return self.rejected / self.runs

    @property
    def broken(self) -> bool:
        """Whether the 95% interval of the share excludes what the test promises."""
        low, high = clopper_pearson(self.rejected, self.runs)
        if self.promise == Promise.LEVEL:
            return low > LEVEL
        return self.promise == Promise.DETECTED and not low <= POWER <= high


def bench_tests(runs: int = 100) -> list[BenchRow]:
    """Measure how often each test rejects, over unit sizes and correlations.

    Takes about 3 minutes.

    Args:
        runs: Simulated data sets per combination.
    """
    rows = levels(combinations(), runs)
    return [
        _bench_row([row for row in rows if (row.truth, row.test, row.promise) == name])
        for name in dict.fromkeys((row.truth, row.test, row.promise) for row in rows)
    ]


def _bench_row(rows: Sequence[Level]) -> BenchRow:
    shares = [row.share for row in rows]
    promise = Promise(rows[0].promise)
    goals = {Promise.LEVEL: "<= 0.07", Promise.DETECTED: ">= 0.6"}
    return BenchRow(
        name=f"{rows[0].test}; {rows[0].truth}",
        value=float(np.mean(shares)),
        unit="",
        goal=goals.get(promise),
        note=f"share rejected, promise: {promise}; in {len(rows)} designs {min(shares):.3f} to "
        f"{max(shares):.3f}",
    )


def combinations() -> list[tuple[Hypothesis, Design]]:
    """Return each hypothesis with its designs."""
    return [(hypothesis, design) for hypothesis in HYPOTHESES for design in hypothesis.designs]


def levels(chosen: Sequence[tuple[Hypothesis, Design]], runs: int) -> list[Level]:
    """Simulate data sets, and count in how many of them each test rejects.

    Args:
        chosen: Hypotheses with their designs.
        runs: Simulated data sets per combination; the seed of run r is r.
    """
    rows = []
    for hypothesis, design in chosen:
        outcomes = [hypothesis.reject(design, np.random.default_rng(run)) for run in range(runs)]
        for test in hypothesis.tests:
            rows.append(
                Level(
                    test=test.name,
                    truth=hypothesis.truth,
                    sizes=design.sizes,
                    units=len(SIZES[design.sizes]),
                    rows=len(design.units),
                    correlation=design.correlation,
                    promise=test.promises(design).value,
                    runs=runs,
                    rejected=sum(outcome[test.name] for outcome in outcomes),
                )
            )
    return rows


def _detectors(
    design: Design, rng: np.random.Generator, shifts: Sequence[float], common: float = _DETECTORS
) -> Float[np.ndarray, "k row"]:
    """Return scores with these shifts of the positives.

    Rows of a unit and class share a part of their noise. The noise of two scores, of rows and of
    units, has the correlation `common`, so that their difference depends on units too.
    """
    noise, *others = (sum(latent(design, rng, by_class=True)) for _ in range(len(shifts) + 1))
    shared, scale = np.sqrt(common) * noise, np.sqrt(1 - common)
    return np.stack(
        [
            shared + scale * own + shift * design.labels
            for own, shift in zip(others, shifts, strict=True)
        ]
    )


def _difference(
    scores: Float[np.ndarray, "k row"], design: Design, first: int = 0, second: int = 1
) -> Estimate:
    """Return what `estimate_auroc_difference` would, with the folds as strata."""
    statistic = area_by_unit(
        [scores[first], scores[second]], design.labels, design.units, (1, -1), design.folds
    )
    by_row = of_rows(statistic, design.units)
    return estimate(by_row, len(design.units), design.units, "difference of AUROCs")


def _reject_equality(design: Design, rng: np.random.Generator) -> Rejections:
    scores = _detectors(design, rng, (SHIFT, SHIFT))
    first, second = (scores >= _THRESHOLD) == design.labels
    by_unit = mcnemar(first, second, design.units)
    p_values = {
        "DeLong": two_sided_p(delong(scores, design.labels).difference(0, 1)),
        "jackknife t, AUROCs within folds": two_sided_p(_difference(scores, design)),
        "McNemar": mcnemar(first, second).p,
        "McNemar by unit": by_unit.p,
        "jackknife t, accuracies": two_sided_p(by_unit.difference),
    }
    return {name: p <= LEVEL for name, p in p_values.items()}


def _reject_chance(design: Design, rng: np.random.Generator) -> Rejections:
    (scores,) = _detectors(design, rng, (0.0,))
    seed = int(rng.integers(2**32))
    return {"permutation": permutation_p(scores, design.labels, seed, _PERMUTATIONS) <= LEVEL}


def _reject_in_family(design: Design, rng: np.random.Generator) -> Rejections:
    """Compare a reference with all others, and say whether a true hypothesis is rejected."""
    scores = _detectors(design, rng, _FAMILY)
    others = range(1, len(_FAMILY))
    p = np.array([two_sided_p(_difference(scores, design, other, 0)) for other in others])
    true = np.array([_FAMILY[other] == SHIFT for other in others])
    return {
        "Holm": bool((holm(p)[true] <= LEVEL).any()),
        "without correction": bool((p[true] <= LEVEL).any()),
    }


def _change(change: float, design: Design, rng: np.random.Generator) -> Estimate:
    """Return the estimated change of the AUROC at another precision that changes it by `change`."""
    shifts = (shift_of(area_of(SHIFT) + change), SHIFT)
    return _difference(_detectors(design, rng, shifts, _PRECISIONS), design)


def _reject_margin(change: float, design: Design, rng: np.random.Generator) -> Rejections:
    verdict = decide(_change(change, design, rng), MARGIN).verdict
    return {"TOST, AUROCs within folds": verdict is Equivalence.PRESERVED}


def _reject_detectable(sign: int, design: Design, rng: np.random.Generator) -> Rejections:
    p = two_sided_p(_change(sign * _detectable(design), design, rng))
    return {"jackknife t, AUROCs within folds": p <= LEVEL}


@cache
def _detectable(design: Design) -> float:
    """Return the mean smallest detectable change of the AUROC over data sets without a change."""
    rngs = (np.random.default_rng((1, pilot)) for pilot in range(_PILOTS))
    return float(np.mean([smallest_detectable(_change(0.0, design, rng)) for rng in rngs]))


_SINGLE = Design("single rows", 0.0)
_ALL = (*(Design(s, c) for s in ("knowledge", "facts") for c in CORRELATIONS), _SINGLE)
_SOME = tuple(Design(sizes, 0.3) for sizes in ("knowledge", "facts"))
HYPOTHESES = (
    Hypothesis(
        "two equal detectors",
        _reject_equality,
        (
            Test("DeLong", Promise.LEVEL, of_rows=True),
            Test("jackknife t, AUROCs within folds", Promise.LEVEL),
            Test("McNemar", Promise.LEVEL, of_rows=True),
            Test("McNemar by unit", Promise.LEVEL),
            Test("jackknife t, accuracies", Promise.LEVEL),
        ),
        _ALL,
    ),
    Hypothesis(
        "two equal precisions",
        partial(_reject_margin, 0.0),
        (Test("TOST, AUROCs within folds", Promise.POWER),),
        _ALL,
    ),
    Hypothesis(
        f"the AUROC falls by the margin, {MARGIN}",
        partial(_reject_margin, -MARGIN),
        (Test("TOST, AUROCs within folds", Promise.LEVEL),),
        _ALL,
    ),
    *(
        Hypothesis(
            f"the AUROC {verb} by the smallest detectable difference",
            partial(_reject_detectable, sign),
            (Test("jackknife t, AUROCs within folds", Promise.DETECTED),),
            _ALL,
        )
        for verb, sign in (("falls", -1), ("rises", 1))
    ),
    Hypothesis(
        "four of six detectors equal the reference",
        _reject_in_family,
        (Test("Holm", Promise.LEVEL), Test("without correction", Promise.NONE)),
        _SOME,
    ),
    Hypothesis(
        "scores do not depend on labels",
        _reject_chance,
        (Test("permutation", Promise.LEVEL, of_rows=True),),
        _ALL,
    ),
)


def table(folder: Path) -> str:
    """Return the Markdown table of the data in a folder, and a sentence on broken promises."""
    frame = pl.read_csv(folder / f"{NAME}.csv")
    rows = [Level(*values) for values in frame.iter_rows()]
    lines = [
        "| truth | test | units | correlation | promise | rejected |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        low, high = clopper_pearson(row.rejected, row.runs)
        mark = "\\*" if row.broken else ""
        share = f"{row.share:.3f}{mark} [{low:.3f}, {high:.3f}]"
        cells = (row.truth, row.test, row.sizes, f"{row.correlation:g}", row.promise, share)
        lines.append(f"| {' | '.join(cells)} |")
    promised = [row for row in rows if row.promise in (Promise.LEVEL, Promise.DETECTED)]
    broken = sum(row.broken for row in promised)
    summary = (
        f"{len(combinations())} combinations of {rows[0].runs} simulated data sets each. Of "
        f"{len(promised)} promises, the 95% interval of the measured share excludes {broken} (\\*)."
    )
    return "\n".join([summary, "", *lines, ""])


def _levels_of(runs: int, combination: tuple[Hypothesis, Design]) -> list[Level]:
    return levels([combination], runs)


def main(folder: str, runs: str = "1000") -> None:
    """Simulate on all cores, and write the data and the table of the documentation."""
    with ProcessPoolExecutor() as pool:
        results = pool.map(partial(_levels_of, int(runs)), combinations())
        rows = [row for rows in results for row in rows]
    write_results(Path(folder), NAME, rows, table)


if __name__ == "__main__":
    main(*sys.argv[1:])
