"""`hq trace`, `hq identify`, `hq compare`: single stages, from files to files."""

from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from harness.cli.app import AsJson, Quiet, app, err, out, print_json
from hq.errors import HQError

if TYPE_CHECKING:
    from harness.store.progress import Progress
    from hq.backends.base import Backend

Seed = Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Seed of all that is drawn.")]
Samples = Annotated[Path, typer.Option(help="A samples.jsonl, as `hq study run` writes it.")]


@app.command()
def trace(
    samples: Samples,
    into: Annotated[Path, typer.Option(help="Folder for the traces; a killed trace goes on.")],
    model: Annotated[
        str, typer.Option(help="A checkpoint, a packed one (GPTQ, AWQ, …), GGUF file or hub id.")
    ] = "smollm2",
    precision: Annotated[
        str, typer.Option(help="fp16, int8, nf4, gptq-4, awq-4, gguf-…; `hq doctor` lists them.")
    ] = "fp16",
    source: Annotated[
        str,
        typer.Option(
            help="The FP16 checkpoint whose neurons these are, where --model is another file of "
            "it, such as a packed one. The weights are compared first; `hq compare` needs it."
        ),
    ] = "",
    measures: Annotated[
        str, typer.Option(help="Comma-separated: sum, output, contribution.")
    ] = "sum,contribution",
    spans: Annotated[str, typer.Option(help="Comma-separated: answer, prompt, other.")] = "answer",
    quiet: Quiet = False,
) -> None:
    """CETT of every neuron over the samples' token ids, at one precision."""
    from harness.stages.samples import read_samples
    from harness.stages.trace import trace as trace_stage
    from harness.store.progress import Progress
    from hq.neurons.cett import MEASURES, SPANS
    from hq.tracing.traces import INFO_FILE

    if (into / INFO_FILE).exists():
        raise HQError(f"{into} holds a finished trace already: name another folder.")
    chosen_measures = _choose("measure", measures, MEASURES)
    chosen_spans = _choose("span", spans, SPANS)
    exchanges = [sample.exchange for sample in read_samples(samples)]
    with (
        Progress(quiet=quiet) as progress,
        closing(_opened(model, precision, source, progress)) as backend,
        progress.task(f"trace {precision}", len(exchanges), "texts") as task,
    ):
        trace_stage(into, backend, exchanges, chosen_measures, chosen_spans, task)
    err.print(f"Traces: {into}")


@app.command()
def identify(
    samples: Samples,
    traces: Annotated[Path, typer.Option(help="A folder that `hq trace` wrote.")],
    into: Annotated[Path, typer.Option(help="Folder for neurons.json and path.csv.")],
    cett: Annotated[str, typer.Option(help="sum (the article) or output (the paper).")] = "sum",
    tokens: Annotated[str, typer.Option(help="answer, prompt or other.")] = "answer",
    labels: Annotated[str, typer.Option(help="1-vs-1 or 3-vs-1.")] = "1-vs-1",
    folds: Annotated[int, typer.Option(help="Folds of the cross-validation of C.")] = 5,
    max_fraction: Annotated[
        float, typer.Option(help="Share of the neurons that may have a weight.")
    ] = 1e-3,
    seed: Seed = 0,
    prompt: Annotated[
        str, typer.Option(help="How the questions were asked: chat or few-shot; for `hq monitor`.")
    ] = "",
) -> None:
    """H-Neurons from traces: an L1 path, C by cross-validation, a threshold by calibration."""
    from harness.stages.identify import NEURONS_FILE, find_neurons
    from harness.stages.samples import read_samples, require_separate
    from harness.studies.study import IdentifySection
    from hq.neurons.neuron_set import NeuronSet
    from hq.tracing.traces import Traces

    options: dict[str, object] = {"cett": cett, "tokens": tokens, "labels": labels}
    options |= {"folds": folds, "max_fraction": max_fraction}
    section = IdentifySection.of(options, "the options")
    chosen = read_samples(samples)
    require_separate(chosen)
    find_neurons(into, Traces.open(traces), chosen, section, seed, prompt)
    found = NeuronSet.load(into / NEURONS_FILE)
    err.print(f"{len(found.positive)} H-Neurons: {into / NEURONS_FILE}")


@app.command()
def compare(
    samples: Samples,
    neurons: Annotated[Path, typer.Option(help="A neurons.json found on the reference.")],
    reference: Annotated[Path, typer.Option(help="Traces of the reference precision.")],
    variant: Annotated[Path, typer.Option(help="Traces of the other precision.")],
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """The frozen probe at another precision: detection, controls and fidelity."""
    from harness.experiments.detect.compare import Comparison
    from harness.stages.identify import NEURONS_FILE, find_neurons
    from harness.stages.samples import read_samples, require_origin, require_separate
    from harness.studies.study import CompareSection, IdentifySection
    from harness.tables.files import markdown
    from hq.neurons.neuron_set import NeuronSet
    from hq.tracing.traces import Traces

    chosen, ref, var = read_samples(samples), Traces.open(reference), Traces.open(variant)
    require_separate(chosen)
    probe = NeuronSet.load(neurons, ref.info.model)
    section = IdentifySection.like(probe)
    require_origin(probe, chosen, ref)
    with TemporaryDirectory() as folder:
        find_neurons(Path(folder), var, chosen, section, seed)
        again = NeuronSet.load(Path(folder) / NEURONS_FILE)
    comparison = Comparison(chosen, probe, ref, var, again, None, CompareSection(), seed)
    tables = {name: rows for name, rows in comparison.tables().items() if rows}
    if as_json:
        print_json({name: [row.model_dump() for row in rows] for name, rows in tables.items()})
        return
    for name, rows in tables.items():
        out.print(f"## {name}\n\n{markdown(rows)}\n", soft_wrap=True)


def _opened(model: str, precision: str, source: str, progress: "Progress") -> "Backend":
    """The model at a precision, its neurons those of `source`, where one is named.

    Raises HQError where they are not that checkpoint's.
    """
    from harness.models.sources import resolve_model, source_of
    from harness.stages import mapping
    from hq.backends.opening import open_backend
    from hq.backends.transformers.backend import TorchBackend
    from hq.models.checkpoint import checkpoint_identity
    from hq.models.ffn_weights import of_checkpoint
    from hq.precisions.packed import UNCHECKED, mark_unchecked, recipe_of

    path = source_of(model, precision)
    if not source:
        backend = open_backend(path, precision)
        if isinstance(backend, TorchBackend) and recipe_of(precision):
            mark_unchecked(backend.model)
            err.print(
                f"[yellow]{escape(str(path))} is {UNCHECKED}: codes that are read wrongly would "
                "not be noticed; name its FP16 checkpoint by --source.[/yellow]",
                soft_wrap=True,
            )
        return backend
    dense = resolve_model(source)
    known = checkpoint_identity(dense)
    backend = open_backend(path, precision, None, known)
    with TemporaryDirectory() as scratch:
        folder = Path(scratch)
        with progress.task(f"map {precision}", known.n_layers, "layers") as task:
            mapping.build(folder, of_checkpoint(dense), backend.ffns(), task)
        mapping.require(folder, precision)
        return mapping.mapped(folder, backend)


def _choose(kind: str, text: str, known: tuple[str, ...]) -> tuple:  # type: ignore[type-arg]
    chosen = tuple(text.split(","))
    for name in chosen:
        if name not in known:
            raise HQError(f"There is no {kind} {name!r}: known are {', '.join(known)}.")
    return chosen
