"""Several makings of a calibrated precision: nodes, draws of texts, tables, resuming and errors."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from harness.stages.materials import Materials
from harness.studies.study import Study
from harness.tables.files import read_table
from hq.precisions.packed_checkpoints.quantizers import QuantizationJob
from tests.harness.test_bad_input import is_one_sentence
from tests.packed_files import PACKINGS, save_packed

SETTINGS = ("--precisions", "fp16,gptq-4", "--set", "pack.texts=4")
NAMES = ("gptq-4", "gptq-4-native")
THREE = (*SETTINGS, "--set", "pack.makings=3")


@pytest.fixture
def jobs(monkeypatch) -> list[QuantizationJob]:
    """Checkpoints that are rounded after noise seeded by the texts, as gptqmodel takes 20 seconds.

    The list has every job so far.
    """
    pytest.importorskip("gptqmodel")  # studies ask for it
    done: list[QuantizationJob] = []

    def quantize(job: QuantizationJob, into: Path, layer_done) -> None:
        generator = torch.Generator().manual_seed(sum(sum(text) for text in job.texts))

        def change(name: str, weight: Tensor) -> Tensor:
            noise = torch.randn(weight.shape, generator=generator)
            return weight + (0.02 * noise * weight.float().std()).to(weight.dtype)

        save_packed(job.source, into, PACKINGS["gptq-4"], change)
        done.append(job)

    monkeypatch.setattr("harness.stages.pack.quantize_checkpoint", quantize)
    return done


def nodes(hq, *arguments: object) -> dict[str, str]:
    planned = json.loads(hq("plan", *arguments, "--json").out)["nodes"]
    return {node["node"]: node["state"] for node in planned}


def test_the_plan_lists_the_nodes_of_further_makings(tiny_study, hq):
    pytest.importorskip("gptqmodel")
    of_both = ("--precisions", "fp16,gptq-4,gptq-4-native,nf4")
    one, three = (nodes(hq, tiny_study, *settings, *of_both) for settings in (SETTINGS, THREE))
    assert set(three) - set(one) == {
        f"{node} making {making}"
        for making in (1, 2)
        for node in (
            "pack gptq-4",
            *(f"{s} {p}" for s in ("map", "trace", "uncertainty") for p in NAMES),
        )
    }


def test_makings_are_added_resumed_and_decide_the_verdict(
    finished, jobs, tiny_study, hq, tmp_path, monkeypatch
):
    shutil.copytree(finished / "cache", tmp_path / "cache")
    assert hq("run", tiny_study, *SETTINGS, "--into", "one", "--quiet").code == 0
    assert len(jobs) == 1
    for name in ("makings", "spread"):
        assert read_table(Path("one"), name).is_empty()
    # Killed while making 2 is made: the first two stay.
    with monkeypatch.context() as patch:

        def interrupted(job, into, layer_done) -> None:
            if len(jobs) == 2:
                into.mkdir()
                raise KeyboardInterrupt
            made(job, into, layer_done)

        from harness.stages import pack

        made = pack.quantize_checkpoint
        patch.setattr(pack, "quantize_checkpoint", interrupted)
        assert hq("run", tiny_study, *THREE, "--into", "three", "--quiet").code == 130
    assert len(jobs) == 2
    states = nodes(hq, tiny_study, *THREE)
    assert (states["pack gptq-4 making 1"], states["trace gptq-4"]) == ("there", "there")
    assert states["pack gptq-4 making 2"] == "missing"
    outcome = hq("run", tiny_study, *THREE, "--into", "three", "--quiet")
    assert outcome.code == 0, outcome
    assert len(jobs) == 3
    assert len({job.texts for job in jobs}) == 3

    one, three = (read_table(Path(name), "detection") for name in ("one", "three"))
    decided = ["verdict", "detectable"]
    assert three.drop(decided).equals(one.drop(decided))  # making 0 stays as it was
    for name in ("alarms", "controls", "fidelity", "model", "mapping", "selection"):
        assert read_table(Path("three"), name).equals(read_table(Path("one"), name))
    makings = read_table(Path("three"), "makings")
    first = three.row(1, named=True)
    assert makings["making"].to_list() == [0, 1, 2]
    assert makings.row(0, named=True)["auroc_change"] == first["auroc_change"]
    assert makings["kl"][0] == read_table(Path("three"), "model")["kl"][1]
    assert makings["perplexity"].n_unique() == 3
    changes = makings["auroc_change"].to_numpy()
    row = read_table(Path("three"), "spread").row(0, named=True)
    assert (row["precision"], row["makings"]) == ("gptq-4", 3)
    assert row["auroc_change"] == pytest.approx(changes.mean(), rel=1e-4)
    assert row["deviation"] == pytest.approx(changes.std(ddof=1), rel=1e-4)
    assert 0 < row["share"] <= 1
    summary = " ".join(outcome.out.split())
    assert f"gptq-4: change over 3 makings {row['auroc_change']:+.3f} [" in summary
    assert "a precision with several makings" in Path("three/tables.md").read_text(encoding="utf-8")
    plan = json.loads(hq("plan", tiny_study, *THREE, "--json").out)
    assert {node["state"] for node in plan["nodes"]} == {"there"}
    (planned,) = plan["power"]
    assert planned["change"] == pytest.approx(first["detectable"], rel=1e-4)
    # Makings only add rows, so results with and without them are of one study.
    assert hq("check", "three", "--against", "results", "--accept").code == 0
    for name in ("one", "three"):
        again = json.loads(hq("check", name, "--against", "results", "--json").out)
        assert not any(group["regressed"] for group in again["precisions"])
        assert again["verdict"] in ("pass", "inconclusive")  # few samples


def test_further_makings_have_random_texts_and_the_first_has_not(tiny_study):
    study = Study.load(str(tiny_study)).overridden(["pack.texts=4", "reserve.calibration=0.1"])
    with Materials(study) as m:
        (first,) = m.calibrations
    with Materials(study.overridden(["pack.makings=4"])) as m:
        several = m.calibrations
    with Materials(study.overridden(["pack.makings=2"])) as m:
        assert m.calibrations == several[:2]
    with Materials(study.overridden(["pack.texts=40"])) as m:
        pool = m.calibrations[0]
    assert several[0] == first == pool[:4]
    for draw in several[1:]:
        assert len({*draw}) == 4
        assert {*draw} <= {*pool}
    assert len({tuple(draw) for draw in several}) == 4


@pytest.mark.parametrize("in_file", [False, True])
def test_too_few_texts_for_draws_end_the_study_before_its_first_node(
    in_file, tiny_study, hq, tmp_path
):
    pytest.importorskip("gptqmodel")
    more = ("--set", "pack.texts=8")
    words = "raise reserve.calibration, or lower pack.texts"
    if in_file:
        (tmp_path / "text.txt").write_text("some words " * 300, encoding="utf-8")
        more = (*more, "--set", f"pack.text={json.dumps(str(tmp_path / 'text.txt'))}")
        words = "give a longer pack.text, or lower pack.texts"
    outcome = hq("run", tiny_study, *SETTINGS, *more, "--set", "pack.makings=2", "--quiet")
    is_one_sentence(outcome, words)
    assert not list(Path("cache/store").glob("*"))
    assert hq("plan", tiny_study, *SETTINGS, *more).code == 0
    nf4 = ("--precisions", "fp16,nf4", "--set", "pack.makings=2")
    assert hq("plan", tiny_study, *more, *nf4).code == 0


def test_a_given_checkpoint_has_no_makings(tiny_study, hq, tmp_path):
    packed = save_packed(tiny_study.parent / "model", tmp_path / "packed", PACKINGS["gptq-4"])
    given = ("--set", f"checkpoints.gptq-4={json.dumps(str(packed))}")
    outcome = hq("run", tiny_study, *THREE, *given, "--quiet")
    is_one_sentence(outcome, "one checkpoint of gptq-4 and sets pack.makings to 3: set it to 1")
    assert hq("plan", tiny_study, *SETTINGS, *given).code == 0


@pytest.mark.slow
def test_gptq_makes_other_checkpoints_of_other_texts(finished, tiny_study, hq, tmp_path):
    pytest.importorskip("gptqmodel")
    shutil.copytree(finished / "cache", tmp_path / "cache")
    outcome = hq("run", tiny_study, *SETTINGS, "--set", "pack.makings=2", "--quiet")
    assert outcome.code == 0, outcome
    run = Path("runs/tiny")
    makings = read_table(run, "makings")
    assert np.unique(makings["perplexity"]).size == 2
    assert read_table(run, "spread")["makings"].to_list() == [2]
    provenance = json.loads((run / "provenance.json").read_text(encoding="utf-8"))
    packs = [provenance["nodes"][f"pack gptq-4{end}"] for end in ("", " making 1")]
    assert "making" not in packs[0]["parameters"]
    assert packs[1]["parameters"]["making"] == 1
    assert packs[0]["outputs"] != packs[1]["outputs"]
    assert "makings" not in provenance["definition"]["pack"]
