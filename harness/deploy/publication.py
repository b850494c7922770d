"""A folder as a repository of a model hub: a bundle, or the tables of a run, with a card.

The repository has the card as README.md, and the files of the folder below `bundle` or `results`,
so that a downloaded bundle still contains nothing but what its manifest lists.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from pydantic import TypeAdapter, ValidationError

from harness.deploy.hub_card import (
    Dataset,
    Origin,
    bundle_text,
    card,
    measured_in,
    measured_of,
    results_text,
)
from harness.report.picture import PICTURES
from harness.stages.identify import NEURONS_FILE, PROBES_FILE
from harness.tables.files import MARKDOWN_FILE, RESULTS_FILE
from harness.tables.provenance import PROVENANCE_FILE, read_provenance
from hq.errors import HQError, first_line
from hq.monitor.bundle import BUNDLE_SCHEMA, FILES, Bundle
from hq.neurons.neuron_set import ModelIdentity
from hq.storage.atomic import atomic_folder
from hq.storage.verified_folder import MANIFEST, read_verified_folder

CARD_FILE = "README.md"
SOMEWHERE = "OWNER/NAME"  # in the card, if no repository is named
_BUNDLE, _RESULTS = "bundle", "results"
_WRITTEN = (RESULTS_FILE, MARKDOWN_FILE, PROVENANCE_FILE)  # with every run
_OPTIONAL = (
    NEURONS_FILE,
    PROBES_FILE,
    "tolerances.toml",
    *(picture.file for picture in PICTURES.values()),
)


@dataclass(frozen=True)
class About:
    """What a folder does not say of itself; empty values are derived where that is possible."""

    to: str = ""  # id of the repository
    base_model: str = ""
    license: str = ""


@dataclass(frozen=True)
class Publication:
    """The files of a repository, by their paths in it."""

    files: Mapping[str, bytes]

    @classmethod
    def of(cls, folder: Path, about: About) -> Self:
        """Return the repository of a bundle, or of the tables of a run, after verifying it.

        Raises HQError if the folder is neither, or if it is damaged.
        """
        if (folder / MANIFEST).exists():
            return cls(_of_bundle(folder, about))
        if (folder / PROVENANCE_FILE).exists():
            return cls(_of_results(folder, about))
        raise HQError(
            f"{folder} has no {MANIFEST} and no {PROVENANCE_FILE}: give a bundle (`hq bundle "
            "make`), or the folder of a finished run."
        )

    def write(self, into: Path) -> None:
        """Write the repository into a new folder. Raises HQError if it exists."""
        with atomic_folder(into) as draft:
            for name, content in self.files.items():
                (draft / name).parent.mkdir(exist_ok=True)
                (draft / name).write_bytes(content)

    def upload(self, to: str, private: bool) -> str:
        """Upload the repository as one commit; return its address.

        Raises HQError if there is no token, if the hub cannot be reached or rejects the upload, or
        if `private` is asked for and a public repository of this name exists.
        """
        from huggingface_hub import CommitOperationAdd, HfApi, get_token
        from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # of its client
        from huggingface_hub.utils import disable_progress_bars  # type: ignore[attr-defined]

        if get_token() is None:
            raise HQError(
                "There is no token of the hub: log in with `hf auth login` or set HF_TOKEN, or "
                "write the repository into a folder with --into DIR."
            )
        disable_progress_bars()
        api = HfApi()
        operations = [CommitOperationAdd(name, content) for name, content in self.files.items()]
        try:
            address = api.create_repo(to, private=private or None, exist_ok=True)
            if private and not api.model_info(to).private:
                raise HQError(
                    f"{to} exists and is public: make it private in its settings, or name another "
                    "repository."
                )
            api.create_commit(to, operations, commit_message="Upload by hq push")
        except (HTTPError, OSError, ValueError) as error:
            reason = first_line(error).rstrip(".")
            raise HQError(
                f"{to} cannot be uploaded ({reason}): try again, or write the repository into a "
                "folder with --into DIR."
            ) from error
        return str(address)


def _of_bundle(folder: Path, about: About) -> dict[str, bytes]:
    bundle = Bundle.load(folder)
    content = read_verified_folder(folder, BUNDLE_SCHEMA, FILES)
    origin = Origin.of(bundle.neurons.model, about.base_model, about.license)
    study, name = bundle.validation.study, bundle.name
    text = bundle_text(bundle, _BUNDLE, about.to or SOMEWHERE)
    dataset = Dataset(study, f"study {study}")
    readme = card(about.to or name, dataset, origin, measured_of(bundle), text)
    files = {**content.files, MANIFEST: (folder / MANIFEST).read_bytes()}
    return _repository(readme, _BUNDLE, files)


def _of_results(folder: Path, about: About) -> dict[str, bytes]:
    """Only what hq wrote as results: no samples, whose texts may belong to others."""
    facts = read_provenance(folder)
    results = _results(folder, facts)
    names = [*(f"{table}.csv" for table in results["tables"]), *_WRITTEN]
    names += [name for name in _OPTIONAL if (folder / name).is_file()]
    origin = Origin.of(_model(folder, facts), about.base_model, about.license)
    study, measured = facts["study"], measured_in(results["tables"])
    text = results_text(
        study,
        facts["kind"],
        facts["statistics"]["hq"],
        origin,
        measured,
        _RESULTS,
        about.to or SOMEWHERE,
    )
    scenario = facts["definition"]["scenario"]["name"]
    dataset = Dataset(scenario, f"{scenario} (study {study})")
    readme = card(about.to or study, dataset, origin, measured, text)
    return _repository(readme, _RESULTS, {name: _content(folder, name) for name in names})


def _repository(readme: str, below: str, files: Mapping[str, bytes]) -> dict[str, bytes]:
    inside = {f"{below}/{name}": content for name, content in sorted(files.items())}
    return {CARD_FILE: readme.encode(), **inside}


def _results(folder: Path, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Read results.json. Raises HQError if it is not that of the provenance."""
    try:
        results: dict[str, Any] = json.loads(_content(folder, RESULTS_FILE))
        stated = {key: results[key] for key in ("kind", "study", "fingerprint")}
        _ = results["tables"]
    except (ValueError, KeyError, TypeError) as error:
        raise HQError(
            f"{folder / RESULTS_FILE} cannot be read: give the folder of a finished run."
        ) from error
    if stated != {key: facts[key] for key in stated}:
        raise HQError(
            f"{folder / RESULTS_FILE} and {PROVENANCE_FILE} are of different runs: give the folder "
            "of one finished run."
        )
    return results


def _model(folder: Path, facts: Mapping[str, Any]) -> ModelIdentity:
    try:
        return TypeAdapter(ModelIdentity).validate_python(facts.get("model"))
    except ValidationError as error:
        raise HQError(
            f"{folder / PROVENANCE_FILE} does not say which model was studied: run it again."
        ) from error


def _content(folder: Path, name: str) -> bytes:
    """Read a regular file of the folder itself. Raises HQError for links and other places."""
    path = folder / name
    if path.parent != folder or path.is_symlink() or not path.is_file():
        raise HQError(f"{path} is no regular file there: give the folder of a finished run.")
    return path.read_bytes()
