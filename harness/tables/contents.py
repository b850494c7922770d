"""What results.json says about a folder of results, and whose samples its neurons are of."""

import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from harness.tables.files import MARKDOWN_FILE, RESULTS_FILE
from hq.errors import HQError

NEURONS_FILE = "neurons.json"
_FOLDER = "give the folder of a finished run, such as runs/NAME"


class TableContents(BaseModel):
    """The key columns of a table, and the description of each column; an estimate is one."""

    model_config = ConfigDict(extra="ignore")

    keys: list[str]
    columns: dict[str, str] = {}


class Contents(BaseModel):
    """The head of results.json: of which run it is, and its tables without their rows."""

    model_config = ConfigDict(extra="ignore")

    schema_version: int | None = Field(None, alias="schema")
    kind: str
    study: str
    fingerprint: str
    tables: dict[str, TableContents]

    @property
    def keys(self) -> dict[str, list[str]]:
        """The key columns of each table."""
        return {name: table.keys for name, table in self.tables.items()}


def read_contents(folder: Path) -> Contents:
    """Read results.json. Raises HQError if the folder is that of no finished run."""
    path = folder / RESULTS_FILE
    if not folder.is_dir():
        raise HQError(f"There is no folder {folder}: {_FOLDER}.")
    if not path.is_file():
        raise HQError(
            f"{folder} has no {path.name} beside {MARKDOWN_FILE}, so it is no finished run: "
            f"{_FOLDER}."
        )
    try:
        return Contents.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, ValidationError) as error:
        raise HQError(f"{path} is not readable as results of a run: run it again.") from error


def lacks_table(folder: Path, name: str) -> bool:
    """Return whether results in a folder were written before hq had this table."""
    try:
        return name not in read_contents(folder).tables
    except HQError:
        return False  # reading the table will say what is wrong


def read_neurons(folder: Path) -> dict[str, Any] | None:
    """Read neurons.json; None if the folder has none. Raises HQError if it holds no object.

    `hq.neurons.neuron_set` reads and validates the whole file, and needs PyTorch.
    """
    path = folder / NEURONS_FILE
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise HQError(f"{path} cannot be read as JSON: {_FOLDER}.") from error
    if not isinstance(content, dict):
        raise HQError(f"{path} holds no JSON object: {_FOLDER}.")
    return content


def stated_samples(folder: Path) -> str | None:
    """Return the digest of the samples that the neurons were identified on; None if not recorded.

    Raises HQError as `read_neurons`.
    """
    provenance = (read_neurons(folder) or {}).get("provenance")
    digest = provenance.get("samples") if isinstance(provenance, dict) else None
    return None if digest is None else str(digest)
