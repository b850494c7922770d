"""The experiment tokens, and scores.csv of detect, on the tiny study."""

import json
import shutil

import numpy as np
import polars as pl
import pytest
from sklearn.metrics import roc_auc_score

from harness.stages.samples import read_samples
from harness.tables.files import read_table


@pytest.fixture
def run(finished, tiny_study, hq, tmp_path):
    """A finished run of tokens, beside one of detect on the same samples."""
    shutil.copytree(finished / "cache", tmp_path / "cache")
    ran = hq("run", tiny_study, "-e", "tokens", "--quiet")
    assert ran.code == 0, ran.err
    assert "first" in ran.out
    return tmp_path / "runs" / "tiny-tokens"


def within_folds(scores, samples):
    """The AUROC over pairs of one fold, each fold weighted by its pairs."""
    y = np.array([sample.hallucinated for sample in samples])
    folds = np.array([sample.fold for sample in samples])
    areas, weights = [], []
    for fold in np.unique(folds):
        of = folds == fold
        areas.append(roc_auc_score(y[of], scores[of]))
        weights.append(y[of].sum() * (~y[of]).sum())
    return np.average(areas, weights=weights)


def test_the_mean_of_the_token_scores_is_the_score_of_the_answer(run, finished, hq, tmp_path):
    samples = read_samples(run / "samples.jsonl")
    lines = (run / "token_scores.jsonl").read_text(encoding="utf-8").splitlines()
    answers = {(line["precision"], line["id"]): line for line in map(json.loads, lines)}
    of_detect = read_table(finished / "runs" / "tiny", "scores")
    assert of_detect.height == len(answers) == 2 * len(samples)
    for row in of_detect.iter_rows(named=True):
        answer = answers[row["precision"], row["sample"]]
        assert np.mean(answer["probe"]) == pytest.approx(row["score"], abs=2e-4)
        assert np.mean(answer["entropy"]) == pytest.approx(row["entropy"], abs=2e-4)
    for sample in samples:
        answer = answers["fp16", sample.id]
        assert len(answer["tokens"]) == len(answer["probe"]) == len(sample.response_ids)
        assert "".join(answer["tokens"]).strip() == sample.text.strip()

    table = read_table(run, "tokens")
    detection = read_table(finished / "runs" / "tiny", "detection")
    means = table.filter(pl.col("reduction") == "mean")
    assert means["auroc"].to_list() == pytest.approx(detection["auroc"].to_list(), abs=1e-5)
    assert means["auroc_minus_mean"].to_list() == [0, 0]
    highest = np.array([max(answers["nf4", sample.id]["probe"]) for sample in samples])
    (of_max,) = table.filter(precision="nf4", reduction="max")["auroc"].to_list()
    assert of_max == pytest.approx(within_folds(highest, samples), abs=2e-3)

    assert hq("check", run, "--against", tmp_path / "results", "--accept").code == 0
    assert hq("check", run, "--against", tmp_path / "results").code == 0


def test_the_scores_of_detect_give_its_tables(finished):
    folder = finished / "runs" / "tiny"
    samples = {sample.id: sample for sample in read_samples(folder / "samples.jsonl")}
    detection = read_table(folder, "detection")
    for row in detection.iter_rows(named=True):
        scores = read_table(folder, "scores").filter(precision=row["precision"])
        ordered = [samples[name] for name in scores["sample"]]
        values = scores["score"].to_numpy()
        assert within_folds(values, ordered) == pytest.approx(row["auroc"], abs=1e-5)
        y = np.array([sample.hallucinated for sample in ordered])
        accuracy = np.mean((values >= scores["threshold"].to_numpy()) == y)
        assert accuracy == pytest.approx(row["accuracy"], abs=1e-5)


def test_a_probe_of_prompt_tokens_is_rejected(hq, tiny_study):
    ran = hq("run", tiny_study, "-e", "tokens", "--set", "identify.tokens=prompt", "--quiet")
    assert ran.code == 2
    assert "set it to 'answer'" in ran.err
