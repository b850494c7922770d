"""`hq run`, `hq plan`, `hq study run`: any kind of experiment, from questions to tables."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from harness.cli.app import AsJson, Quiet, app, err, out, print_json
from hq.errors import HQError

if TYPE_CHECKING:
    from harness.store.runner import Planned
    from harness.studies.study import Study

study_app = typer.Typer(no_args_is_help=True, help="Run a study: model × precisions × scenario.")
app.add_typer(study_app, name="study")

DEFAULT_STUDY = "smollm2-facts"

Name = Annotated[str, typer.Argument(help="A TOML file, or the name of a packaged study.")]
Kind = Annotated[
    str | None,
    typer.Option(
        "--experiment",
        "-e",
        help="detect, sweep or survival (`hq list experiments`); default: "
        "what the study says, else detect.",
    ),
]
Model = Annotated[str | None, typer.Option(help="A checkpoint folder, GGUF file or hub id.")]
Precisions = Annotated[
    str | None,
    typer.Option(help="Comma-separated, in place of the study's: fp16,nf4,gguf-q4_k_m."),
]
Questions = Annotated[
    Path | None, typer.Option(help="The question file of the study's scenario, if it reads one.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        help="KEY=VALUE for any key of the study's file, with dots: --set sampling.quota=100. "
        "May be given several times.",
    ),
]
Into = Annotated[
    Path | None, typer.Option(help="Folder for the tables; default runs/ and the run's name.")
]
Resume = Annotated[
    bool, typer.Option("--resume/--fresh", help="Reuse finished nodes, or compute all again.")
]


def planned(
    name: str,
    model: str | None,
    precisions: str | None,
    questions: Path | None,
    overrides: Sequence[str] | None = None,
) -> "Study":
    """The study of that name with the options that commands share."""
    from harness.experiments.run import load_study, validate_sections

    study = load_study(name)
    if overrides:
        study = study.overridden(overrides)
        validate_sections(study)
    study = study.changed(
        model=model, precisions=None if precisions is None else tuple(precisions.split(","))
    )
    return study if questions is None else study.reading(str(questions))


def execute(
    study: "Study", experiment: str, into: Path | None, resume: bool, quiet: bool, as_json: bool
) -> None:
    """Runs an experiment of a study and prints its summary. Raises HQError as `run` does."""
    from harness.experiments import EXPERIMENTS
    from harness.experiments.run import run as run_experiment
    from harness.store.places import cache_folder
    from harness.store.progress import Progress
    from harness.store.store import Store

    kind = EXPERIMENTS[experiment]
    folder = into or Path("runs") / kind.study_name(study)
    if folder.is_file():
        raise HQError(f"{folder} is a file: name a folder for the tables.")
    store = Store(cache_folder() / "store", fresh=not resume)
    with Progress(quiet=quiet) as progress:
        result = run_experiment(study, kind, store, progress, folder)
    if as_json:
        tables = {name: [row.model_dump() for row in rows] for name, rows in result.tables.items()}
        print_json({"folder": str(folder), "tables": tables, "provenance": result.provenance})
    else:
        out.print(kind.summary(result.tables))
        err.print(f"All tables: {folder}/tables.md")


@app.command("run")
def run(
    study: Name = DEFAULT_STUDY,
    experiment: Kind = None,
    model: Model = None,
    precisions: Precisions = None,
    questions: Questions = None,
    overrides: Overrides = None,
    into: Into = None,
    resume: Resume = True,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Run an experiment of a study, and write its tables.

    A killed run continues with the same command: the output of every node is kept under the digest
    of all that it depends on, code included, and only what a change affects is computed again.
    """
    chosen = planned(study, model, precisions, questions, overrides)
    execute(chosen, experiment or chosen.experiment, into, resume, quiet, as_json)


@app.command("plan")
def plan(
    study: Name = DEFAULT_STUDY,
    experiment: Kind = None,
    model: Model = None,
    precisions: Precisions = None,
    questions: Questions = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Show what `hq run` would compute, node by node, and why. Nothing runs.

    Times are those of earlier nodes of the same stage on this machine, in proportion to the work;
    — means that there was none. Memory and disk are upper bounds.
    """
    from harness.experiments import EXPERIMENTS
    from harness.experiments.run import plan as plan_experiment
    from harness.store.places import cache_folder
    from harness.store.store import Store

    chosen = planned(study, model, precisions, questions, overrides)
    kind = EXPERIMENTS[experiment or chosen.experiment]
    nodes = plan_experiment(chosen, kind, Store(cache_folder() / "store"))
    if as_json:
        print_json([_as_json(one) for one in nodes])
        return
    out.print(_plan_table(nodes))
    missing = [one for one in nodes if one.needed]
    known = [one.seconds for one in missing if one.seconds is not None]
    unknown = len(missing) - len(known)
    out.print(
        f"{len(nodes) - len(missing)} of {len(nodes)} nodes are there. Missing: "
        f"{_duration(sum(known))}"
        + (f", and {unknown} nodes of unknown time" if unknown else "")
        + f"; {_size(sum(one.node.disk for one in missing))} on disk, "
        f"{_size(max((one.node.memory for one in missing), default=0))} of memory.",
        highlight=False,
    )


def _plan_table(nodes: "Sequence[Planned]") -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("node", "state", "work", "time", "disk", "why"):
        table.add_column(column, no_wrap=column != "why")
    styles = {"there": "green", "missing": "yellow", "stale": "red", "waits": "dim"}
    for one in nodes:
        node = one.node
        table.add_row(
            node.name,
            f"[{styles[one.state]}]{one.state}[/]",
            f"≤ {node.units:,} {node.unit}" if one.needed else "",
            ("—" if one.seconds is None else _duration(one.seconds)) if one.needed else "",
            _size(node.disk) if one.needed and node.disk else "",
            one.why,
        )
    return table


def _as_json(one: "Planned") -> dict[str, object]:
    return {
        "node": one.node.name,
        "state": one.state,
        "why": one.why,
        "units": one.node.units,
        "unit": one.node.unit,
        "seconds": one.seconds,
        "disk_bytes": one.node.disk,
        "memory_bytes": one.node.memory,
    }


def _duration(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"


def _size(size: int) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"


@study_app.command("run")
def study_run(
    study: Name = DEFAULT_STUDY,
    model: Model = None,
    precisions: Precisions = None,
    sampler: Annotated[
        str | None, typer.Option(help="What draws the responses: torch, or llamacpp at Q8_0.")
    ] = None,
    questions: Questions = None,
    overrides: Overrides = None,
    into: Into = None,
    resume: Resume = True,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Find H-Neurons on FP16 and evaluate them at each precision: `hq run -e detect`."""
    chosen = planned(study, model, precisions, questions, overrides)
    if sampler is not None:
        chosen = chosen.overridden([f"sampling.sampler={sampler}"])
    execute(chosen, "detect", into, resume, quiet, as_json)
