"""`hq bundle`: a monitor in one folder, for one model file; made, verified, and shown."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markdown import Markdown

from harness.cli.app import AsJson, Quiet, app, err, out, print_json

if TYPE_CHECKING:
    from hq.monitor.bundle import Bundle
    from hq.stats.bootstrap import Estimate

bundle_app = typer.Typer(
    no_args_is_help=True,
    help="A monitor in one folder: neurons, thresholds with a promise, and what was measured, for "
    "one model file.",
)
app.add_typer(bundle_app, name="bundle")

Folder = Annotated[Path, typer.Argument(help="A bundle's folder.")]


@bundle_app.command()
def make(
    run: Annotated[Path, typer.Option(help="Folder of a finished run, such as runs/NAME.")],
    gguf: Annotated[Path, typer.Option(help="The file to serve, or `smollm2`.")],
    into: Annotated[Path, typer.Option(help="Folder for the bundle; it must not be there yet.")],
    false_alarms: Annotated[
        float, typer.Option(help="Share of right answers that may be flagged, at most.")
    ] = 0.1,
    precision: Annotated[
        str, typer.Option(help="gguf-q4_k_m and its kin, which is then checked.")
    ] = "gguf-source",
    name: Annotated[str, typer.Option(help="What logs call it; default: the study.")] = "",
    threads: Annotated[int, typer.Option(min=1, help="Threads of llama.cpp.")] = 2,
    gpu_layers: Annotated[int, typer.Option(min=-1, help="Layers on a GPU; -1 for all.")] = 0,
    quiet: Quiet = False,
) -> None:
    """Bundle a run's neurons for a GGUF file of its model, whatever its quantization.

    The run's held-out answers are read in that very file. Thresholds are set on the calibration
    split, for all questions and for each relation that has enough, so that at most the given share
    of right answers is flagged; the test split then says what they do.
    """
    from harness.deploy.bundling import Run
    from harness.deploy.bundling import make as make_bundle
    from harness.models.sources import gguf_of
    from harness.store.progress import Progress
    from hq.backends.llamacpp.backend import LlamaBackend
    from hq.monitor.bundle import Bundle

    found = Run.open(run)
    with (
        LlamaBackend(gguf_of(gguf), precision, threads=threads, n_gpu_layers=gpu_layers) as backend,
        Progress(quiet=quiet) as progress,
    ):
        make_bundle(found, backend, false_alarms, into, name or found.study, progress)
    _summary(Bundle.load(into))
    err.print(f"Bundle: {into}")


@bundle_app.command()
def verify(
    folder: Folder,
    gguf: Annotated[
        Path | None, typer.Option(help="The file to serve with it, or `smollm2`.")
    ] = None,
) -> None:
    """Check every byte of a bundle, and that a model file is the one it was validated on."""
    from harness.models.sources import gguf_of
    from hq.gguf.file import GGUFFile
    from hq.monitor.bundle import Bundle

    bundle = Bundle.load(folder)
    if gguf is not None:
        bundle.require(GGUFFile(gguf_of(gguf)))
    where = "" if gguf is None else f", for {bundle.facts.model.name}"
    out.print(f"{folder} is whole{where}: {bundle.digest}", soft_wrap=True)


@bundle_app.command()
def show(folder: Folder, as_json: AsJson = False) -> None:
    """A bundle's model card; with --json what its files say."""
    from pydantic import TypeAdapter

    from hq.monitor.bundle import Bundle, BundleFacts, Domain, Validation

    bundle = Bundle.load(folder)
    if not as_json:
        out.print(Markdown(bundle.card))
        return
    domains = TypeAdapter(dict[str, Domain]).dump_python(dict(bundle.domains), mode="json")
    print_json(
        {"digest": bundle.digest}
        | TypeAdapter(BundleFacts).dump_python(bundle.facts, mode="json")
        | {"domains": domains}
        | {"validation": TypeAdapter(Validation).dump_python(bundle.validation, mode="json")}
        | {"neurons": bundle.neurons.model_dump(mode="json")}
    )


def _summary(bundle: "Bundle") -> None:
    validation = bundle.validation
    out.print(f"AUROC {validation.auroc} on {validation.n} held-out answers")
    if validation.auroc.low <= 0.5:
        err.print("In this file the probe cannot be told from chance: do not rely on it.")
    for name, domain in bundle.domains.items():
        out.print(
            f"{name}: {domain.false_alarms:g} promised by {domain.n} entities, false alarms "
            f"{_rate(domain.realised)}, detected {_rate(domain.detected)}",
            soft_wrap=True,
        )


def _rate(estimate: "Estimate | None") -> str:
    return "not measured" if estimate is None else str(estimate)
