"""Tables of a detect run with made-up numbers: NF4 is worse, and entropy better than the probe."""

from collections.abc import Sequence
from pathlib import Path

from harness.experiments.detect.tables import TABLES
from harness.tables.files import write_tables
from harness.tables.readme_cells import CsvTables
from hq.stats.intervals import Estimate

PRECISIONS = ("fp16", "int8", "nf4", "gguf-q8_0")
CONTROLS = (
    *("random", "matched", "length", "relation", "entropy"),
    *("text-answer", "text-question", "text-both", "text-spelling"),
)
CHANGES = {"fp16": 0.0, "int8": 0.001, "nf4": -0.075, "gguf-q8_0": -0.012}
VERDICTS = {"int8": "preserved", "nf4": "changed", "gguf-q8_0": "not decided at this n"}


def around(value: float, half: float = 0.01) -> Estimate:
    """An estimate with an interval of this half width."""
    return Estimate(value=value, low=value - half, high=value + half, n=90)


def default(kind: type, **given: object) -> object:
    """A row in which every cell that is not given has a value of its type."""
    values: dict[str, object] = {}
    for name, field in kind.model_fields.items():
        types = str(field.annotation)
        values[name] = (
            around(0.6)
            if "Estimate" in types
            else "text"
            if "str" in types
            else 7
            if field.annotation in (int, int | None)
            else 0.25
        )
    return kind(**{**values, **given})


def write_run(
    folder: Path,
    precisions: Sequence[str] = PRECISIONS,
    warning: str = "",
    makings: Sequence[tuple[str, int, float]] = (),
) -> CsvTables:
    """Write the tables, results.json and the provenance of a run.

    `makings` has the name of the precision, the number and the AUROC of each making.
    """
    detection, selection, alarms, controls, fidelities, model, mapping = ([] for _ in range(7))
    for name in precisions:
        auroc = 0.88 + CHANGES[name]
        detection.append(
            default(
                TABLES["detection"][0],
                precision=name,
                neurons=20,
                h_neurons=12,
                per_mille=20 / 46.08,
                auroc=around(auroc),
                auroc_change=around(CHANGES[name]),
                detectable=None if name == "fp16" else 0.0193,
                verdict=VERDICTS.get(name, "preserved"),
            )
        )
        selection.append(default(TABLES["selection"][0], precision=name))
        alarms += [
            default(
                TABLES["alarms"][0],
                precision=name,
                domain="all",
                promised=promised,
                false_alarms=around(0.2 if name == "nf4" else 0.1),
            )
            for promised in (0.05, 0.1)
        ]
        for control in CONTROLS:
            lead = -0.05 if control == "entropy" else 0.3
            controls.append(
                default(
                    TABLES["controls"][0],
                    precision=name,
                    control=control,
                    auroc=around(auroc - lead),
                    probe_minus_control=around(lead),
                    probe_adds=None
                    if control in ("random", "matched")
                    else around(0.02 if name == "nf4" else 0.0),
                )
            )
        fidelities += [
            default(
                TABLES["fidelity"][0],
                precision=name,
                group=group,
                relative_error=around(error),
            )
            for group, error in (("probe", 0.2), ("matched", 0.1 if name == "nf4" else 0.2))
        ]
        model.append(default(TABLES["model"][0], precision=name))
        mapping.append(default(TABLES["mapping"][0], precision=name))
    rows = {
        "design": [default(TABLES["design"][0], n=1000, balance="answer", warning=warning)],
        "detection": detection,
        "makings": [
            default(TABLES["makings"][0], precision=name, making=i, auroc=around(area))
            for name, i, area in makings
        ],
        "spread": [
            default(TABLES["spread"][0], precision=name, makings=len(makings))
            for name in dict.fromkeys(name for name, _, _ in makings)
        ],
        "selection": selection,
        "alarms": alarms,
        "controls": controls,
        "fidelity": fidelities,
        "model": model,
        "mapping": mapping,
    }
    provenance = {
        "kind": "detect",
        "study": "made-up",
        "fingerprint": "0" * 16,
        "model": {"name": "made-up", "fingerprint": "0" * 16, "n_layers": 30, "d_ff": 1536},
        "definition": {"precisions": list(precisions), "sampling": {"responses": 10}},
    }
    write_tables(folder, TABLES, rows, provenance)
    return CsvTables(folder)
