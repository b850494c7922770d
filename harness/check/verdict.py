"""Verdicts of a gate, from the best to the worst, and the exit code of each.

0, 3, 4 and 5 are those of `hq drift`. A command ends with the code of its worst verdict, where
incomparable > degraded > threshold-stale > inconclusive > pass.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from harness.check.design import Design
from harness.check.regress import Difference, Uncompared
from harness.check.tolerance import Meaning


class Verdict(StrEnum):
    """What is known of a release at one precision."""

    PASS = "pass"  # noqa: S105
    INCONCLUSIVE = "inconclusive"
    THRESHOLD_STALE = "threshold-stale"
    DEGRADED = "degraded"
    INCOMPARABLE = "incomparable"

    @property
    def exit_code(self) -> int:
        """The exit code of a command with this verdict."""
        return _EXIT_CODES[self]


_EXIT_CODES = {
    Verdict.PASS: 0,
    Verdict.THRESHOLD_STALE: 3,
    Verdict.DEGRADED: 4,
    Verdict.INCONCLUSIVE: 5,
    Verdict.INCOMPARABLE: 6,
}
OF_MEANING: Mapping[Meaning, Verdict] = {
    "degraded": Verdict.DEGRADED,
    "threshold": Verdict.THRESHOLD_STALE,
    "incomparable": Verdict.INCOMPARABLE,
}


def worst(verdicts: Iterable[Verdict]) -> Verdict:
    """Return the worst verdict; PASS if there is none."""
    order = list(Verdict)
    return max(verdicts, key=order.index, default=Verdict.PASS)


@dataclass(frozen=True)
class Repair:
    """A threshold of the run that is not stale, for one row of the table of alarms.

    `rates` has the false-alarm rate of each kind of repair, as (value, low, high).
    """

    row: dict[str, Any]
    threshold: float
    rates: dict[str, tuple[float, float | None, float | None]]

    def __str__(self) -> str:
        where = " ".join(f"{key} {value:g}" for key, value in self.row.items())
        rates = "; ".join(f"{how}, {interval_text(*rate)}" for how, rate in self.rates.items())
        return f"{where}: threshold {self.threshold:.4g}, false alarms {rates}"


@dataclass(frozen=True)
class GroupVerdict:
    """The verdict on one precision, or on the rows that belong to no precision."""

    name: str
    verdict: Verdict
    why: str  # one sentence
    differences: list[Difference] = field(default_factory=list)
    uncompared: list[Uncompared] = field(default_factory=list)
    design: Design | None = None
    repairs: list[Repair] = field(default_factory=list)

    @property
    def regressed(self) -> list[Difference]:
        """The numbers that exceed their tolerances."""
        return [d for d in self.differences if d.regressed]

    @property
    def worst(self) -> Difference | None:
        """The number that used most of its tolerance, of those that decide the verdict."""
        decisive = [
            d for d in self.regressed if OF_MEANING[d.tolerance.means] is self.verdict
        ] or self.differences
        return max(decisive, key=lambda d: d.used, default=None)


@dataclass(frozen=True)
class Report:
    """The verdicts on a run."""

    run: str
    against: Path
    groups: list[GroupVerdict]
    same_samples: bool | None  # None before the run
    left_out: list[str] = field(default_factory=list)  # committed, not asked for
    remade: list[str] = field(default_factory=list)  # with checkpoints of another making

    @property
    def verdict(self) -> Verdict:
        """The worst verdict."""
        return worst(group.verdict for group in self.groups)

    @property
    def differences(self) -> list[Difference]:
        """Every compared number."""
        return [d for group in self.groups for d in group.differences]

    @property
    def sentence(self) -> str:
        """How much was compared, and how much regressed."""
        of = "the same samples" if self.same_samples else "other samples, which widens tolerances"
        regressed = sum(d.regressed for d in self.differences)
        errors = sum(len(group.uncompared) for group in self.groups)
        made = "".join(
            f" {name} was calibrated again, with other weights than the committed checkpoint, "
            "which widens tolerances."
            for name in self.remade
        )
        missing = f", {errors} could not be compared" if errors else ""
        return (
            f"{len(self.differences)} numbers compared with {self.against} ({of}): "
            f"{regressed} regressed{missing}.{made}"
        )


def describe(d: Difference) -> str:
    """Return the numbers of a comparison: found, committed with its interval, tolerance, reason."""
    reason = f" (reason: {d.tolerance.reason.rstrip('.')})" if d.tolerance.reason else ""
    return (
        f"{d.name} of {d.row or 'the study'} is {d.found:.4g}; committed is "
        f"{interval_text(*d.expected)}, and {d.allowed:.3g} is "
        f"allowed{reason}."
    )


def interval_text(value: float, low: float | None, high: float | None) -> str:
    """Return a number with its interval, if it has one."""
    return f"{value:.4g}" if low is None else f"{value:.4g} [{low:.4g}, {high:.4g}]"
