"""`hq run -e specifications` on the tiny study, and its partitions of samples."""

import json
import shutil
from itertools import product

import numpy as np
import polars as pl
import pytest

from harness.experiments.detect import compare
from harness.experiments.specifications import rows
from harness.experiments.specifications.partitions import (
    LEFT_OUT,
    Partition,
    balanced_folds,
    place,
    text_aurocs,
)
from harness.experiments.specifications.tables import TABLES
from harness.report.picture import draw
from harness.stages.samples import Sample
from harness.tables.files import read_table
from hq.errors import HQError

SETTINGS = ("sizes=[3,8]", "seeds=1", "halves=1", "splits=4", "frequency_splits=2")
SECTION = [part for setting in SETTINGS for part in ("--set", f"specifications.{setting}")]
CHOICES = ("cett", "tokens", "labels", "rule", "folds", "samples")


@pytest.fixture
def run(finished, hq, tiny_study, tmp_path):
    """The folder of a finished run, after that of the study."""
    shutil.copytree(finished / "cache", tmp_path / "cache")
    ran = hq("run", tiny_study, "-e", "specifications", *SECTION, "--quiet")
    assert ran.code == 0, ran.err
    assert "moves the change most" in ran.out
    return tmp_path / "runs" / "tiny-specifications"


def test_a_run_of_the_tiny_study(run, hq, tiny_study, finished, tmp_path):
    table = read_table(run, "specifications")
    assert table["precision"].unique(maintain_order=True).to_list() == ["fp16", "nf4"]
    # The study's own specification is the probe of detection.
    own = table.filter(pl.col("changes") == 0)
    detection = read_table(finished / "runs" / "tiny", "detection")
    for ours, its in (("auroc", "auroc"), ("neurons", "neurons"), ("h_neurons", "h_neurons")):
        assert own[ours].to_list() == detection[its].to_list()
    nf4 = (own.filter(precision="nf4"), detection.filter(precision="nf4"))
    for ours, its in (("change", "auroc_change"), ("change_low", "auroc_change_low")):
        assert nf4[0][ours].to_list() == nf4[1][its].to_list()
    assert nf4[0]["verdict"].to_list() == nf4[1]["verdict"].to_list()
    assert rows.MARGIN == compare.MARGIN
    assert (
        own.select("difference", "difference_low", "jaccard", "rank_correlation").rows()
        == [(0, 0, 1, 1)] * 2
    )

    # Every combination is a row, or there is a reason why there is no probe.
    failed = read_table(run, "not_fitted")
    fits = [
        *(
            (*features, "study", "all")
            for features in product(("sum", "output"), ("answer", "prompt"), ("1-vs-1", "3-vs-1"))
        ),
        *(
            ("sum", "answer", "1-vs-1", *p)
            for p in (("seed 1", "all"), ("study", "half 1a"), ("study", "half 1b"))
        ),
    ]
    columns = ("cett", "tokens", "labels", "folds", "samples")
    missing = failed.select(columns).rows()
    assert all(reason.startswith("No C selects") for reason in failed["reason"])
    expected = {
        (*fit[:3], rule, *fit[3:])
        for fit in fits
        if fit not in missing
        for rule in ("one-se", "best", "3 neurons", "8 neurons")
    }
    for precision in ("fp16", "nf4"):
        of_precision = table.filter(precision=precision).select(CHOICES).rows()
        assert len(of_precision) == len(expected)
        assert set(of_precision) == expected
    assert (table.filter(rule="3 neurons")["neurons"] <= 3).all()
    assert table.filter(precision="fp16")["change"].null_count() == len(expected)
    difference = (
        table["auroc"] - table.join(own, on="precision", maintain_order="left")["auroc_right"]
    )
    whole = table["samples"] == "all"
    assert table["difference"].filter(whole).to_list() == pytest.approx(
        difference.filter(whole).to_list(), abs=1e-5
    )

    curve = read_table(run, "curve").filter(precision="nf4", scope="settings")
    settings = table.filter(precision="nf4", folds="study", samples="all")
    assert curve["specifications"][0] == settings.height
    assert curve["auroc_median"][0] == pytest.approx(settings["auroc"].median(), abs=1e-5)
    assert curve["change_least"][0] == pytest.approx(settings["change"].min(), abs=1e-5)
    same = (settings["verdict"] == own["verdict"][1]).mean()
    assert curve["same_verdict"][0] == pytest.approx(same, abs=1e-5)
    influence = read_table(run, "influence").filter(precision="nf4", choice="tokens")
    means = settings.group_by("tokens").agg(pl.col("change").mean())["change"]
    assert influence["change_range"][0] == pytest.approx(means.max() - means.min(), abs=1e-5)

    neurons = json.loads((run / "neurons.json").read_text(encoding="utf-8"))["neurons"]
    selected = read_table(run, "neurons")
    assert selected.filter(pl.col("weight").is_not_null()).select("layer", "index").rows() == [
        (n["layer"], n["index"]) for n in neurons
    ]
    assert (selected.select("in_folds", "in_seeds", "in_settings").to_numpy() <= 1).all()
    stability = read_table(run, "stability")
    assert stability["source"].to_list()[:3] == ["folds", "seeds", "folds of seeds"]
    assert stability["sets"].to_list()[:3] == [3, 2, 6]
    assert read_table(run, "split_half")["splits"].to_list() == [4]

    files = [*(f"{name}.csv" for name in TABLES), "tables.md", "neurons.json", "provenance.json"]
    before = {name: (run / name).read_bytes() for name in files}
    again = hq("run", tiny_study, "-e", "specifications", *SECTION, "--json")
    assert '"specifications"' in again.out
    assert {name: (run / name).read_bytes() for name in files} == before
    assert hq("check", run, "--against", tmp_path / "results", "--accept").code == 0
    assert hq("check", run, "--against", tmp_path / "results").code == 0

    pytest.importorskip("altair")
    draw(run, tmp_path / "curve.svg")
    picture = (tmp_path / "curve.svg").read_text(encoding="utf-8")
    for choice in CHOICES:
        for level in table[choice].unique():
            assert f">{choice}: {level}</text>" in picture
    assert ">AUROC, fp16</text>" in picture
    assert ">change, nf4</text>" in picture


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("sizes=[3,500]", "asks for 500 neurons, and the model has 384"),
        ("sizes=[]", "specifications"),
        ("sizes=[0]", "specifications"),
        ("seeds=0", "seeds"),
        ("half=1", "half"),
    ],
)
def test_bad_settings_are_rejected_before_the_first_node(setting, words, hq, tiny_study, tmp_path):
    ran = hq("run", tiny_study, "-e", "specifications", "--set", f"specifications.{setting}")
    assert (ran.code, ran.out) == (2, "")
    assert words in ran.err
    assert ran.err.strip().count("\n") == 0
    assert not (tmp_path / "cache" / "store").exists()


def samples_of(units: int, seed: int = 0) -> list[Sample]:
    """Pairs of a right and a hallucinated answer of one relation and fold, of different units."""
    rng = np.random.default_rng(seed)
    listed = []
    for i in range(4 * units):
        fold = int(rng.integers(5))
        relation = f"r{int(rng.integers(30))}"
        listed += [
            Sample(
                id=f"q{i}{label}",
                relation=relation,
                question=f"{relation} asks {2 * i + label}",
                text=f"reply {i % 7}",
                answer=f"a{i}",
                hallucinated=label,
                unit=f"u{fold}-{int(rng.integers(units // 5))}",
                fold=fold,
                prompt_ids=(1, i),
                response_ids=(2,),
            )
            for label in (False, True)
        ]
    return listed


@pytest.fixture(scope="module")
def samples():
    return samples_of(200)


def imbalance(samples, folds) -> int:
    """Σ over relations and folds of |hallucinated − right|."""
    leads: dict[tuple[str, int], int] = {}
    for sample, fold in zip(samples, folds, strict=True):
        key = sample.relation, int(fold)
        leads[key] = leads.get(key, 0) + (1 if sample.hallucinated else -1)
    return sum(map(abs, leads.values()))


def test_other_folds_keep_units_and_the_balance_within_relations(samples):
    own = np.array([s.fold for s in samples])
    assert imbalance(samples, own) == 0
    for seed in (1, 2):
        folds = balanced_folds(samples, 5, seed)
        assert len(
            {(s.unit, fold) for s, fold in zip(samples, folds.tolist(), strict=True)}
        ) == len({s.unit for s in samples})
        assert imbalance(samples, folds) <= 0.05 * len(samples)
        sizes = np.bincount(folds)
        assert sizes.max() - sizes.min() <= 0.2 * sizes.mean()
        assert (folds == own).mean() < 0.5
        random = np.random.default_rng(seed).permutation(own)
        assert imbalance(samples, random) > 3 * imbalance(samples, folds)
    assert (balanced_folds(samples, 5, 1) == balanced_folds(samples, 5, 1)).all()


def test_texts_do_not_predict_the_labels_on_balanced_folds(samples):
    texts = text_aurocs(samples, balanced_folds(samples, 5, 1))
    assert texts["text-question"].value == pytest.approx(0.5, abs=0.06)


def test_halves_are_complementary_in_units_of_every_fold(samples):
    own = np.array([s.fold for s in samples])
    units = np.array([s.unit for s in samples])
    a, b = (place(Partition(samples=f"half 1{side}"), samples, 0) for side in "ab")
    assert ((a == LEFT_OUT) != (b == LEFT_OUT)).all()
    assert (np.maximum(a, b) == own).all()
    assert not np.intersect1d(units[a != LEFT_OUT], units[b != LEFT_OUT]).size
    for fold in range(5):
        numbers = [len(np.unique(units[half == fold])) for half in (a, b)]
        assert abs(numbers[0] - numbers[1]) <= 1
    other = place(Partition(samples="half 2a"), samples, 0)
    assert 0.3 < ((other == LEFT_OUT) == (a == LEFT_OUT)).mean() < 0.7
    assert (place(Partition(), samples, 0) == own).all()


def test_halves_need_both_labels_in_every_fold():
    few = [s for s in samples_of(40) if s.hallucinated or s.unit.endswith("-0")]
    with pytest.raises(HQError, match="nearly always lacks a label"):
        place(Partition(samples="half 1a"), few, 0)
