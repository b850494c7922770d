"""Experiment sweep: over-compliance while the H-Neurons are scaled by α, at each precision."""

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.table import Table

from harness.experiments.base import Experiment, estimate_cell
from harness.experiments.sweep import costs, rates
from harness.experiments.sweep.nodes import (
    SweepNodes,
    correct_answers,
    read_asked,
    read_judged,
    read_outcomes,
    read_replies,
    reference_magnitudes,
    unclear_replies,
)
from harness.experiments.sweep.plan import SweepPlan
from harness.experiments.sweep.rates import NOT_MONOTONE, JudgedSweep, Swept
from harness.experiments.sweep.section import SweepSection
from harness.experiments.sweep.tables import TABLES, Cost
from harness.experiments.sweep.transfer import Target, transfer
from harness.experiments.sweep.trials import judged_sweep, scenario
from harness.scenarios.base import SCENARIOS
from harness.stages import mapping, units
from harness.stages.identify import NEURONS_FILE, Rows
from harness.stages.materials import Materials
from harness.stages.uncertainty import perplexity
from harness.store.node import Node
from harness.store.runner import Outputs
from harness.studies.study import REFERENCE, Study
from harness.tables.schema import Row
from hq.probe.controls import matched_neurons
from hq.stats.intervals import Estimate, estimate_rate
from hq.storage.atomic import atomic_file
from hq.tracing.traces import Traces

OUTPUTS_FILE = "outputs.jsonl"


class SweepExperiment(Experiment):
    """Scaling of the H-Neurons, compared with matched neurons, and its costs."""

    name = "sweep"
    measures = "over-compliance while H-Neurons or matched neurons are scaled by α, and its costs"
    tables = TABLES
    committed = (NEURONS_FILE,)
    section = SweepSection

    def check(self, m: Materials) -> None:
        """Raises HQError if scenarios, sources, choices or lengths cannot be used."""
        m.of(SweepPlan).check()

    def nodes(self, m: Materials) -> Sequence[Node]:
        """Declare maps, responses, answers and costs at each precision, and traces of responses."""
        plan = m.of(SweepPlan)
        declared = SweepNodes(plan)
        return [
            *(mapping.node(m, precision) for precision in m.study.precisions),
            *(
                node
                for precision in m.study.precisions
                for node in (
                    *(declared.judge(precision, name) for name in plan.offered),
                    declared.graph.trace(precision),
                    *(declared.trace(precision, label) for label in plan.labels),
                    declared.answer(precision),
                    *(declared.costs(precision, alpha) for alpha in plan.section.alphas),
                )
            ),
        ]

    def rows(self, m: Materials, outputs: Outputs) -> dict[str, list[Row]]:
        """Return the rows of each table, by precision."""
        results = _Results(m, outputs)
        tables: dict[str, list[Row]] = {name: [] for name in self.tables}
        for precision in m.study.precisions:
            tables["transfer"] += results.transfer(precision)
            for label, swept in results.swept(precision).items():
                tables["rates"] += rates.rates(swept)
                reference = results.swept(REFERENCE)[label]
                tables["slopes"].append(rates.slope(swept, reference, results.section.margin))
            tables["costs"] += results.costs(precision)
        return tables

    def write(self, folder: Path, m: Materials, outputs: Outputs) -> None:
        """Write the neurons, and every response under scaled H-Neurons with its outcome."""
        results = _Results(m, outputs)
        shutil.copyfile(results.declared.graph.neurons_file(outputs), folder / NEURONS_FILE)
        with (
            atomic_file(folder / OUTPUTS_FILE) as draft,
            open(draft, "w", encoding="utf-8", newline="\n") as lines,
        ):
            for precision in m.study.precisions:
                for response in results.responses(precision):
                    lines.write(json.dumps(response, ensure_ascii=False) + "\n")

    def definition(self, study: Study) -> dict[str, Any]:
        """Return the section; of files it only contains which scenarios have one."""
        values = study.sections.get(self.name, {})
        section = SweepSection.of(values, "the section [sweep]")
        return {
            "sweep": section.model_dump(mode="json")
            | {
                "scenarios": list(section.scenarios_of(study.scenario.name)),
                "sources": sorted(section.sources),
                "choices": bool(section.choices),
            }
        }

    def facts(self, m: Materials, outputs: Outputs) -> dict[str, Any]:
        """Return each scenario's judge, and the number of its replies that were no outcome."""
        plan = m.of(SweepPlan)
        judge = SweepNodes(plan).judge
        return {
            "judges": {
                name: {
                    "identity": plan.judge.identity(SCENARIOS[name]),
                    "unclear_replies": sum(
                        unclear_replies(outputs[judge(precision, name)])
                        for precision in m.study.precisions
                    ),
                }
                for name in plan.scenarios
            }
        }

    def summary(self, tables: Mapping[str, Sequence[Any]]) -> Table:
        """Return rates at the smallest α, 1 and the largest, slopes, and what they show."""
        h_rates = {
            (row.precision, row.scenario, row.alpha): row.rate
            for row in tables["rates"]
            if row.neurons == "h"
        }
        alphas = sorted({alpha for _, _, alpha in h_rates})
        shown = sorted({alphas[0], 1.0, alphas[-1]})
        first = tables["slopes"][0]
        table = Table(
            title=f"{first.neurons} H-Neurons scaled by α: share of responses that comply.\nSlope "
            f"over α, and excess over {first.draws} matched draws with its p: 95% intervals.\n"
            "±: smallest value that is detected with 80% power.",
            caption=f"{_trials(tables['slopes'])}\n{_judges(tables['slopes'])}",
            caption_justify="left",
            box=SIMPLE_HEAD,
            padding=(0, 1),
        )
        table.add_column("precision", min_width=9, overflow="fold")
        table.add_column("scenario", min_width=11)
        for column in (*(f"α={alpha:g}" for alpha in shown), "slope", "excess", "p"):
            table.add_column(column, no_wrap=True)
        table.add_column("compared\nwith fp16", min_width=9)
        for row in tables["slopes"]:
            table.add_row(
                row.precision,
                row.scenario.replace(":", ":\n"),
                *(f"{h_rates[row.precision, row.scenario, alpha].value:.2f}" for alpha in shown),
                "see the\ncurve" if row.shape == NOT_MONOTONE else _cell(row.slope, row.detectable),
                _cell(row.excess, row.excess_detectable),
                f"{row.p_matched:.2f}",
                "—" if row.precision == REFERENCE else row.verdict,
            )
        return table


def _cell(estimate: Estimate, detectable: float | None) -> str:
    """An estimate with its interval, and the smallest detectable value."""
    smallest = "" if detectable is None else f"\n[dim]±{detectable:.3f}[/dim]"
    return estimate_cell(estimate, signed=True) + smallest


def _trials(slopes: Sequence[Any]) -> str:
    """Return how many trials each scenario has, and how many of them are near the decision."""
    counts = {row.scenario: f"{row.n} ({row.mixed})" for row in slopes}
    listed = ", ".join(f"{scenario} {count}" for scenario, count in counts.items())
    return f"Trials, and those on questions with mixed responses: {listed}."


def _judges(slopes: Sequence[Any]) -> str:
    """Return which judge decided the outcomes of which scenarios."""
    scenarios: dict[str, dict[str, None]] = {}
    for row in slopes:
        scenarios.setdefault(row.judge, {})[row.scenario] = None
    return "\n".join(f"Judged by {judge}: {', '.join(of)}." for judge, of in scenarios.items())


class _Results:
    """The outputs of the finished nodes of a sweep, judged."""

    def __init__(self, m: Materials, outputs: Outputs) -> None:
        self.m = m
        self.plan = m.of(SweepPlan)
        self.section = self.plan.section
        self.declared = SweepNodes(self.plan)
        self._outputs = outputs
        graph = self.declared.graph
        self._neurons = graph.read_neurons(outputs, REFERENCE)
        self._rows = Rows(graph.read_samples(outputs))
        self._asked = {
            label: trials
            for name in self.plan.offered
            for label, trials in read_asked(outputs[self.declared.ask(name)], self.plan).items()
        }
        self._swept: dict[str, dict[str, Swept]] = {}

    def swept(self, precision: str) -> dict[str, Swept]:
        """Return the judged responses of every scenario at a precision."""
        if precision not in self._swept:
            if precision != REFERENCE:
                folder = self._outputs[mapping.node(self.m, precision)]
                mapping.require(folder, precision, self._neurons)
            self._swept[precision] = {
                label: self._judged(precision, label) for label in self._asked
            }
        return self._swept[precision]

    def responses(self, precision: str) -> Iterator[dict[str, object]]:
        """Yield every response under scaled H-Neurons, with its outcome."""
        for label, trials in self._asked.items():
            replies = self._replies(precision, label)
            outcomes = self.swept(precision)[label].h.outcomes
            for a, alpha in enumerate(self.section.alphas):
                for i, asked in enumerate(trials):
                    yield {
                        "precision": precision,
                        "scenario": label,
                        "alpha": alpha,
                        "id": asked.trial.id,
                        "prompt": asked.trial.prompt,
                        "response": replies[a][i].text,
                        "truncated": replies[a][i].truncated,
                        "outcome": outcomes[a, i],
                    }

    def transfer(self, precision: str) -> list[Row]:
        """Return the rows of the probe in every scenario, on the reference's unscaled responses."""
        cett, span, study = self._neurons.cett, self._neurons.tokens, self.m.study
        graph = self.declared.graph
        traces = graph.read_traces(self._outputs, precision)
        draws = matched_neurons(
            self._neurons.flat,
            reference_magnitudes(graph.read_traces(self._outputs, REFERENCE), self._neurons),
            self.m.model.space,
            self.section.transfer_draws,
            study.seed,
            exclude=traces.info.missing,
        )
        targets = [self._target(precision, label) for label in self._asked]
        return [
            *transfer(
                precision,
                self._neurons,
                traces.matrix(cett, span),
                self._rows.y,
                np.stack(list(draws)),
                [target for target in targets if target is not None],
                study.seed,
            )
        ]

    def costs(self, precision: str) -> list[Row]:
        """Return the rows of costs: answers, choices, held-out text, length and refusals."""
        swept, plan = self.swept(precision), self.plan
        correct = np.array(correct_answers(self._outputs[self.declared.answer(precision)], plan))
        groups = np.array([p.component for p in plan.questions])
        texts, components = plan.texts, self.m.text_components
        of_texts = None if components is None else np.array(components[: len(texts)])
        tokens = np.array([len(text.response) for text in texts], dtype=float)
        component = units.components(plan.choices)
        of_choices = np.array([component[choice.id] for choice in plan.choices])
        rows: list[Row] = []
        for a, alpha in enumerate(self.section.alphas):
            measured = costs.read(self._outputs[self.declared.costs(precision, alpha)])
            hits = measured.picks == np.array([choice.answer for choice in plan.choices])
            lengths = np.concatenate([s.h.tokens[a] for s in swept.values()])
            refused = np.concatenate([s.h.refused[a] for s in swept.values()])
            rows.append(
                Cost(
                    precision=precision,
                    alpha=alpha,
                    n=len(plan.questions),
                    entities=len(np.unique(groups)),
                    accuracy=estimate_rate(correct[a], groups),
                    choice_accuracy=estimate_rate(hits, of_choices),
                    perplexity=perplexity(measured.nll, tokens, of_texts),
                    tokens=float(lengths.mean()),
                    refusals=float(refused.mean()),
                )
            )
        return rows

    def _replies(self, precision: str, label: str) -> list[list[Any]]:
        node = self.declared.respond(precision, scenario(label))
        return read_replies(self._outputs[node])[label]

    def _judged(self, precision: str, label: str) -> Swept:
        section, trials = self.section, self._asked[label]
        node = self.declared.judge(precision, scenario(label))
        outcomes, replies = read_judged(self._outputs[node])[label], self._replies(precision, label)
        plain = replies[section.alphas.index(1.0)]
        n_h, per_draw = len(section.alphas), len(section.control_alphas)
        draws = [
            judged_sweep(outcomes[start:][:per_draw], replies[start:][:per_draw], plain)
            for start in range(n_h, len(replies), per_draw)
        ]
        return Swept(
            precision=precision,
            scenario=label,
            judge=self.plan.judge_label(label),
            neurons=len(self._neurons.positive),
            alphas=section.alphas,
            control_alphas=section.control_alphas,
            mixed=np.array([asked.mixed for asked in trials]),
            components=np.array([asked.component for asked in trials]),
            h=judged_sweep(outcomes[:n_h], replies[:n_h], plain),
            matched=JudgedSweep(*map(np.stack, zip(*draws, strict=True))),
            seed=self.m.study.seed,
        )

    def _target(self, precision: str, label: str) -> Target | None:
        """Return a scenario's decided responses with their CETT; None if there are none."""
        decided, complied = read_outcomes(self._outputs[self.declared.targets(label)])
        if not decided:
            return None
        traces = Traces.open(self._outputs[self.declared.trace(precision, label)])
        components = np.array([asked.component for asked in self._asked[label]])[decided]
        features = traces.features(self._neurons.cett, self._neurons.tokens)
        return Target(label, np.array(complied), components, features)
