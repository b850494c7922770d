"""`hq bundle`: make, verify and show a bundle, which is a monitor for one model file."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.markdown import Markdown

from harness.cli.app import AsJson, Quiet, app, err, out, print_json

if TYPE_CHECKING:
    from hq.monitor.bundle import Bundle
    from hq.stats.intervals import Estimate

bundle_app = typer.Typer(
    no_args_is_help=True,
    help="Make, verify and show bundles. A bundle is a folder with a monitor for one model file: "
    "neurons, thresholds that bound false alarms, and what was measured.",
)
app.add_typer(bundle_app, name="bundle")

Folder = Annotated[Path, typer.Argument(help="Folder of a bundle.")]


@bundle_app.command("make")
def bundle_make(
    run: Annotated[
        Path, typer.Option(help="Folder of a finished `hq study run`, such as runs/NAME.")
    ],
    gguf: Annotated[
        Path,
        typer.Option(help="The GGUF file to monitor, or `smollm2` for the embedded model."),
    ],
    into: Annotated[Path, typer.Option(help="Folder for the bundle; it must not exist yet.")],
    false_alarms: Annotated[
        float,
        typer.Option(
            help="Share of right answers that may be flagged, between 0 and 1. It "
            "needs right answers in 1/share - 1 units outside of each fold: 9 for 0.1, 99 for 0.01."
        ),
    ] = 0.1,
    precision: Annotated[
        str,
        typer.Option(
            help="What the file must be quantized to, such as gguf-q4_k_m, gguf-q8_0 or gguf-f16; "
            "gguf-source accepts any file. A suffix says how the file is run, also by "
            "`hq serve` and `hq monitor`: gguf-source+fa, +kv-q8_0 or +kv-q4_0."
        ),
    ] = "gguf-source",
    name: Annotated[
        str,
        typer.Option(
            help="Name of the bundle in logs: small letters, digits, dots, dashes and underscores; "
            "default: the study's name."
        ),
    ] = "",
    scorer: Annotated[
        Literal["h-neurons", "combined"],
        typer.Option(
            help="What answers are scored by: H-Neurons alone, or combined with entropy and "
            "log-probability of the tokens, which are known at no cost while the model answers."
        ),
    ] = "h-neurons",
    threads: Annotated[int, typer.Option(min=1, help="CPU threads of llama.cpp.")] = 2,
    gpu_layers: Annotated[
        int, typer.Option(min=-1, help="Number of layers on a GPU; -1 for all.")
    ] = 0,
    quiet: Quiet = False,
) -> None:
    """Bundle a run's neurons for a GGUF file of the run's model, at any quantization.

    All samples of the run are read in that file and scored out of fold. Thresholds are set on the
    scores of right answers, for all questions and for each relation with enough of them, so that
    about the given share of right answers is flagged. False alarms and detection are measured at
    thresholds that are set on other folds.

    Example: `hq bundle make --run runs/smollm2-knowledge --gguf smollm2 --into bundle`.
    """
    from harness.deploy.bundling import FinishedRun, make_bundle
    from harness.models.sources import gguf_of
    from harness.store.progress import Progress
    from hq.backends.llamacpp.backend import LlamaBackend
    from hq.monitor.bundle import Bundle

    finished = FinishedRun.open(run)
    with (
        LlamaBackend(gguf_of(gguf), precision, threads=threads, n_gpu_layers=gpu_layers) as backend,
        Progress(quiet=quiet) as progress,
    ):
        make_bundle(finished, backend, false_alarms, into, name or finished.study, progress, scorer)
    _print_summary(Bundle.load(into))
    err.print(f"Bundle: {into}")


@bundle_app.command("verify")
def bundle_verify(
    folder: Folder,
    gguf: Annotated[
        Path | None,
        typer.Option(
            help="A GGUF file that must be the one the bundle was made for, or `smollm2`; default: "
            "only the bundle is checked."
        ),
    ] = None,
) -> None:
    """Check the digests of all files of a bundle and, optionally, that it fits a model file.

    Example: `hq bundle verify bundle --gguf model-q4_k_m.gguf`.
    """
    from harness.models.sources import gguf_of
    from hq.gguf.file import GGUFFile
    from hq.monitor.bundle import Bundle

    bundle = Bundle.load(folder)
    if gguf is not None:
        bundle.require(GGUFFile(gguf_of(gguf)))
    fits = "" if gguf is None else f" and fits {bundle.facts.model.name}"
    out.print(f"{folder} is intact{fits}: {bundle.digest}", soft_wrap=True)


@bundle_app.command("show")
def bundle_show(folder: Folder, as_json: AsJson = False) -> None:
    """Show a bundle's model card or, with --json, the content of its files."""
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


def _print_summary(bundle: "Bundle") -> None:
    validation = bundle.validation
    out.print(f"AUROC {validation.auroc} on {validation.n} answers, out of fold")
    if validation.auroc.low <= 0.5:
        err.print(
            "The AUROC's interval includes 0.5: in this file the probe may be no better than "
            "chance, so do not rely on it."
        )
    gain, over_probe = validation.combined_minus_uncertainty, validation.combined_minus_probe
    if gain is not None and over_probe is not None:
        out.print(
            f"Of the same answers: token entropy {validation.entropy}, log-probability "
            f"{validation.log_probability}, both {validation.uncertainty}, H-Neurons "
            f"{validation.probe}, all combined {validation.combined}",
            soft_wrap=True,
        )
        if bundle.facts.combination is None and over_probe.low > 0:
            err.print("The combination is better: make the bundle with --scorer combined.")
        if gain.low <= 0:
            err.print("H-Neurons are not shown to add anything to the probabilities of tokens.")
    for name, domain in bundle.domains.items():
        out.print(
            f"{name}: {domain.false_alarms:g} promised, by {domain.n} units; measured: false "
            f"alarms {_rate(domain.realised)}, detected {_rate(domain.detected)}",
            soft_wrap=True,
        )


def _rate(estimate: "Estimate | None") -> str:
    return "not measured" if estimate is None else str(estimate)
