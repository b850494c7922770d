"""Whether two results are of the same model, study and stages, so that their numbers compare."""

from pathlib import Path

from harness.tables.contents import Contents
from harness.tables.files import RESULTS_FILE
from harness.tables.provenance import Facts, definition, difference


def facts_differ(name: str, new: Facts, against: Path, committed: Facts) -> str | None:
    """Say in one sentence why results cannot be compared with committed ones; None if they can.

    Fingerprints of the models, kinds, studies, their definitions without precisions, and versions
    of stages that both have must be equal. `name` is the run in the sentence.
    """
    models = new["fingerprint"], committed["fingerprint"]
    if models[0] != models[1]:
        return (
            f"{name} is of model {models[0]}, {against} of model {models[1]}: "
            "check a run of the same model."
        )
    names = ("kind", "study")
    changed = difference({k: new[k] for k in names}, {k: committed[k] for k in names})
    changed = changed or difference(
        {"definition": definition(new)}, {"definition": definition(committed)}
    )
    if changed:
        return (
            f"{name} and {against} are of other studies ({changed}): check a run of the same study."
        )
    return _stages_differ(name, new, against, committed)


def _stages_differ(name: str, new: Facts, against: Path, committed: Facts) -> str | None:
    """Name a stage with another version, which can change its output."""
    for node in sorted(new["nodes"].keys() & committed["nodes"].keys()):
        versions = new["nodes"][node].get("version"), committed["nodes"][node].get("version")
        if versions[0] != versions[1]:
            stage = committed["nodes"][node].get("stage", node)
            return (
                f"{name} has version {versions[0]} of the stage {stage}, {against} version "
                f"{versions[1]}, and their outputs differ: run the study with one version of hq, "
                "and accept the tables again."
            )
    return None


def remade_precisions(new: Facts, committed: Facts) -> frozenset[str]:
    """Return the precisions whose checkpoints were calibrated again, with another outcome."""
    return frozenset(
        node["precision"]
        for name, node in new["nodes"].items()
        if node.get("stage") == "pack"
        and name in committed["nodes"]
        and node.get("outputs") != committed["nodes"][name].get("outputs")
    )


def schemas_differ(run: Path, new: Contents, against: Path, committed: Contents) -> str | None:
    """Name the schemas of results.json if they differ."""
    if new.schema_version == committed.schema_version:
        return None
    return (
        f"{run / RESULTS_FILE} has schema {new.schema_version}, {against / RESULTS_FILE} schema "
        f"{committed.schema_version}: run the study with the version of hq that wrote the "
        "committed tables."
    )
