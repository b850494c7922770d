"""Experiment steps: scores of the steps of an answer, and the first wrong step."""

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.table import Table

from harness.experiments.base import Experiment, estimate_cell
from harness.experiments.steps.answers import ANSWERS_FILE, read_answers
from harness.experiments.steps.chains import by_relation
from harness.experiments.steps.nodes import StepsNodes
from harness.experiments.steps.plan import StepsPlan
from harness.experiments.steps.rows import FIRST_ALARM, HIGHEST, ONLY_WRONG, StepsAnalysis
from harness.experiments.steps.scores import PrecisionScores, fit_of, held_out_folds
from harness.experiments.steps.section import StepsSection
from harness.experiments.steps.tables import TABLES
from harness.stages import mapping
from harness.stages.identify import NEURONS_FILE
from harness.stages.materials import Materials
from harness.stages.readings import read_readings
from harness.stages.samples import require_origin
from harness.store.node import Node
from harness.store.runner import Outputs
from harness.studies.study import REFERENCE, Study
from harness.tables.schema import Row
from hq.errors import HQError
from hq.storage.atomic import atomic_file

SCORES_FILE = "step_scores.jsonl"
CHAINS = "two-hop questions"


class StepsExperiment(Experiment):
    """Scores of steps by the FP16 probe, entropy, log-probability, length and text."""

    name = "steps"
    measures = "scores of the steps of an answer, and how often they locate the first wrong step"
    tables = TABLES
    committed = (NEURONS_FILE,)
    section = StepsSection

    def check(self, m: Materials) -> None:
        """Raises HQError if the file of solutions cannot be used, or a text is too long."""
        if m.study.identify.tokens != "answer":
            raise HQError(
                "Steps are scored by a probe of answer tokens, but identify.tokens is "
                f"{m.study.identify.tokens!r}: set it to 'answer'."
            )
        m.of(StepsPlan).check()

    def nodes(self, m: Materials) -> Sequence[Node]:
        """Declare maps, the probes, and readings of the answers' tokens at each precision."""
        declared = StepsNodes(m.of(StepsPlan))
        return [
            *(mapping.node(m, precision) for precision in m.study.precisions),
            declared.graph.identify(REFERENCE),
            *(declared.readings(precision) for precision in m.study.precisions),
        ]

    def rows(self, m: Materials, outputs: Outputs) -> dict[str, list[Row]]:
        """Return the rows of each table."""
        results = _Results(m, outputs)
        analysis, plan = results.analysis, results.plan
        source = plan.section.source
        composed = by_relation([] if source else plan.composed)
        tables: dict[str, list[Row]] = {
            "answers": [
                analysis.counts(
                    Path(source).name if source else CHAINS,
                    None if source else sum(composed.values()),
                    len(plan.given if source else plan.chains),
                    results.unclear,
                    results.seen,
                )
            ],
            "pairs": [] if source else [*analysis.pairs(dict(composed))],
            "detection": [],
            "localisation": [],
        }
        for precision in m.study.precisions:
            scores = results.scores(precision)
            tables["detection"] += analysis.detection(precision, scores)
            tables["localisation"] += analysis.localisation(precision, scores)
        return tables

    def write(self, folder: Path, m: Materials, outputs: Outputs) -> None:
        """Write the neurons, and the scores of each token, sentence and step."""
        results = _Results(m, outputs)
        shutil.copyfile(results.declared.graph.neurons_file(outputs), folder / NEURONS_FILE)
        with (
            atomic_file(folder / SCORES_FILE) as draft,
            open(draft, "w", encoding="utf-8", newline="\n") as lines,
        ):
            for precision in m.study.precisions:
                for line in results.lines(precision):
                    lines.write(json.dumps(line, ensure_ascii=False) + "\n")

    def definition(self, study: Study) -> dict[str, Any]:
        """Return the section, with the name of the file in place of its path."""
        values = study.sections.get(self.name, {})
        section = StepsSection.of(values, "the section [steps]")
        named = {"source": Path(section.source).name if section.source else ""}
        return {"steps": section.model_dump(mode="json") | named}

    def summary(self, tables: Mapping[str, Sequence[Any]]) -> Table:
        """Return the AUROC of steps and the localisation at each precision."""
        counts = tables["answers"][0]
        located = {
            (row.precision, row.span, row.rule, row.scorer): row for row in tables["localisation"]
        }
        rules = {row.rule for row in tables["localisation"]}
        rule, among = (
            (ONLY_WRONG, "exactly one") if ONLY_WRONG in rules else (HIGHEST, "at least one")
        )
        table = Table(
            title=f"{counts.n} answers to {counts.source}:\n{counts.first_right} with a right "
            f"first step, {counts.all_right} all right.\n"
            "AUROC of wrong against right steps of one number.\n"
            f"Located: with {among} wrong step, the first\none has the highest score. F1 of the "
            "first alarm.\n95% intervals.",
            caption=f"Note: {counts.note}." if counts.note else None,
            caption_justify="left",
            box=SIMPLE_HEAD,
            padding=(0, 1),
        )
        for column in ("precision", "span", "scorer", "AUROC", "located", "F1"):
            table.add_column(column, no_wrap=True)
        for row in tables["detection"]:
            if row.step == "all":
                key = row.precision, row.span
                table.add_row(
                    *key,
                    row.scorer,
                    _cell(row.auroc),
                    _cell(located[*key, rule, row.scorer].wrong),
                    _cell(located[*key, FIRST_ALARM, row.scorer].f1),
                )
        return table


def _cell(estimate: Any) -> str:
    return "—" if estimate is None else estimate_cell(estimate)


class _Results:
    """The outputs of the finished nodes."""

    def __init__(self, m: Materials, outputs: Outputs) -> None:
        self.plan = m.of(StepsPlan)
        self.declared = StepsNodes(self.plan)
        graph = self.declared.graph
        self._m, self._outputs = m, outputs
        self._probes = graph.read_probes(outputs, REFERENCE)
        samples = graph.read_samples(outputs)
        require_origin(self._probes.neurons, samples, graph.read_traces(outputs, REFERENCE))
        every = read_answers(outputs[self.declared.answers()] / ANSWERS_FILE)
        held_out = held_out_folds(every, samples, m.questions)
        clear = [i for i, answer in enumerate(every) if answer.first_wrong is not None]
        self._rows = [i for i in clear if fit_of(held_out[i]) is not None]
        self._fits = [fit_of(held_out[i]) or () for i in self._rows]
        self.answers = [every[i] for i in self._rows]
        asked = len(every) if self.plan.section.source else len(self.plan.chains)
        self.unclear, self.seen = asked - len(clear), len(clear) - len(self._rows)
        if not self.answers:
            raise HQError(
                "No answer has a verdict on its first wrong step: use a model that answers, or "
                "more questions (steps.chains)."
            )
        self.analysis = StepsAnalysis(
            self.answers, m.study.identify.folds, not self.plan.section.source
        )

    def scores(self, precision: str) -> PrecisionScores:
        """Return the scores at a precision. Raises HQError if neurons do not correspond there."""
        if precision != REFERENCE:
            folder = self._outputs[mapping.node(self._m, precision)]
            mapping.require(folder, precision, self._probes.neurons)
        readings = read_readings(self._outputs[self.declared.readings(precision)])
        return PrecisionScores(self.answers, self._rows, self._fits, self._probes, readings)

    def lines(self, precision: str) -> Iterator[dict[str, object]]:
        """Yield each answer with the scores of its tokens, sentences and steps."""
        scores = self.scores(precision)
        entropy = scores.per_token(scores.readings.entropy)
        log_prob = scores.per_token(scores.readings.log_prob)
        for i, answer in enumerate(self.answers):
            values = {"probe": scores.decisions[i], "entropy": entropy[i], "log_prob": log_prob[i]}
            yield {
                "precision": precision,
                "id": answer.id,
                "question": answer.question,
                "first_wrong": answer.first_wrong,
                "tokens": [self._m.tokenizer.decode([token]) for token in answer.response_ids],
                **{name: np.round(of, 4).tolist() for name, of in values.items()},
                "steps": [_step_line(step, values) for step in answer.steps],
            }


def _step_line(step: Any, values: Mapping[str, Any]) -> dict[str, object]:
    return {
        "text": step.text,
        "label": step.label,
        "tokens": step.tokens,
        **{name: _mean(of, step.tokens) for name, of in values.items()},
        "sentences": [
            {"tokens": tokens, **{name: _mean(of, tokens) for name, of in values.items()}}
            for tokens in step.sentences
        ],
    }


def _mean(values: Any, tokens: tuple[int, int]) -> float:
    return round(float(values[tokens[0] : tokens[1]].mean()), 4)
