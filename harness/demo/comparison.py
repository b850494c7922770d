"""Comparison of precisions from scores and labels."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import polars as pl
from jaxtyping import Bool, Float, Int, Shaped

from harness.demo.tables import ScoredDesign, ScoredPrecision
from harness.experiments.detect.tables import MARGIN
from harness.report.run import REFERENCE
from hq.stats.auroc import estimate_auroc, estimate_auroc_difference
from hq.stats.equivalence import decide
from hq.stats.intervals import estimate_rate, smallest_detectable
from hq.stats.thresholds import match_quantile


@dataclass(frozen=True, eq=False)
class ScoredSamples:
    """Labels of samples, and their scores at each precision (`scores.csv` of a run of detect)."""

    ids: Sequence[str]
    y: Int[np.ndarray, " n"]  # 1 for a hallucinated answer
    units: Shaped[np.ndarray, " n"]
    folds: Int[np.ndarray, " n"]
    scores: pl.DataFrame

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read samples.jsonl and scores.csv."""
        lines = (folder / "samples.jsonl").read_text(encoding="utf-8").splitlines()
        samples: list[dict[str, Any]] = [json.loads(line) for line in lines]
        return cls(
            ids=[sample["id"] for sample in samples],
            y=np.array([sample["hallucinated"] for sample in samples], dtype=np.int64),
            units=np.array([sample["unit"] for sample in samples]),
            folds=np.array([sample["fold"] for sample in samples], dtype=np.int64),
            scores=pl.read_csv(folder / "scores.csv"),
        )

    @property
    def precisions(self) -> list[str]:
        """The precisions, in the order of the file."""
        names: list[str] = self.scores["precision"].unique(maintain_order=True).to_list()
        return names

    def design(self) -> ScoredDesign:
        """Return what was scored."""
        return ScoredDesign(
            scorer="H-Neurons identified on FP16",
            n=len(self.y),
            hallucinated=int(self.y.sum()),
            units=len(np.unique(self.units)),
            folds=len(np.unique(self.folds)),
        )

    def detection(self) -> Iterator[ScoredPrecision]:
        """Yield the row of each precision."""
        before = self._column(REFERENCE, "score")
        threshold = self._column(REFERENCE, "threshold")
        draw = self.units, self.folds
        for precision in self.precisions:
            after, entropy = (self._column(precision, name) for name in ("score", "entropy"))
            change = estimate_auroc_difference(after, before, self.y, *draw)
            flagged = after >= threshold
            yield ScoredPrecision(
                precision=precision,
                n=len(self.y),
                units=len(np.unique(self.units)),
                auroc=estimate_auroc(after, self.y, *draw),
                auroc_change=change,
                detectable=smallest_detectable(change) if change.se else None,
                verdict=decide(change, MARGIN).verdict,
                auroc_entropy=estimate_auroc(entropy, self.y, *draw),
                probe_minus_entropy=estimate_auroc_difference(after, entropy, self.y, *draw),
                false_alarms=estimate_rate(flagged[self._right], self.units[self._right]),
                detected=estimate_rate(flagged[~self._right], self.units[~self._right]),
                false_alarms_transferred=estimate_rate(
                    (after >= self._transferred(threshold, before, after))[self._right],
                    self.units[self._right],
                ),
            )

    def _transferred(
        self,
        threshold: Float[np.ndarray, " n"],
        before: Float[np.ndarray, " n"],
        after: Float[np.ndarray, " n"],
    ) -> Float[np.ndarray, " n"]:
        """Return the threshold of each sample's fold at its quantile among the new scores."""
        moved = threshold.copy()
        for fold in np.unique(self.folds):
            own = self.folds == fold
            moved[own] = match_quantile(float(threshold[own][0]), before[own], after[own])
        return moved

    def _column(self, precision: str, name: str) -> Float[np.ndarray, " n"]:
        rows = self.scores.filter(pl.col("precision") == precision)
        assert rows["sample"].to_list() == list(self.ids)
        values: Float[np.ndarray, " n"] = rows[name].to_numpy().astype(np.float64)
        return values

    @cached_property
    def _right(self) -> Bool[np.ndarray, " n"]:
        right: Bool[np.ndarray, " n"] = self.y == 0
        return right
