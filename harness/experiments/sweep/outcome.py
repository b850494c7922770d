"""What a finished sweep leaves its reader: a folder of files, and a summary on the screen."""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from harness.experiments.detect.outcome import origin, statistics
from harness.experiments.sweep.steering import Steering
from harness.scenarios.base import SCENARIOS
from harness.stages.identify import NEURONS_FILE
from harness.stages.variants import SPELLING
from harness.store.environment import QUESTIONS, versions
from harness.store.store import inputs_of
from harness.studies.study import REFERENCE
from harness.tables.files import write_tables
from harness.tables.schema import Row
from hq.stats.bootstrap import Estimate

OUTPUTS_FILE = "outputs.jsonl"


def write(folder: Path, steering: Steering, tables: Mapping[str, Sequence[Row]]) -> dict[str, Any]:
    """Writes tables, provenance, neurons, and every output of the H-Neurons with its verdict."""
    pipeline, section = steering.pipeline, steering.section
    study, facts = pipeline.study, origin(pipeline)
    facts["definition"]["sweep"] = section.model_dump(mode="json") | {
        "sources": sorted(section.sources),  # of paths only that there are some
        "choices": bool(section.choices),
    }
    facts |= {
        "kind": "sweep",
        "study": f"{study.name}-sweep",
        "judges": {name: SCENARIOS[name].version for name in section.scenarios},
        "stages": {
            "questions": versions(*QUESTIONS["facts"]),
            "identify": {REFERENCE: inputs_of(pipeline.neurons_folder(REFERENCE))},
            "sweep": {p: pipeline.variants.runs_on(p, SPELLING) for p in study.precisions},
            "compare": statistics(),
        },
    }
    write_tables(folder, tables, facts)
    shutil.copyfile(pipeline.neurons_folder(REFERENCE) / NEURONS_FILE, folder / NEURONS_FILE)
    with open(folder / OUTPUTS_FILE, "w", encoding="utf-8", newline="\n") as lines:
        for precision in study.precisions:
            for output in _outputs(steering, precision):
                lines.write(json.dumps(output, ensure_ascii=False) + "\n")
    return facts


def _outputs(steering: Steering, precision: str) -> list[dict[str, object]]:
    swept, replies = steering.swept(precision), steering.replies(precision)
    return [
        {
            "precision": precision,
            "scenario": label,
            "alpha": alpha,
            "id": one.trial.id,
            "prompt": one.trial.prompt,
            "response": replies[label][a][i].text,
            "truncated": replies[label][a][i].truncated,
            "outcome": swept[label].h.outcomes[a, i],
        }
        for label, trials in steering.asked.items()
        for a, alpha in enumerate(steering.section.alphas)
        for i, one in enumerate(trials)
    ]


def summary(tables: Mapping[str, Sequence[Any]]) -> Table:
    """Rates at the ends and at 1, slopes beside matched neurons', and the verdict."""
    rates = {
        (row.precision, row.scenario, row.alpha): row.rate
        for row in tables["rates"]
        if row.neurons == "h"
    }
    alphas = sorted({alpha for _, _, alpha in rates})
    shown = sorted({alphas[0], 1.0, alphas[-1]})
    first = tables["slopes"][0]
    table = Table(
        title=f"{first.neurons} H-Neurons scaled by α: share of responses that comply.\n"
        f"Slope over α with its 95% interval, and where 95% of {first.draws} matched draws lie.",
        box=SIMPLE_HEAD,
        padding=(0, 1),
    )
    table.add_column("precision", min_width=9, overflow="fold")
    table.add_column("scenario", min_width=11)
    for column in (*(f"α={alpha:g}" for alpha in shown), "slope", "matched"):
        table.add_column(column, no_wrap=True)
    table.add_column("beside\nfp16", min_width=9)
    for row in tables["slopes"]:
        table.add_row(
            row.precision,
            row.scenario.replace(":", ":\n"),
            *(f"{rates[row.precision, row.scenario, alpha].value:.2f}" for alpha in shown),
            _lines(row.slope),
            _lines(row.slope_matched),
            "—" if row.precision == REFERENCE else row.verdict,
        )
    return table


def _lines(estimate: Estimate) -> str:
    low, high = (f"{end:+.2f}".replace("0.", ".") for end in (estimate.low, estimate.high))
    return f"{estimate.value:+.3f}\n[dim]{low} {high}[/dim]"
