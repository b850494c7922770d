"""`hq trace`, `hq identify` and `hq compare`: single steps of a study, from files to files."""

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

SeedOption = Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Seed of folds and draws.")]
SamplesOption = Annotated[
    Path, typer.Option(help="A samples.jsonl, as `hq study run` writes it: labelled answers.")
]


@app.command("trace")
def trace_command(
    samples: SamplesOption,
    into: Annotated[
        Path, typer.Option(help="Folder for the traces; an interrupted trace there is continued.")
    ],
    model: Annotated[
        str,
        typer.Option(
            help="A checkpoint folder (also GPTQ, AWQ, …), a GGUF file, a hub id, or `smollm2` for "
            "the embedded model."
        ),
    ] = "smollm2",
    precision: Annotated[
        str,
        typer.Option(
            help="Precision to run at: fp16, int8, nf4, gptq-4, awq-4, gguf-q4_k_m, …; `hq doctor` "
            "lists all."
        ),
    ] = "fp16",
    source: Annotated[
        str,
        typer.Option(
            help="The FP16 checkpoint that --model was quantized from. Its weights are compared "
            "with the model's first; `hq compare` needs traces made with it. Default: --model is "
            "the source itself."
        ),
    ] = "",
    measures: Annotated[
        str,
        typer.Option(
            help="Comma-separated. Contribution over the sum of contributions (sum), over the norm "
            "of the layer's output (output), or the contribution itself (contribution)."
        ),
    ] = "sum,contribution",
    spans: Annotated[
        str,
        typer.Option(
            help="Comma-separated tokens to read: the answer (mean), the last prompt token "
            "(prompt), or all tokens outside the answer (other, mean)."
        ),
    ] = "answer",
    quiet: Quiet = False,
) -> None:
    """Write the CETT of every neuron over the samples' token ids, at one precision.

    Example: `hq trace --samples runs/NAME/samples.jsonl --precision nf4 --into traces-nf4`.
    """
    from harness.stages.samples import read_samples
    from harness.stages.trace import trace as trace_stage
    from harness.store.progress import Progress
    from hq.neurons.cett import MEASURES, SPANS
    from hq.tracing.traces import INFO_FILE

    if (into / INFO_FILE).exists():
        raise HQError(f"{into} already holds a finished trace: name another folder.")
    chosen_measures = _choose("measure", measures, MEASURES)
    chosen_spans = _choose("span", spans, SPANS)
    texts = [sample.exchange for sample in read_samples(samples)]
    with (
        Progress(quiet=quiet) as progress,
        closing(_open_mapped(model, precision, source, progress)) as backend,
        progress.task(f"trace {precision}", len(texts), "texts") as task,
    ):
        trace_stage(into, backend, texts, chosen_measures, chosen_spans, task)
    err.print(f"Traces: {into}")


@app.command("identify")
def identify_command(
    samples: SamplesOption,
    traces: Annotated[Path, typer.Option(help="Folder that `hq trace` wrote for these samples.")],
    into: Annotated[
        Path, typer.Option(help="Folder for neurons.json, probes.json, path.csv and stability.csv.")
    ],
    cett: Annotated[
        str,
        typer.Option(help="CETT measure: sum (the article) or output (the paper)."),
    ] = "sum",
    tokens: Annotated[
        str, typer.Option(help="Tokens of the measure: answer, prompt or other.")
    ] = "answer",
    labels: Annotated[
        str,
        typer.Option(
            help="1-vs-1: hallucinated against right answers. 3-vs-1: the other tokens of all "
            "answers also count as not hallucinated."
        ),
    ] = "1-vs-1",
    repeats: Annotated[
        int, typer.Option(help="Repeats of the cross-validation that chooses C.")
    ] = 3,
    max_fraction: Annotated[
        float, typer.Option(help="The largest share of all neurons that may have a weight.")
    ] = 1e-3,
    seed: SeedOption = 0,
    prompt: Annotated[
        str,
        typer.Option(
            help="Prompt form of the questions, chat or few-shot, recorded for `hq monitor`."
        ),
    ] = "",
) -> None:
    """Identify H-Neurons from traces: an L1 path, C by cross-validation, thresholds.

    The set in neurons.json is fitted on all samples. probes.json has the probes of the folds, which
    score samples that they have not seen; `hq compare` reads both from the same folder.

    Example: `hq identify --samples runs/NAME/samples.jsonl --traces traces --into neurons`.
    """
    from harness.stages.identify import NEURONS_FILE, find_neurons
    from harness.stages.samples import read_samples, require_separate
    from harness.studies.study import IdentifySection
    from hq.neurons.neuron_set import NeuronSet
    from hq.tracing.traces import Traces

    options: dict[str, object] = {"cett": cett, "tokens": tokens, "labels": labels}
    chosen = read_samples(samples)
    require_separate(chosen)
    folds = max(sample.fold for sample in chosen) + 1
    options |= {"folds": folds, "repeats": repeats, "max_fraction": max_fraction}
    section = IdentifySection.of(options, "the options and the folds of the samples")
    find_neurons(into, Traces.open(traces), chosen, section, seed, prompt)
    identified = NeuronSet.load(into / NEURONS_FILE)
    err.print(f"{len(identified.positive)} H-Neurons: {into / NEURONS_FILE}")


@app.command("compare")
def compare_command(
    samples: SamplesOption,
    neurons: Annotated[
        Path,
        typer.Option(
            help="A neurons.json identified on the reference traces; probes.json is beside it."
        ),
    ],
    reference: Annotated[
        Path, typer.Option(help="Folder with traces of the reference precision, such as fp16.")
    ],
    variant: Annotated[
        Path, typer.Option(help="Folder with traces of the other precision, such as nf4.")
    ],
    seed: SeedOption = 0,
    as_json: AsJson = False,
) -> None:
    """Evaluate the frozen probe at another precision: detection, controls and fidelity.

    Example: `hq compare --samples samples.jsonl --neurons neurons.json --reference traces-fp16
    --variant traces-nf4`.
    """
    from harness.experiments.detect.compare import Comparison
    from harness.experiments.detect.tables import TABLES
    from harness.stages.identify import PROBES_FILE, find_neurons
    from harness.stages.samples import read_samples, require_origin, require_separate
    from harness.studies.study import CompareSection, IdentifySection
    from harness.tables.files import frame_of, markdown
    from hq.neurons.neuron_set import NeuronSet
    from hq.probe.cross_fit import CrossFit
    from hq.tracing.traces import Traces

    chosen, ref, var = read_samples(samples), Traces.open(reference), Traces.open(variant)
    require_separate(chosen)
    probe = NeuronSet.load(neurons, ref.info.model)
    section = IdentifySection.like(probe)
    require_origin(probe, chosen, ref)
    probes = CrossFit.load(neurons.with_name(PROBES_FILE), ref.info.model)
    if probes.neurons != probe:
        raise HQError(
            f"{neurons} and the {PROBES_FILE} beside it are of different fits: give the folder of "
            "one `hq identify`."
        )
    with TemporaryDirectory() as folder:
        reidentified = find_neurons(Path(folder), var, chosen, section, seed)
    comparison = Comparison(
        samples=chosen,
        probes=probes,
        reference=ref,
        variant=var,
        reidentified=reidentified,
        uncertainty=None,
        section=CompareSection(),
        seed=seed,
    )
    tables = {name: rows for name, rows in comparison.tables().items() if rows}
    if as_json:
        print_json({name: [row.model_dump() for row in rows] for name, rows in tables.items()})
        return
    for name, rows in tables.items():
        out.print(
            f"## {name}\n\n{markdown(TABLES[name][0], frame_of(TABLES[name][0], rows))}\n",
            soft_wrap=True,
        )


def _open_mapped(model: str, precision: str, source: str, progress: "Progress") -> "Backend":
    """Open the model at a precision and, if `source` is named, map its neurons to the source's.

    Raises HQError if the weights do not match the source's.
    """
    from harness.models.sources import resolve_model, source_of
    from harness.stages import mapping
    from hq.backends.opening import open_backend
    from hq.backends.transformers.backend import TorchBackend
    from hq.models.checkpoint import checkpoint_identity, quantization_of
    from hq.models.ffn_weights import of_checkpoint
    from hq.precisions.packed import UNCHECKED, mark_unchecked, recipe_of

    path = source_of(model, precision)
    if not source:
        backend = open_backend(path, precision)
        quantized = recipe_of(precision) or (path.is_dir() and quantization_of(path))
        if isinstance(backend, TorchBackend) and quantized and mark_unchecked(backend.model):
            err.print(
                f"[yellow]{escape(str(path))} is {UNCHECKED}, so wrongly decoded weights would not "
                "be noticed: name its FP16 checkpoint with --source.[/yellow]",
                soft_wrap=True,
            )
        return backend
    dense = resolve_model(source)
    known = checkpoint_identity(dense)
    backend = open_backend(path, precision, None, known)
    with TemporaryDirectory() as scratch:
        folder = Path(scratch)
        with progress.task(f"map {precision}", len(known.space.blocks), "layers") as task:
            mapping.build(folder, known.space, of_checkpoint(dense), backend.ffns(), task)
        mapping.require(folder, precision)
        return mapping.mapped(folder, backend)


def _choose(kind: str, text: str, known: tuple[str, ...]) -> tuple:  # type: ignore[type-arg]
    chosen = tuple(text.split(","))
    for name in chosen:
        if name not in known:
            raise HQError(f"There is no {kind} {name!r}: choose from {', '.join(known)}.")
    return chosen
