"""Columns of the table of token scores."""

from pydantic import Field

from harness.tables.schema import UNITS, Row, Tables
from hq.stats.intervals import Estimate


class Reduction(Row):
    """How well one number from an answer's token scores detects that it is hallucinated."""

    precision: str = Field(description="the precision at which the tokens are scored")
    reduction: str = Field(
        description="mean: of the token scores, which is the score of the answer, because scores "
        "are linear in CETT; max, min, first, last: of the token scores of an answer"
    )
    n: int = Field(description="samples, half of them hallucinated")
    units: int = Field(description=UNITS)
    seed: int = Field(description="seed of the study")
    tokens: float = Field(description="mean number of tokens per answer")
    auroc: Estimate = Field(
        description="AUROC of the number, by the frozen FP16 probe that has not seen the sample's "
        "fold; pairs of answers of one fold"
    )
    auroc_minus_mean: Estimate = Field(description="paired difference from the reduction mean")


TABLES: Tables = {"tokens": (Reduction, ("precision", "reduction"))}
