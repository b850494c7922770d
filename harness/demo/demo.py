"""Tables from the committed scores, as a finished run."""

import shutil
from pathlib import Path

from harness.demo.comparison import ScoredSamples
from harness.demo.tables import TABLES
from harness.tables.files import write_tables
from harness.tables.provenance import read_provenance
from harness.tables.schema import Row

DATA = Path(__file__).with_name("data")
COMMITTED = DATA / "committed"
"""Tables that were computed from the same scores, with tolerances."""


NEURONS = "neurons.json"
SCORED = ("samples.jsonl", "scores.csv", "token_scores.jsonl")
"""Labels and scores, which a run's folder has and committed tables leave out."""


def write_tables_of_scores(folder: Path) -> None:
    """Compute the tables from scores and labels, and write them as those of a run."""
    samples = ScoredSamples.read(DATA)
    rows: dict[str, list[Row]] = {"design": [samples.design()], "detection": [*samples.detection()]}
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(DATA / NEURONS, folder / NEURONS)  # it has the digest of the samples
    write_tables(folder, TABLES, rows, read_provenance(DATA))


def write_run(folder: Path) -> None:
    """Write the folder of a run: tables, samples and scores."""
    write_tables_of_scores(folder)
    for name in SCORED:
        shutil.copyfile(DATA / name, folder / name)
