"""A package outside of hq: a precision, a scenario, a judge, an experiment and a family."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from pydantic import Field
from rich.table import Table
from transformers import PreTrainedModel

from harness.experiments.base import Experiment
from harness.judges.base import Question, Verdict
from harness.scenarios.questions import question_scenario
from harness.stages.graph import Graph
from harness.stages.materials import Materials
from harness.stages.samples import read_samples
from harness.stages.select import SAMPLES_FILE
from harness.store.node import Node, Stage, Work
from harness.store.runner import Outputs
from harness.studies.section import Section
from harness.tables.schema import Row, Tables
from hq.models.architectures import Architecture
from hq.precisions.dense import FP16


class ToyBF16(FP16):
    """Weights rounded to bfloat16."""

    name = "toy-bf16"

    def load(self, path: Path, device: torch.device) -> PreTrainedModel:
        """Load FP16 weights and round them."""
        model = super().load(path, device)
        for parameter in model.parameters():
            parameter.data = parameter.data.bfloat16().to(parameter.dtype)
        return model


BF16 = ToyBF16()


def lines(source: str, seed: int = 0) -> list[Question]:
    """Read questions from a JSON lines file, one entity each."""
    rows = map(json.loads, Path(source).read_text(encoding="utf-8").splitlines())
    return [
        Question(row["id"], row["question"], tuple(row["aliases"]), "lines", (row["id"],))
        for row in rows
        if row["aliases"] != ["---"]
    ]


LINES = question_scenario("toy-lines", lines)


class ExactJudge:
    """Right if the response is an alias, to the letter."""

    identity = "exact, version 1"
    unclear = 0

    def judge(self, response: str, question: Question, truncated: bool) -> Verdict:
        """Return the verdict on one response."""
        if truncated or not response.strip():
            return Verdict.CUT
        return Verdict.RIGHT if response.strip() in question.aliases else Verdict.WRONG


class LengthsSection(Section):
    """The section [toy-lengths]."""

    at_least: int = Field(default=1, ge=1)


class LengthRow(Row):
    """How long the answers are."""

    label: str = Field(description="right or hallucinated")
    n: int = Field(description="answers")
    tokens: float = Field(description="mean number of tokens")


def _count(work: Work[Materials]) -> None:
    samples = read_samples(work.inputs["samples"] / SAMPLES_FILE)
    lengths: dict[str, list[int]] = {"right": [], "hallucinated": []}
    for sample in samples:
        if len(sample.response_ids) >= work.parameters["at_least"]:
            label = "hallucinated" if sample.hallucinated else "right"
            lengths[label].append(len(sample.response_ids))
    (work.folder / "lengths.json").write_text(json.dumps(lengths), encoding="utf-8")


COUNT = Stage("toy-count", _count)


class Lengths(Experiment):
    """Mean length of right and hallucinated answers."""

    name = "toy-lengths"
    measures = "how long right and hallucinated answers are"
    tables: ClassVar[Tables] = {"lengths": (LengthRow, ("label",))}
    section = LengthsSection

    def tolerances(self) -> str:
        """Every number counts."""
        return "[lengths]\nn = {within = 0}\ntokens = {within = 0.0}\n"

    def nodes(self, m: Materials) -> Sequence[Node]:
        """One node, on the samples."""
        section = LengthsSection.of(m.study.sections.get(self.name, {}), f"[{self.name}]")
        samples = Graph(m).samples.output(SAMPLES_FILE)
        return [Node(COUNT, {"at_least": section.at_least}, {"samples": samples})]

    def rows(self, m: Materials, outputs: Outputs) -> dict[str, list[Row]]:
        """One row per label."""
        (node,) = self.nodes(m)
        lengths = json.loads((outputs[node] / "lengths.json").read_text(encoding="utf-8"))
        return {
            "lengths": [
                LengthRow(label=label, n=len(values), tokens=sum(values) / max(len(values), 1))
                for label, values in lengths.items()
            ]
        }

    def summary(self, tables: Mapping[str, Sequence[Any]]) -> Table:
        """The table itself."""
        table = Table("label", "n", "tokens")
        for row in tables["lengths"]:
            table.add_row(row.label, str(row.n), f"{row.tokens:.1f}")
        return table


STABLELM = Architecture(norms=None)
