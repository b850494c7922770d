"""`hq families`: the table of model types, which docs/families.md repeats."""

import json
from pathlib import Path

from harness.experiments import EXPERIMENTS
from harness.experiments.run import provenance_of
from harness.stages.materials import Materials
from harness.store.runner import Outputs
from harness.store.store import Store
from harness.studies.study import Study
from hq.models.architectures import RECORDS
from hq.models.architectures.table import DETECTED_TYPES
from tests import decoders

DOCS = Path(__file__).parents[2] / "docs" / "families.md"


def test_the_docs_are_what_the_command_prints(hq):
    outcome = hq("families", "--markdown")
    assert outcome.code == 0
    assert outcome.out == DOCS.read_text(encoding="utf-8"), (
        "hq families --markdown > docs/families.md"
    )


def test_every_type_is_listed_with_what_can_be_done(hq):
    rows = {row["model_type"]: row for row in json.loads(hq("families", "--json").out)["families"]}
    assert rows.keys() == {*RECORDS, *DETECTED_TYPES}
    assert rows["llama"]["gguf"] == "writes, reads"
    assert (rows["phi3"]["bake"], rows["phi3"]["gguf"]) == ("rows", "reads")
    assert (rows["falcon"]["known_by"], rows["falcon"]["bake"]) == ("detected", "columns")
    assert rows["bitnet"]["bake"] == "columns"  # h is normalized after the gate
    assert "mistral3" in hq("families").out


def test_provenance_says_which_architecture_was_detected(own_study, tmp_path):
    loaded, folder = Study.load(str(own_study)), own_study.parent / "model"

    def facts():
        survival = EXPERIMENTS["survival"]  # has no facts of its own
        return provenance_of(Materials(loaded), survival, [], Outputs(Store(tmp_path / "store")))

    assert "architecture" not in facts()
    (folder / "model.safetensors").unlink()
    decoders.save(decoders.DETECTED["stablelm"](), folder)
    assert facts()["architecture"] == {"known_by": "detected", "down": "layers.*.mlp.down_proj"}
