"""`hq run`, `hq plan` and `hq study run`: experiments of a study, from questions to tables."""

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer
from rich.markup import escape
from rich.table import Table

from harness.cli.app import AsJson, Quiet, app, err, out, print_json
from harness.cli.check import print_report
from hq.errors import HQError

if TYPE_CHECKING:
    from harness.stages.streaming import Streaming
    from harness.store.runner import Planned
    from harness.studies.study import Study
    from harness.tables.provenance import Facts

study_app = typer.Typer(no_args_is_help=True, help="Run a study: model × precisions × scenario.")
app.add_typer(study_app, name="study")

DEFAULT_STUDY = "smollm2-knowledge"

Name = Annotated[str, typer.Argument(help="A TOML file, or the name of a packaged study.")]
ExperimentOption = Annotated[
    str | None,
    typer.Option(
        "--experiment",
        "-e",
        help="See `hq list experiments`; default: the experiment in the study's file, else detect.",
    ),
]
ModelOption = Annotated[str | None, typer.Option(help="A checkpoint folder, GGUF file or hub id.")]
Precisions = Annotated[
    str | None,
    typer.Option(
        help="Comma-separated, instead of those of the study: fp16,nf4,gguf-q4_k_m. "
        "A suffix of a gguf- precision (+fa, +kv-q8_0, +kv-q4_0) sets flash attention and the type "
        "of the K-V cache."
    ),
]
Questions = Annotated[
    Path | None,
    typer.Option(help="Question file of the scenario, if the scenario reads one."),
]
Responses = Annotated[
    Path | None,
    typer.Option(
        help="File of `hq responses export` with the model's responses to the study's questions: "
        "they are validated and used, and none is sampled. Default: sample them.",
        metavar="FILE",
    ),
]
SamplerOption = Annotated[
    str | None,
    typer.Option(
        "--sampler",
        help="What samples the responses: torch at FP16, llamacpp at Q8_0, or openai, the server "
        "at --endpoint. Default: that of the study, else torch.",
    ),
]
EndpointOption = Annotated[
    str | None,
    typer.Option(
        "--endpoint",
        help="Address of an OpenAI-compatible server (vLLM, SGLang, TGI, llama-server, Ollama, hq "
        "serve) of the study's model, for --sampler openai. Its key is the environment variable "
        "OPENAI_API_KEY.",
        metavar="URL",
    ),
]
Concurrency = Annotated[
    int | None,
    typer.Option(help="Requests to the endpoint at a time (8).", min=1, max=256),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        help="KEY=VALUE for any key of the study's file, with dots: --set sampling.quota=100. "
        "Can be given several times.",
    ),
]
Stream = Annotated[
    bool,
    typer.Option(
        "--stream",
        help="Trace layer by layer, with the memory of one layer; the numbers do not change. "
        "Default: only if the model does not fit into memory.",
    ),
]
Into = Annotated[Path | None, typer.Option(help="Folder for the tables; default: runs/NAME.")]
Resume = Annotated[
    bool,
    typer.Option("--resume/--fresh", help="Reuse finished nodes, or compute all of them again."),
]
StoreOption = Annotated[
    str | None,
    typer.Option(
        "--store",
        help="Folder or URL for finished nodes, which machines can share: /mnt/hq, s3://bucket/hq. "
        "Default: $HQ_STORE, else a folder below the cache of this machine.",
        metavar="URL",
    ),
]


class Sampler(NamedTuple):
    """What samples the responses: by default what the study says."""

    name: str | None = None
    endpoint: str | None = None
    concurrency: int | None = None


class Workers(NamedTuple):
    """Where the nodes of a run are computed: by default one after another in this process."""

    store: str | None = None
    number: int | None = None
    address: str | None = None


def planned(
    name: str,
    model: str | None,
    precisions: str | None,
    questions: Path | None,
    overrides: Sequence[str] | None = None,
    responses: Path | None = None,
    sampler: Sampler = Sampler(),  # noqa: B008 - immutable
    stream: bool = False,
) -> "Study":
    """Load a study, and apply the options that commands share.

    Raises HQError if an endpoint is given and another sampler is used.
    """
    from harness.experiments.run import load_study, validate_sections

    study = load_study(name)
    if overrides:
        study = study.overridden(overrides)
        validate_sections(study)
    study = _sampled_by(study, sampler)
    study = study.changed(
        model=model,
        precisions=None if precisions is None else tuple(precisions.split(",")),
        responses=None if responses is None else str(responses),
        stream="always" if stream else None,
    )
    return study if questions is None else study.reading(str(questions))


def _sampled_by(study: "Study", sampler: Sampler) -> "Study":
    given = {
        "sampling.sampler": sampler.name,
        "endpoint.url": None if sampler.endpoint is None else json.dumps(sampler.endpoint),
        "endpoint.concurrency": sampler.concurrency,
    }
    changes = [f"{key}={value}" for key, value in given.items() if value is not None]
    study = study.overridden(changes) if changes else study
    if sampler.endpoint is not None and study.sampling.sampler != "openai":
        raise HQError(
            f"The sampler {study.sampling.sampler} uses no --endpoint: add --sampler openai."
        )
    return study


def execute(
    study: "Study",
    experiment: str,
    into: Path | None,
    resume: bool,
    quiet: bool,
    as_json: bool,
    against: Path | None = None,
    workers: Workers = Workers(),  # noqa: B008 - immutable
) -> None:
    """Run an experiment of a study, and print its summary. Raises HQError as `run`.

    With `against`, nothing is run if these tables cannot decide, or cannot be compared; then the
    run is checked, and the command exits with the verdict's code unless it is pass.
    """
    from harness.check.gate import judge
    from harness.check.summary import as_json as verdicts
    from harness.experiments import EXPERIMENTS
    from harness.experiments.run import on_workers
    from harness.experiments.run import run as run_experiment
    from harness.store.opening import open_store, store_url
    from harness.store.progress import Progress

    kind = EXPERIMENTS[experiment]
    folder = into or Path("runs") / kind.study_name(study)
    if folder.is_file():
        raise HQError(f"{folder} is a file: name a folder for the tables.")
    url, executor = store_url(workers.store), None
    if workers.number is not None or workers.address is not None:
        executor = on_workers(study, kind, url, workers.number, workers.address)
    store = open_store(url, fresh=not resume)
    with Progress(quiet=quiet) as progress:
        require = None if against is None else partial(_require_decision, study.name, against)
        result = run_experiment(study, kind, store, progress, folder, require, executor)
    report = None if against is None else judge(folder, against)
    if as_json:
        tables = {name: [row.model_dump() for row in rows] for name, rows in result.tables.items()}
        facts = {"folder": str(folder), "tables": tables, "provenance": result.provenance}
        print_json(facts if report is None else facts | {"gate": verdicts(report)})
    else:
        out.print(kind.summary(result.tables))
        err.print(f"All tables: {folder}/tables.md")
        if report is not None:
            print_report(report)
    if report is not None and report.verdict.exit_code:
        raise typer.Exit(report.verdict.exit_code)


def _require_decision(study: str, against: Path, facts: "Facts") -> None:
    """Exit with the verdict's code, and a sentence per reason, unless the gate can decide."""
    from harness.check.gate import judge_design

    report = judge_design(study, facts, against)
    for why in dict.fromkeys(group.why for group in report.groups if group.why):
        names = [group.name for group in report.groups if group.why == why]
        err.print(f"[red]hq:[/red] {', '.join(names)}: {escape(why)}", soft_wrap=True)
    if report.verdict.exit_code:
        raise typer.Exit(report.verdict.exit_code)


@app.command("run")
def run_command(
    study: Name = DEFAULT_STUDY,
    experiment: ExperimentOption = None,
    model: ModelOption = None,
    precisions: Precisions = None,
    questions: Questions = None,
    responses: Responses = None,
    sampler: SamplerOption = None,
    endpoint: EndpointOption = None,
    concurrency: Concurrency = None,
    overrides: Overrides = None,
    stream: Stream = False,
    into: Into = None,
    against: Annotated[
        Path | None,
        typer.Option(
            help="Folder of committed tables: nothing runs if they cannot decide (exit code 5) or "
            "cannot be compared (6); then the run is checked as by `hq check`, with its exit codes."
        ),
    ] = None,
    resume: Resume = True,
    workers: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Number of worker processes on this machine, which compute nodes and parts of "
            "nodes at once with equal results; each may hold a loaded model. Needs hq\\[scale]. "
            "Default: everything runs in this process.",
        ),
    ] = None,
    ray: Annotated[
        str | None,
        typer.Option(
            help="Address of a running Ray cluster (HOST:6379, or auto) whose machines compute the "
            "nodes; it can run any code, so use one that you trust. Needs --store and hq\\[scale].",
            metavar="ADDRESS",
        ),
    ] = None,
    store: StoreOption = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Run an experiment of a study, and write its tables.

    After a kill, the same command continues. The output of each node is stored under a digest of
    everything it depends on, so after a change only affected nodes are computed again.
    """
    if workers is not None and ray is not None:
        raise HQError("--workers starts processes here and --ray uses a cluster: give one of them.")
    by = Sampler(sampler, endpoint, concurrency)
    chosen = planned(study, model, precisions, questions, overrides, responses, by, stream)
    where = Workers(store, workers, ray)
    execute(chosen, experiment or chosen.experiment, into, resume, quiet, as_json, against, where)


@app.command("plan")
def plan_command(
    study: Name = DEFAULT_STUDY,
    experiment: ExperimentOption = None,
    model: ModelOption = None,
    precisions: Precisions = None,
    questions: Questions = None,
    responses: Responses = None,
    sampler: SamplerOption = None,
    endpoint: EndpointOption = None,
    concurrency: Concurrency = None,
    overrides: Overrides = None,
    store: StoreOption = None,
    stream: Stream = False,
    as_json: AsJson = False,
) -> None:
    """Show what `hq run` would compute, by node, and why, without running it.

    Times are estimated from earlier nodes of the same stage on this machine; — means that there
    are none. Disk space is an upper bound, memory an estimate. The last line has the smallest
    effect that the run could show with 80% power, as far as the experiment can tell. For a model
    that does not fit into memory, or with --stream, a table has the cost of traces that read it
    layer by layer, here and on GPUs, whose rates are nominal.
    """
    from harness.experiments import EXPERIMENTS
    from harness.experiments.run import plan as plan_experiment
    from harness.store.opening import open_store

    by = Sampler(sampler, endpoint, concurrency)
    chosen = planned(study, model, precisions, questions, overrides, responses, by, stream)
    kind = EXPERIMENTS[experiment or chosen.experiment]
    steps, power, streaming = plan_experiment(chosen, kind, open_store(store))
    if as_json:
        rows = [] if power is None else [row._asdict() for row in power.rows]
        facts = {"nodes": [_as_json(step) for step in steps], "power": rows}
        print_json(facts | {"streaming": streaming.as_json()})
        return
    out.print(_plan_table(steps))
    missing = [step for step in steps if step.needed]
    known = [step.seconds for step in missing if step.seconds is not None]
    unknown = len(missing) - len(known)
    out.print(
        f"{len(steps) - len(missing)} of {len(steps)} nodes are finished. Missing: "
        f"{_duration(sum(known))}"
        + (f", and {unknown} nodes of unknown time" if unknown else "")
        + f"; {_size(sum(step.node.disk for step in missing))} on disk, "
        f"{_size(max((step.node.memory for step in missing), default=0))} of memory.",
        highlight=False,
    )
    if streaming.sentence:
        out.print(streaming.sentence, highlight=False)
        out.print(_cost_table(streaming))
    if power is not None:
        out.print(power.sentence, highlight=False)


def _plan_table(steps: "Sequence[Planned]") -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("node", "state", "work", "time", "disk", "why"):
        table.add_column(column, no_wrap=column != "why")
    styles = {"there": "green", "missing": "yellow", "stale": "red", "waits": "dim"}
    for step in steps:
        node = step.node
        table.add_row(
            node.name,
            f"[{styles[step.state]}]{step.state}[/]",
            f"≤ {node.units:,} {node.unit}" if step.needed else "",
            ("—" if step.seconds is None else _duration(step.seconds)) if step.needed else "",
            _size(node.disk) if step.needed and node.disk else "",
            step.why,
        )
    return table


def _cost_table(streaming: "Streaming") -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("layer by layer on", "memory", "GPU memory", "read", "PFLOP", "hours"):
        table.add_column(column, justify="left" if column.startswith("layer") else "right")
    for name, cost in streaming.costs.items():
        table.add_row(
            name,
            _size(cost.memory),
            _size(cost.device_memory) if cost.device_memory else "",
            _size(cost.read),
            f"{cost.flops / 1e15:.3g}",
            f"{cost.seconds / 3600:.2g}",
        )
    return table


def _as_json(step: "Planned") -> dict[str, object]:
    return {
        "node": step.node.name,
        "state": step.state,
        "why": step.why,
        "units": step.node.units,
        "unit": step.node.unit,
        "seconds": step.seconds,
        "disk_bytes": step.node.disk,
        "memory_bytes": step.node.memory,
    }


def _duration(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"


def _size(size: int) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"


@study_app.command("run")
def study_run(
    study: Name = DEFAULT_STUDY,
    model: ModelOption = None,
    precisions: Precisions = None,
    questions: Questions = None,
    responses: Responses = None,
    sampler: SamplerOption = None,
    endpoint: EndpointOption = None,
    concurrency: Concurrency = None,
    overrides: Overrides = None,
    into: Into = None,
    resume: Resume = True,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Identify H-Neurons on FP16 and evaluate them at each precision; same as hq run -e detect."""
    by = Sampler(sampler, endpoint, concurrency)
    chosen = planned(study, model, precisions, questions, overrides, responses, by)
    execute(chosen, "detect", into, resume, quiet, as_json)
