"""`hq drift`: whether a monitor still does on new answers what it did when it was made."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from harness.cli.app import AsJson, app, out, print_json
from harness.cli.files import SeedOption

if TYPE_CHECKING:
    from harness.deploy.drift import MeasuredDrift
    from hq.stats.equivalence import EquivalenceResult
    from hq.stats.intervals import Estimate

EXIT_CODES = {"ok": 0, "threshold-stale": 3, "scorer-degraded": 4, "inconclusive": 5}


@app.command("drift")
def drift_command(
    probe: Annotated[
        Path,
        typer.Argument(
            help="A bundle, or a folder with neurons.json and probes.json: of a run or "
            "of `hq identify`."
        ),
    ],
    new: Annotated[
        Path,
        typer.Option(
            help="Traces of the new answers (`hq trace`): other answers, another "
            "precision, or another revision of the model."
        ),
    ],
    samples: Annotated[
        Path | None,
        typer.Option(
            help="A samples.jsonl of the new answers, for labels and units. Default: the "
            "reference's if the same token ids were traced; else no labels, one unit per text."
        ),
    ] = None,
    reference: Annotated[
        Path | None,
        typer.Option(
            help="Traces of the answers that the neurons were identified on, at the "
            "precision of that time. A bundle has its own reference."
        ),
    ] = None,
    reference_samples: Annotated[
        Path | None,
        typer.Option(help="Samples of these answers; default: samples.jsonl beside neurons.json."),
    ] = None,
    false_alarms: Annotated[
        float | None,
        typer.Option(
            help="False-alarm rate that the threshold promises; default: the bundle's, else 0.1."
        ),
    ] = None,
    margin: Annotated[
        float, typer.Option(help="The largest negligible change of the AUROC.")
    ] = 0.02,
    rate_margin: Annotated[
        float,
        typer.Option(
            help="The largest negligible distance of the false-alarm rate from the "
            "promised one or, without labels, change of the share of flagged answers."
        ),
    ] = 0.05,
    unlabelled: Annotated[
        bool, typer.Option("--unlabelled", help="Ignore the labels of the new answers.")
    ] = False,
    revision: Annotated[
        bool,
        typer.Option(
            "--revision",
            help="Accept traces of another revision of the model: same "
            "architecture and sizes, other weights.",
        ),
    ] = False,
    seed: SeedOption = 0,
    as_json: AsJson = False,
) -> None:
    """Measure the drift of a monitor on new answers, and return a verdict as exit code.

    0: ok. 3: threshold-stale (the false-alarm rate is not the promised one). 4: scorer-degraded
    (the AUROC is lower). 5: inconclusive (more answers are needed). 2: bad input. Without labels,
    the verdict is about the share of flagged answers only, and cannot be scorer-degraded.

    Example: `hq drift runs/NAME --reference traces-fp16 --new traces-nf4`.

    Example: `hq drift my-bundle --new traces-new --samples new.jsonl`.
    """
    from pydantic import TypeAdapter

    from harness.deploy.drift import DriftFiles, drift_of_files
    from hq.monitor.drift import Drift, Margins

    measured = drift_of_files(
        DriftFiles(probe, new, samples, reference, reference_samples),
        Margins(margin, rate_margin),
        false_alarms=false_alarms,
        labelled=not unlabelled,
        revision=revision,
        seed=seed,
    )
    drift = measured.drift
    code = EXIT_CODES[drift.verdict]
    if as_json:
        facts = {"reference": measured.reference, "new": measured.new, "paired": measured.paired}
        values = TypeAdapter(Drift).dump_python(drift, mode="json")
        print_json(facts | values | {"labelled": drift.labelled, "exit_code": code})
    else:
        out.print(_table(measured))
        out.print(f"Verdict: {drift.sentence}", highlight=False)
    raise typer.Exit(code)


def _table(measured: "MeasuredDrift") -> Table:
    drift = measured.drift
    pairing = "the same answers" if measured.paired else "other answers"
    table = Table(
        title=f"{measured.new} compared with {measured.reference} on {pairing}: {drift.n:,} new "
        f"answers about {drift.units:,} units",
        box=SIMPLE_HEAD,
        padding=(0, 1),
    )
    for column in ("", "reference", "new", "change", "within margin?"):
        table.add_column(column)
    if drift.auroc is not None:
        table.add_row(
            "AUROC", _cell(drift.auroc_reference), _cell(drift.auroc), *_change(drift.auroc_change)
        )
        table.add_row(
            "false-alarm rate",
            f"{drift.promised:g} promised",
            _cell(drift.false_alarms),
            *_change(drift.false_alarm_change),
        )
    table.add_row(
        "flagged answers",
        f"{drift.flagged_reference.value:.3f}",
        _cell(drift.flagged),
        *_change(drift.flagged_change),
    )
    if drift.calibration_error is not None:
        before = drift.calibration_error_reference
        known = "—" if before is None else f"{before:.3f}"
        table.add_row("calibration error", known, f"{drift.calibration_error:.3f}")
        table.add_row("calibration slope", "1 if calibrated", _cell(drift.calibration_slope))
    shift = drift.shift
    for name, value, p in (("PSI", shift.psi, shift.psi_p), ("KS", shift.ks, shift.ks_p)):
        label = "p needs units" if p is None else f"p = {p:.3f}"
        table.add_row(f"{name} of the scores", "", f"{value:.3f}", label)
    return table


def _cell(estimate: "Estimate | None") -> str:
    return "—" if estimate is None else escape(str(estimate))


def _change(result: "EquivalenceResult | None") -> tuple[str, str]:
    if result is None:
        return "", ""
    of = result.difference
    change = escape(f"{of.value:+.3f} [{of.low:+.3f}, {of.high:+.3f}]")
    return change, f"±{result.margin:g}: {result.verdict.value}"
