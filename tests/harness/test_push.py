"""`hq push` uploads verified folders with a card, and nothing else."""

import json
import shutil
from pathlib import Path

import pytest
from huggingface_hub import ModelCard, constants

from harness.models.packaged import PACKAGED
from hq.monitor.bundle import Bundle
from tests.harness import hub_server
from tests.harness.test_bad_input import is_one_sentence

RESULTS = Path(__file__).parents[2] / "results"
TABLES, BUNDLE = RESULTS / "smollm2-knowledge", RESULTS / "smollm2-knowledge" / "bundle"
EVERY = sorted(path.parent.name for path in RESULTS.glob("*/provenance.json"))


@pytest.fixture(autouse=True)
def _no_token(monkeypatch, tmp_path):
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))


@pytest.fixture
def hub(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with hub_server.serve() as running:
        monkeypatch.setattr(constants, "ENDPOINT", running.address)
        yield running


def files_of(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_the_card_has_the_numbers_of_the_tables(hq):
    assert hq("push", TABLES, "--into", "there").code == 0
    data = ModelCard.load("there/README.md").data
    rows = json.loads((TABLES / "results.json").read_text(encoding="utf-8"))
    rows = rows["tables"]["detection"]["rows"]
    assert len(data.eval_results) == len(rows) > 10
    for result, row in zip(data.eval_results, rows, strict=True):
        assert result.metric_value == row["auroc"]
        assert result.metric_name == f"AUROC, {row['precision']}"
        assert result.metric_args == {
            "precision": row["precision"],
            "low": row["auroc_low"],
            "high": row["auroc_high"],
            "n": row["n"],
            "units": row["units"],
            "seed": row["seed"],
        }
    assert data.library_name == "hq"
    assert (data.base_model, data.license) == ("HuggingFaceTB/SmolLM2-135M-Instruct", "apache-2.0")
    assert data.eval_results[0].dataset_type == "knowledge"


def test_a_downloaded_bundle_is_a_bundle(hq):
    assert hq("push", BUNDLE, "--into", "there", "--license", "mit").code == 0
    assert files_of(Path("there/bundle")) == files_of(BUNDLE)
    bundle, data = Bundle.load(Path("there/bundle")), ModelCard.load("there/README.md").data
    (result,) = data.eval_results
    assert result.metric_value == bundle.validation.auroc.value
    assert result.metric_args["units"] == bundle.validation.entities
    assert data.license == "mit"


@pytest.mark.parametrize("name", EVERY)
def test_all_committed_tables_have_a_card(name, hq):
    outcome = hq("push", RESULTS / name, "--into", "there")
    assert outcome.code == 0, outcome.err
    card = ModelCard.load("there/README.md")
    assert name.partition("-")[0] in card.data.base_model.lower().replace("-", "")
    for result in card.data.eval_results or ():
        assert 0 <= result.metric_value <= 1
        assert result.metric_args["n"] > 0


def test_a_digest_of_norms_names_the_packaged_model():
    for name, model in PACKAGED.items():
        text = (RESULTS / f"{name}-knowledge" / "neurons.json").read_text(encoding="utf-8")
        assert json.loads(text)["model"]["norm_digest"] == model.norm_digest


def test_only_results_are_uploaded(hq, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(TABLES, folder)
    for name in ("samples.jsonl", "notes.txt", ".env", "speed.csv"):
        (folder / name).write_text("private", encoding="utf-8")
    assert hq("push", folder, "--into", "there").code == 0
    found = files_of(Path("there"))
    assert not [name for name, content in found.items() if content == b"private"]
    others = {"report.html", "report.md", "responses.jsonl.gz"}  # no tables
    names = {path.name for path in TABLES.iterdir() if path.is_file()} - others
    assert found.keys() == {"README.md", *(f"results/{name}" for name in names)}


def test_an_upload_is_what_the_folder_would_be(hq, hub):
    assert hq("push", BUNDLE, "--into", "there", "--to", "me/mine").code == 0
    assert not hub.tokens
    outcome = hq("push", BUNDLE, "--to", "me/mine", "--private")
    assert outcome.code == 0, outcome.err
    assert outcome.out == f"{hub.address}/me/mine\n"
    assert hub.files["me/mine"] == files_of(Path("there"))
    assert hub.private == {"me/mine": True}
    assert hub.tokens == {"Bearer hf_secret"}


def test_private_never_becomes_public(hq, hub):
    hub.private["me/mine"] = False
    is_one_sentence(hq("push", BUNDLE, "--to", "me/mine", "--private"), "exists and is public")
    assert not hub.files


def test_a_rejected_upload_is_one_sentence(hq, hub):
    hub.rejects = "/commit/main"
    is_one_sentence(hq("push", BUNDLE, "--to", "me/mine"), "me/mine cannot be uploaded")


def test_an_unreachable_hub_is_one_sentence(hq, hub, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    is_one_sentence(hq("push", BUNDLE, "--to", "me/mine"), "--into DIR")


def test_without_a_token_nothing_is_sent(hq, hub, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    is_one_sentence(hq("push", BUNDLE, "--to", "me/mine"), "hf auth login")
    assert not hub.tokens


def damaged_bundle(folder):
    (folder / "MODEL_CARD.md").write_text("better", encoding="utf-8")


def extended_bundle(folder):
    (folder / "notes.txt").write_text("mine", encoding="utf-8")


def mixed_tables(folder):
    shutil.copyfile(RESULTS / "smollm2-facts" / "provenance.json", folder / "provenance.json")


def missing_table(folder):
    (folder / "detection.csv").unlink()


def linked_table(folder):
    (folder / "detection.csv").unlink()
    (folder / "detection.csv").symlink_to(RESULTS / "smollm2-facts" / "detection.csv")


def table_elsewhere(folder):
    path = folder / "results.json"
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace('"detection": {', '"../secret": {', 1), encoding="utf-8")
    (folder.parent / "secret.csv").write_text("mine", encoding="utf-8")


def no_provenance(folder):
    (folder / "provenance.json").unlink()


DAMAGE = [
    (BUNDLE, damaged_bundle, "was changed"),
    (BUNDLE, extended_bundle, "does not list"),
    (TABLES, mixed_tables, "different runs"),
    (TABLES, missing_table, "detection.csv"),
    (TABLES, linked_table, "detection.csv"),
    (TABLES, table_elsewhere, "secret.csv"),
    (TABLES, no_provenance, "finished run"),
]


@pytest.mark.parametrize(("source", "damage", "words"), DAMAGE)
def test_a_damaged_folder_is_not_sent(source, damage, words, hq, hub, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(source, folder)
    damage(folder)
    is_one_sentence(hq("push", folder, "--to", "me/mine"), words)
    assert not hub.tokens


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ((), "--to is missing"),
        (("--to", "mine"), "write OWNER/NAME"),
        (("--to", "a/b/c"), "write OWNER/NAME"),
        (("--to", "a/b", "--base-model", "x y"), "--base-model 'x y'"),
    ],
)
def test_a_wrong_option_is_one_sentence(options, words, hq):
    is_one_sentence(hq("push", BUNDLE, *options), words)


def test_an_existing_folder_stays(hq, tmp_path):
    (tmp_path / "there").mkdir()
    is_one_sentence(hq("push", BUNDLE, "--into", "there"), "there already")
    assert not list((tmp_path / "there").iterdir())
