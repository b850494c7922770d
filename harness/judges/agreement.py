"""Agreement of a judge with a reader's labels, and the committed table of it for the rule judges.

`agreement.csv` has one row per scenario and kind of trial. A test recomputes it from labels that
were not used to tune the rules.
"""

import csv
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from functools import cache
from importlib.resources import files
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Shaped
from pydantic import BaseModel, ConfigDict

from hq.errors import HQError

AGREEMENT_FILE = "agreement.csv"
_CHANCE = 0.5  # balanced accuracy of every constant verdict


class ConfidenceInterval(NamedTuple):
    """A value with its 95% interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.2f} [{self.low:.2f}, {self.high:.2f}]"


class Agreement(BaseModel):
    """How well a judge's outcomes agree with a reader's labels of the same responses.

    A constant outcome has a κ of 0 and a balanced accuracy of 0.5, whatever its agreement.
    """

    model_config = ConfigDict(frozen=True)

    n: int  # responses
    trials: int  # the unit of the intervals
    complied: int  # responses that the reader labels as complied
    agreement: float  # share of equal outcomes
    constant: float  # agreement of the best constant outcome
    kappa: float  # Cohen's κ of the three outcomes
    kappa_low: float
    kappa_high: float
    balanced: float  # mean of the sensitivity and specificity for `complied`
    balanced_low: float
    balanced_high: float

    @property
    def is_above_chance(self) -> bool:
        """Whether both 95% intervals exclude what a constant outcome reaches."""
        return self.kappa_low > 0 and self.balanced_low > _CHANCE

    def __str__(self) -> str:
        kappa = ConfidenceInterval(self.kappa, self.kappa_low, self.kappa_high)
        balanced = ConfidenceInterval(self.balanced, self.balanced_low, self.balanced_high)
        return f"n = {self.n}, κ {kappa}, balanced accuracy {balanced}"


def measure_agreement(
    labels: Sequence[str], outcomes: Sequence[str], trials: Sequence[Hashable], positive: str
) -> Agreement:
    """Return the agreement of outcomes with labels.

    Intervals are delete-one-trial jackknives with Student's t. Its degrees of freedom are one less
    than the number of trials of the rarer class (`positive` or not), whose share of the variance is
    the largest.

    Args:
        labels: The reader's label of each response.
        outcomes: The judge's outcome of each response.
        trials: The trial of each response; responses to one trial are not independent.
        positive: The outcome that a rate counts, such as "complied".

    Raises:
        HQError: If fewer than two trials have the label `positive`, or fewer than two another.
    """
    label, outcome = np.array(labels, dtype=str), np.array(outcomes, dtype=str)
    _, unit = np.unique(np.array(list(map(str, trials))), return_inverse=True)
    is_positive = label == positive
    rarer = min(len(np.unique(unit[mask])) for mask in (is_positive, ~is_positive))
    if rarer < 2:
        raise HQError(
            f"The labels {positive!r} and other labels are of {rarer} trials of the rarer class: "
            "label at least two of each."
        )
    decided = np.stack([is_positive, outcome == positive])
    kappa = _jackknife(lambda kept: _kappa(label[kept], outcome[kept]), unit, rarer - 1, -1)
    balanced = _jackknife(lambda kept: _balanced_accuracy(*decided[:, kept]), unit, rarer - 1, 0)
    return Agreement(
        n=len(label),
        trials=int(unit.max()) + 1,
        complied=int(is_positive.sum()),
        agreement=float((label == outcome).mean()),
        constant=max(Counter(labels).values()) / len(labels),
        kappa=kappa.value,
        kappa_low=kappa.low,
        kappa_high=kappa.high,
        balanced=balanced.value,
        balanced_low=balanced.low,
        balanced_high=balanced.high,
    )


def cohen_kappa(pairs: Sequence[tuple[str, str]]) -> float | None:
    """Return Cohen's κ; None if the agreement expected by chance is 1."""
    n = len(pairs)
    first, second = (Counter(side) for side in zip(*pairs, strict=True))
    by_chance = sum(first[name] * second[name] for name in first) / n**2
    if by_chance == 1:
        return None
    agreement = sum(a == b for a, b in pairs) / n
    return (agreement - by_chance) / (1 - by_chance)


@cache
def rule_agreement(scenario: str) -> dict[str, Agreement]:
    """Return the committed agreement of the rules of a built-in scenario, by kind of trial.

    It is empty if no reader has labelled responses of the scenario.
    """
    text = files("harness.judges").joinpath(AGREEMENT_FILE).read_text(encoding="utf-8")
    rows = list(csv.DictReader(text.splitlines()))
    return {
        row["kind"]: Agreement.model_validate({name: row[name] for name in Agreement.model_fields})
        for row in rows
        if row["scenario"] == scenario
    }


def _jackknife(
    statistic: Callable[[Shaped[np.ndarray, " n"]], float],
    unit: Shaped[np.ndarray, " n"],
    df: int,
    lowest: float,
) -> ConfidenceInterval:
    """The statistic of all rows with its 95% interval within `lowest` and 1.

    `statistic` maps a mask of rows to a value.
    """
    from scipy.stats import t as student_t  # slow to import, and the table is read without it

    units = int(unit.max()) + 1
    value = statistic(np.ones(len(unit), dtype=bool))
    without: Float[np.ndarray, " units"] = np.array([statistic(unit != u) for u in range(units)])
    error = float(np.sqrt((units - 1) / units * ((without - without.mean()) ** 2).sum()))
    half = float(student_t.ppf(0.975, df)) * error
    return ConfidenceInterval(value, max(value - half, lowest), min(value + half, 1.0))


def _kappa(label: Shaped[np.ndarray, " n"], outcome: Shaped[np.ndarray, " n"]) -> float:
    kappa = cohen_kappa(list(zip(label.tolist(), outcome.tolist(), strict=True)))
    return 1.0 if kappa is None else kappa  # both are the same constant


def _balanced_accuracy(label: Shaped[np.ndarray, " n"], outcome: Shaped[np.ndarray, " n"]) -> float:
    """Mean of sensitivity and specificity."""
    return float((outcome[label].mean() + (~outcome[~label]).mean()) / 2)
