"""Experiment detect: whether the FP16 probe predicts hallucination at each precision."""

import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from harness.experiments.base import Experiment, Power, estimate_cell
from harness.experiments.detect.compare import Comparison, alignment, selection
from harness.experiments.detect.design import design, text_scores
from harness.experiments.detect.makings import FurtherMaking
from harness.experiments.detect.power import power
from harness.experiments.detect.tables import TABLES
from harness.scenarios.rows import SetAside
from harness.stages import mapping, pack, sample, select, served, uncertainty
from harness.stages.graph import Graph
from harness.stages.identify import (
    NEURONS_FILE,
    PATH_FILE,
    PROBES_FILE,
    STABILITY_FILE,
    read_stability,
)
from harness.stages.materials import Materials
from harness.stages.samples import require_origin
from harness.store.node import Node
from harness.store.runner import Outputs
from harness.studies.study import REFERENCE, Study
from harness.tables.provenance import FROM_FILE, FROM_SERVER
from harness.tables.schema import Row
from hq.probe.fidelity import relative_error
from hq.probe.identify import THRESHOLD
from hq.storage.atomic import write_whole

SET_ASIDE_FILE = "rows_set_aside.csv"
SPEED_FILE = "speed.csv"
SCORES_FILE = "scores.csv"
NEURON_ERRORS_FILE = "neuron_errors.csv"


class DetectExperiment(Experiment):
    """The FP16 probe, frozen and recalibrated, compared with re-identified neurons and controls."""

    name = "detect"
    measures = "AUROC of the FP16 probe at each precision, with controls and re-identified neurons"
    tables = TABLES
    committed = (NEURONS_FILE,)

    def study_name(self, study: Study) -> str:
        """Return the name of the study itself."""
        return study.name

    def nodes(self, m: Materials) -> Sequence[Node]:
        """Declare maps, uncertainty and neurons at each precision, and further makings."""
        graph, precisions = Graph(m), m.study.precisions
        return [
            *(mapping.node(m, p) for p in precisions),
            *(node for p in precisions for node in (graph.identify(p), graph.uncertainty(p))),
            *(
                node
                for p in precisions
                for making in pack.makings(m, p)[1:]
                for node in (graph.trace(p, making), graph.uncertainty(p, making))
            ),
        ]

    def rows(self, m: Materials, outputs: Outputs) -> dict[str, list[Row]]:
        """Return the rows of each table, by precision."""
        graph = Graph(m)
        rows: dict[str, list[Row]] = {name: [] for name in self.tables}
        samples = graph.read_samples(outputs)
        probes, reference = (
            graph.read_probes(outputs, REFERENCE),
            graph.read_traces(outputs, REFERENCE),
        )
        require_origin(probes.neurons, samples, reference)
        texts = text_scores(samples)
        rows["design"].append(design(samples, m.study.sampling.balance, m.study.seed, texts))
        probe = probes.neurons.flat
        for precision in m.study.precisions:
            folder = outputs[mapping.node(m, precision)]
            if precision != REFERENCE:
                mapping.require(folder, precision, probes.neurons)
            reidentified = graph.read_probes(outputs, precision)
            comparison = Comparison(
                samples=samples,
                probes=probes,
                reference=reference,
                variant=graph.read_traces(outputs, precision),
                reidentified=reidentified,
                uncertainty=uncertainty.read(outputs[graph.uncertainty(precision)]),
                section=m.study.compare,
                seed=m.study.seed,
                texts=texts,
                text_components=m.text_components,
                further=[
                    FurtherMaking(
                        graph.read_traces(outputs, precision, making),
                        uncertainty.read(outputs[graph.uncertainty(precision, making)]),
                    )
                    for making in pack.makings(m, precision)[1:]
                ],
            )
            for name, of_precision in comparison.tables().items():
                rows[name] += of_precision
            stability = read_stability(outputs[graph.identify(precision)])
            rows["selection"].append(selection(precision, reidentified, stability))
            rows["mapping"].append(alignment(folder, precision, probe))
        return rows

    def write(self, folder: Path, m: Materials, outputs: Outputs) -> None:
        """Write samples, scores, neurons with their errors, probes, paths, stability and layers.

        Speeds, which are also written, differ between runs; all other files are byte-identical on
        one machine.
        """
        graph, precisions = Graph(m), m.study.precisions
        shutil.copyfile(outputs[graph.samples] / select.SAMPLES_FILE, folder / "samples.jsonl")
        _write_set_aside(folder / SET_ASIDE_FILE, m.questions.set_aside)
        neurons = graph.neurons_file(outputs)
        for name in (NEURONS_FILE, PROBES_FILE, PATH_FILE, STABILITY_FILE):
            shutil.copyfile(neurons.with_name(name), folder / name)
        _write_scores(folder / SCORES_FILE, graph, outputs, precisions)
        _write_neuron_errors(folder / NEURON_ERRORS_FILE, graph, outputs, precisions)
        maps = {p: outputs[mapping.node(m, p)] for p in precisions}
        mapping.write_layers(folder / mapping.LAYERS_FILE, maps)
        speeds = {p: uncertainty.read(outputs[graph.uncertainty(p)]) for p in precisions}
        lines = [f"{p},{u.tokens_per_second:.1f}\n" for p, u in speeds.items()]
        write_whole(folder / SPEED_FILE, "precision,prompt_tokens_per_second\n" + "".join(lines))

    def facts(self, m: Materials, outputs: Outputs) -> dict[str, Any]:
        """Return the numbers of questions asked, of samples, and of generated tokens.

        With the digest of the file that the responses came from, or the servers that sampled them,
        if no model here did.
        """
        graph = Graph(m)
        records = sample.read_records(outputs[graph.responses]).values()
        labels = Counter(record.hallucinated for record in records)
        unusable = len(m.questions.set_aside)
        set_aside = {"rows_set_aside": unusable} if unusable else {}
        given: dict[str, Any] = {} if m.recorded is None else {FROM_FILE: m.recorded.digest}
        if graph.responses.stage is served.STAGE:
            given = {FROM_SERVER: served.read(outputs[graph.responses]).model_dump(mode="json")}
        return {
            "sampling": set_aside
            | given
            | {
                "questions": len(m.prompted),
                "asked": len(records),
                "consistently_right": labels[False],
                "consistently_hallucinated": labels[True],
                "set_aside": labels[None],
                "kept_pairs": len(graph.read_samples(outputs)) // 2,
                "tokens_generated": sum(record.generated for record in records),
                # Without sharing, unfinished responses and questions not asked would add to it.
                "tokens_without_sharing_at_least": sum(record.naive for record in records),
            }
        }

    def power(self, m: Materials, outputs: Outputs) -> Power | None:
        """Return the smallest change of the AUROC from FP16 at each precision."""
        return power(m, outputs)

    def summary(self, tables: Mapping[str, Sequence[Any]]) -> Table:
        """Return AUROC and its controls at each precision."""
        rows = tables["detection"]
        controls = {(row.precision, row.control): row.auroc for row in tables["controls"]}
        first, samples = rows[0], tables["design"][0]
        table = Table(
            title=f"{first.neurons} neurons identified on FP16, {first.h_neurons} of them "
            f"H-Neurons.\nAUROC and 95% intervals at each precision, out of fold: {first.n} "
            f"samples in {first.units} units.",
            caption=_caption(samples, rows, tables["spread"]),
            caption_style="",
            caption_justify="left",
            box=SIMPLE_HEAD,
            padding=(0, 1),
        )
        columns = ("AUROC", "change", "matched\nrandom", "entropy", "re-\nidentified", "in\ncommon")
        table.add_column("precision", overflow="fold")  # gguf-q4_k_m+kv-q8_0 fits in two lines
        for column in columns:
            table.add_column(column, no_wrap=True)
        for row in rows:
            table.add_row(
                row.precision,
                estimate_cell(row.auroc),
                estimate_cell(row.auroc_change, signed=True),
                estimate_cell(controls[row.precision, "matched"]),
                estimate_cell(controls[row.precision, "entropy"]),
                estimate_cell(row.auroc_again),
                f"{row.common}\nof {row.neurons_again}",
            )
        return table


def _caption(samples: Any, rows: Sequence[Any], spreads: Sequence[Any]) -> str:
    """Text-only controls, smallest detectable changes, makings, and a warning if texts leak."""
    areas = (
        ("answer", samples.text_answer),
        ("question", samples.text_question),
        ("both", samples.text_both),
        ("spelling", samples.text_spelling),
    )
    lines = ["Text only: " + ", ".join(f"{name} {area.value:.2f}" for name, area in areas)]
    shown = [f"{row.precision} {row.detectable:.3f}" for row in rows if row.detectable is not None]
    if shown:
        lines.append(f"Smallest detectable change (80% power): {', '.join(shown)}")
    for row in spreads:
        mean = row.auroc_change
        lines.append(
            f"{row.precision}: change over {row.makings} makings {mean.value:+.3f} "
            f"\\[{mean.low:+.3f}, {mean.high:+.3f}], SD {row.deviation:.3f} between them"
        )
    if samples.warning:
        lines.append(
            "[yellow]Warning: the labels can be predicted from text alone "
            f"({escape(samples.warning)}). Compare the probe with text in the table "
            "controls.[/yellow]"
        )
    return "\n".join(lines)


def _write_scores(path: Path, graph: Graph, outputs: Outputs, precisions: Sequence[str]) -> None:
    """Write a row per precision and sample, by the FP16 probe that has not seen its fold.

    Columns: the decision value, its threshold at FP16, and the mean entropy of the answer's tokens.
    """
    probes = graph.read_probes(outputs, REFERENCE)
    samples = graph.read_samples(outputs)
    folds = np.array([sample.fold for sample in samples])
    thresholds = np.array([fold.probe.thresholds[THRESHOLD] for fold in probes.folds])
    frames = []
    for precision in precisions:
        traces = graph.read_traces(outputs, precision)
        features = traces.features(probes.neurons.cett, probes.neurons.tokens)
        entropy = uncertainty.read(outputs[graph.uncertainty(precision)]).entropy
        frames.append(
            pl.DataFrame(
                {
                    "precision": [precision] * len(samples),
                    "sample": [sample.id for sample in samples],
                    "score": probes.scores(features, folds),
                    "threshold": thresholds[folds],
                    "entropy": entropy.astype(np.float64),
                }
            )
        )
    write_whole(path, pl.concat(frames).write_csv(float_precision=6))


def _write_neuron_errors(
    path: Path, graph: Graph, outputs: Outputs, precisions: Sequence[str]
) -> None:
    """Write a row per precision and neuron of the FP16 probe that is fitted on all samples.

    Columns: the neuron, its weight, and the relative error of its contribution, Σ|difference| ÷
    Σ FP16 over samples, as in the table fidelity; empty for a neuron that is silent at FP16.
    """
    neurons = graph.read_probes(outputs, REFERENCE).neurons

    def contributions(precision: str) -> np.ndarray:
        return graph.read_traces(outputs, precision).matrix("contribution", neurons.tokens)[
            :, neurons.flat
        ]

    reference = contributions(REFERENCE)
    rows = []
    for precision in precisions:
        measure = relative_error(reference, contributions(precision))
        for neuron, error in zip(
            neurons.neurons, measure(np.ones((1, len(reference))))[0].tolist(), strict=True
        ):
            value = None if np.isnan(error) else error
            position = (neuron.layer, neuron.expert, neuron.index)
            rows.append((precision, *position, neuron.weight, value))
    schema = ["precision", "layer", "expert", "index", "weight", "relative_error"]
    frame = pl.DataFrame(rows, schema=schema, orient="row", infer_schema_length=None)
    if not neurons.model.space.has_experts:
        frame = frame.drop("expert")
    write_whole(path, frame.write_csv(float_precision=6))


def _write_set_aside(path: Path, rows: Sequence[SetAside]) -> None:
    """Write the rows of the question file that cannot be used; no file if there are none."""
    if rows:
        pl.DataFrame(rows, schema=list(SetAside._fields), orient="row").write_csv(path)
    else:
        path.unlink(missing_ok=True)  # of an earlier run
