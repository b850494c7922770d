"""Experiment origin: where the tuned model's H-Neurons come from, and what moves them."""

import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Table

from harness.experiments.base import Experiment, estimate_cell
from harness.experiments.mixtures import require_dense
from harness.experiments.origin import nodes
from harness.experiments.origin.pair import require_pair
from harness.experiments.origin.section import FORM, OriginSection, base_model
from harness.experiments.origin.tables import TABLES
from harness.experiments.origin.transfer import Answers, TransferAnalysis
from harness.experiments.origin.weights import WeightsAnalysis
from harness.stages import identify, mapping, sample, trace
from harness.stages.graph import Graph
from harness.stages.identify import NEURONS_FILE, PROBES_FILE
from harness.stages.materials import Materials
from harness.stages.samples import require_origin
from harness.stages.select import TOKENS_FILE
from harness.store.node import Node
from harness.store.runner import Outputs
from harness.studies.study import REFERENCE, Study
from harness.tables.schema import Row
from hq.probe.cross_fit import CrossFit
from hq.tracing.traces import Traces, magnitudes


class OriginExperiment(Experiment):
    """The tuned model's NeuronSet in the base model, and what tuning and quantization move."""

    name = "origin"
    measures = "whether H-Neurons of a tuned model are in its base, and how far tuning moved them"
    tables = TABLES
    committed = (NEURONS_FILE,)
    section = OriginSection

    def check(self, m: Materials) -> None:
        """Raises HQError if the two models are no pair, or the base cannot be asked."""
        require_dense(m, "ranks of changes by tuning are those of neurons of dense layers")
        base = m.of(base_model)
        require_pair(base, m)
        base.check()

    def nodes(self, m: Materials) -> Sequence[Node]:
        """Declare the changes, the tuned model's neurons, and the base model's traces."""
        graph, base = Graph(m), _Base(m)
        return [
            nodes.tuning(m),
            graph.identify(REFERENCE),
            *(mapping.node(base.m, p) for p in m.study.precisions),
            base.identify(),
            *(base.trace(p) for p in m.study.precisions),
            *(nodes.quantization(m, p) for p in _others(m.study)),
        ]

    def rows(self, m: Materials, outputs: Outputs) -> dict[str, list[Row]]:
        """Return the rows of each table."""
        graph, base = Graph(m), _Base(m)
        samples = graph.read_samples(outputs)
        probes, traces = (
            graph.read_probes(outputs, REFERENCE),
            graph.read_traces(outputs, REFERENCE),
        )
        require_origin(probes.neurons, samples, traces)
        transfer = TransferAnalysis(
            tuned=Answers(samples, _questions(m), probes),
            tuned_traces=traces,
            base=base.answers(outputs),
            base_traces={p: base.traces(outputs, p) for p in m.study.precisions},
            draws=m.study.compare.draws,
            seed=m.study.seed,
        )
        span = probes.neurons.tokens
        weights = WeightsAnalysis(
            neurons=probes.neurons,
            magnitudes=magnitudes(traces, span, transfer.tuned.every_row),
            tuning=nodes.read(outputs[nodes.tuning(m)]),
            quantization={
                p: nodes.read(outputs[nodes.quantization(m, p)]) for p in _others(m.study)
            },
            seed=m.study.seed,
        )
        return {
            "transfer": [*transfer.table()],
            "ranks": [*weights.ranks()],
            "neuron_ranks": [*weights.neuron_ranks()],
            "distances": [*weights.distances()],
        }

    def write(self, folder: Path, m: Materials, outputs: Outputs) -> None:
        """Write the neurons of the tuned model."""
        shutil.copyfile(Graph(m).neurons_file(outputs), folder / NEURONS_FILE)

    def definition(self, study: Study) -> dict[str, Any]:
        """Return in which form the base model is asked."""
        return {"origin": {"base": "given", "prompt": FORM}}

    def facts(self, m: Materials, outputs: Outputs) -> dict[str, Any]:
        """Return the base model, and how it answered."""
        base = _Base(m)
        records = sample.read_records(outputs[base.graph.responses]).values()
        labels = Counter(record.hallucinated for record in records)
        return {
            "base": base.m.model.model_dump(mode="json"),
            "base_sampling": {
                "asked": len(records),
                "consistently_right": labels[False],
                "consistently_hallucinated": labels[True],
                "set_aside": labels[None],
                "kept_pairs": len(base.graph.read_samples(outputs)) // 2,
            },
        }

    def summary(self, tables: Mapping[str, Sequence[Any]]) -> Group:
        """Return AUROCs on the base model's answers, ranks, and distances."""
        return Group(
            _transfer_table(tables["transfer"]),
            _ranks_table(tables["ranks"]),
            _distances_table(tables["distances"]),
        )


class _Base:
    """The nodes of the base model: one CETT of all neurons is traced."""

    def __init__(self, m: Materials) -> None:
        self.m = m.of(base_model)
        self.graph = Graph(self.m)

    def trace(self, precision: str) -> Node:
        """Declare the traces of the base model's answers at a precision."""
        m, tokens = self.m, self.graph.samples.output(TOKENS_FILE)
        measures = (m.study.identify.cett,)
        return trace.node(m, precision, tokens, self.graph.n, measures, m.spans, m.scope)

    def identify(self) -> Node:
        """Declare the neurons that are identified on the base model."""
        return identify.node(self.m, self.trace(REFERENCE), self.graph.samples)

    def traces(self, outputs: Outputs, precision: str) -> Traces:
        """Return the traces of the base model's answers at a precision."""
        return Traces.open(outputs[self.trace(precision)])

    def answers(self, outputs: Outputs) -> Answers:
        """Return the base model's answers, and the probes that are cross-fitted on them."""
        probes = CrossFit.load(outputs[self.identify()] / PROBES_FILE, self.m.model)
        return Answers(self.graph.read_samples(outputs), _questions(self.m), probes)


def _questions(m: Materials) -> dict[str, Any]:
    return {p.question.id: p.question for p in m.prompted}


def _others(study: Study) -> list[str]:
    return [precision for precision in study.precisions if precision != REFERENCE]


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, box=SIMPLE_HEAD, padding=(0, 1))
    table.add_column(columns[0], overflow="fold", min_width=9)
    for column in columns[1:]:
        table.add_column(column, no_wrap=True)
    return table


def _transfer_table(rows: Sequence[Any]) -> Table:
    first = rows[0]
    names = ("probe", "h-neurons", "matched", "random", "refit")
    areas = {(row.precision, row.scores): row.auroc for row in rows}
    table = _table(
        f"AUROC on the base model's own {first.n} answers in {first.units} units. The tuned\n"
        "model's probe and controls are not refitted; refit is identified on the base.",
        *("precision", *names),
    )
    for precision in dict.fromkeys(row.precision for row in rows):
        table.add_row(precision, *(estimate_cell(areas[precision, name]) for name in names))
    return table


def _ranks_table(rows: Sequence[Any]) -> Table:
    table = _table(
        "Normalised rank of the change by tuning: small rank = large change, 1 = the\n"
        f"smallest of {rows[0].of:,} neurons. The unit is the neuron; p is one-sided.",
        *("group", "rank", "matched", "p: changed less\nthan all", "than\nmatched"),
        *("p: changed more\nthan all", "than\nmatched"),
    )
    for row in rows:
        sides = (row.p_stable, row.p_stable_matched, row.p_changed, row.p_changed_matched)
        table.add_row(
            f"{row.neurons}\n{row.group}",
            estimate_cell(row.rank),
            estimate_cell(row.rank_matched),
            *(f"{p:.2g}" for p in sides),
        )
    return table


def _distances_table(rows: Sequence[Any]) -> Table:
    table = _table(
        "Mean 1 − cos from the FP16 base. tuned − this: paired over H-Neurons, above 0 if\n"
        "tuning moved them more. moved more: H-Neurons that this moves more than tuning.",
        *("change", "H-Neurons", "matched", "all", "tuned −\nthis", "moved\nmore"),
    )
    for row in rows:
        table.add_row(
            row.change,
            _small(row.distance),
            _small(row.distance_matched),
            f"{row.distance_all:.2g}",
            "" if row.tuned_minus is None else _small(row.tuned_minus),
            "" if row.moved_more is None else f"{row.moved_more}\nof {row.neurons}",
        )
    return table


def _small(estimate: Any) -> str:
    """An estimate in scientific notation, which changes of weights need."""
    return f"{estimate.value:.2g}\n[dim]{estimate.low:.2g} {estimate.high:.2g}[/dim]"
