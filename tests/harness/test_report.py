"""Reports of runs: sentences and cells, figures, what is missing, hostile text, bad input."""

import base64
import csv
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from functools import cache
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from sklearn.metrics import roc_auc_score

pytest.importorskip("altair")

from harness.report.build import write_report
from harness.report.run import RunFolder
from harness.report.scores import binned, reliability, roc
from hq.errors import HQError
from tests.detect_runs import write_run

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "results"
KNOWLEDGE = RESULTS / "smollm2-knowledge"
HOSTILE = 'Is <script>alert("x")</script> & <b onclick=f()>bold</b> | \ue000a\ue001b\ue002?'


class Page(HTMLParser):
    """What a page has: texts of elements with cells, ids, links, figures, and every address."""

    def __init__(self, path):
        super().__init__()
        self.cells, self.ids, self.links, self.tags, self.addresses = [], [], [], [], []
        self.labels, self._open, self.text = [], [], []
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.tags.append(tag)
        self._open.append((tag, found))
        if "id" in found:
            self.ids.append(found["id"])
        if found.get("role") == "img":
            self.labels.append(found["aria-label"])
        for name in ("href", "src", "action", "xlink:href"):
            if name in found:
                self.addresses.append(found[name])
        if "data-cell" in found:
            self.cells.append([found["data-cell"], ""])

    def handle_endtag(self, tag):
        while self._open and self._open.pop()[0] != tag:
            pass

    def handle_data(self, data):
        if not any(tag in ("script", "style") for tag, _ in self._open):
            self.text.append(data)
        if any("data-cell" in found for _, found in self._open):
            self.cells[-1][1] += data

    @property
    def words(self):
        return " ".join(" ".join(self.text).split())


@pytest.fixture(scope="module")
def knowledge(tmp_path_factory):
    """The report of a committed folder."""
    into = tmp_path_factory.mktemp("knowledge") / "report.html"
    write_report([KNOWLEDGE], into)
    return into


@pytest.fixture(scope="module")
def with_scores(finished, tmp_path_factory):
    """A finished run, and a run of tokens of its samples, made from its scores."""
    folder = tmp_path_factory.mktemp("scores")
    shutil.copytree(finished / "runs" / "tiny", folder / "tiny")
    return folder / "tiny", add_tokens(folder / "tiny", folder / "tokens")


def add_tokens(run, into):
    """Make a run of tokens: each character of an answer is a token, with the answer's score."""
    into.mkdir()
    samples = read_lines(run / "samples.jsonl")
    texts = {sample["id"]: sample["text"] for sample in samples}
    with open(into / "token_scores.jsonl", "w", encoding="utf-8") as lines:
        for row in read_csv(run / "scores.csv"):
            tokens = list(texts[row["sample"]])
            line = {
                "precision": row["precision"],
                "id": row["sample"],
                "tokens": tokens,
                "probe": [float(row["score"])] * len(tokens),
                "entropy": [0.0] * len(tokens),
            }
            lines.write(json.dumps(line) + "\n")
    (into / "tokens.csv").write_text(
        "precision,reduction,n,units,seed,tokens,auroc,auroc_low,auroc_high,auroc_minus_mean,"
        "auroc_minus_mean_low,auroc_minus_mean_high\n"
        "fp16,mean,10,5,0,4.0,0.6,0.5,0.7,0,0,0\nfp16,max,10,5,0,4.0,0.7,0.6,0.8,0.1,0,0.2\n",
        encoding="utf-8",
    )
    for name in ("neurons.json", "samples.jsonl"):
        shutil.copyfile(run / name, into / name)
    facts = json.loads((run / "results.json").read_text(encoding="utf-8"))
    columns = dict.fromkeys(("precision", "reduction", "auroc", "auroc_minus_mean"), "words")
    tables = {"tokens": {"keys": ["precision", "reduction"], "columns": columns, "rows": []}}
    rewrite(into / "results.json", facts | {"kind": "tokens", "tables": tables})
    origin = json.loads((run / "provenance.json").read_text(encoding="utf-8"))
    rewrite(into / "provenance.json", origin | {"kind": "tokens", "study": "tiny-tokens"})
    return into


def read_lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@cache
def read_csv(path):
    return list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))


def rewrite(path, content):
    path.write_text(json.dumps(content), encoding="utf-8")


def value_of(folder, cell):
    """The numbers of the cell that a page names: an estimate has its interval too."""
    table, _, place = cell.partition(".csv: ")
    *keys, column = place.split(", ")
    column = column.removesuffix("_low/_high")
    for row in read_csv(folder / f"{table}.csv"):
        values = list(row.values())
        if all(key in values or any(same(key, v) for v in values) for key in keys):
            return [row[c] for c in (column, f"{column}_low", f"{column}_high") if c in row]
    raise AssertionError(f"no row of {cell}")


def same(key, value):
    try:
        return float(key) == float(value)
    except ValueError:
        return False


def test_the_answer_comes_first_with_intervals_units_and_controls(knowledge):
    page = Page(knowledge)
    answer = page.words.split("Detection AUROC of the probe")[0]
    for words in (
        "On 1,622 answers, half of them hallucinated, in 624 independent units",
        "AUROC of 0.740 [0.714, 0.765] ; matched random neurons have 0.605 [0.572, 0.624]",
        "token entropy 0.759 [0.733, 0.783]",
        "text-only control ( text-answer ) 0.513 [0.500, 0.525]",
        "most at mxfp4 : −0.051 [−0.068, −0.033]",
        "preserved within ±0.02 at 4",
    ):
        assert words in answer
    assert "Read this first" not in answer


def test_a_leak_of_the_labels_into_the_texts_is_said_before_the_answer(tmp_path):
    runs = [RESULTS / "smollm2-facts", RESULTS / "smollm2-triviaqa"]
    write_report(runs, tmp_path / "facts.html")
    page = Page(tmp_path / "facts.html")
    assert len(page.ids) == len(set(page.ids))
    words = page.words
    leak = words.index("Read this first. The labels can be predicted from text alone")
    assert leak < words.index("On 1,494 answers")
    assert "text-spelling 0.570 [0.526, 0.614]" in words
    assert "+0.301 [+0.249, +0.353] over text-spelling at FP16" in words
    assert "+0.124 [+0.053, +0.195] over text-question at FP16" in words
    twin = (tmp_path / "facts.md").read_text(encoding="utf-8")
    assert twin.index("**Warning.** The labels can be predicted") < twin.index("On 1,494 answers")


def test_every_number_of_the_page_is_the_cell_that_it_names(knowledge):
    page = Page(knowledge)
    checked = 0
    for cell, text in page.cells:
        if not cell.partition(":")[0].endswith(".csv") or "warning" in cell:
            continue
        expected = value_of(KNOWLEDGE, cell)
        shown = re.findall(r"[−+]?\d[\d,]*\.?\d*(?:e[−-]\d+)?", text)
        if not re.fullmatch(r"[−+]?\d[\d,.]*(?:e[−-]\d+)?(?: \[.*\])?", text):
            continue  # words, such as a verdict, or an empty cell
        assert len(shown) in (1, 2, 3), (cell, text)
        kept = expected[-2:] if len(shown) == 2 else expected[: len(shown)]
        for number, value in zip(shown, kept, strict=True):
            plain = number.replace("−", "-").replace(",", "").lstrip("+")
            decimals = len(plain.partition(".")[2])
            if "e" in plain:
                assert float(plain) == pytest.approx(float(value), rel=0.06), (cell, text)
            else:
                assert float(plain) == pytest.approx(float(value), abs=0.51 * 10**-decimals), cell
        checked += 1
    assert checked > 900


def test_a_page_loads_nothing_and_its_policy_allows_its_own_script_only(knowledge):
    page = Page(knowledge)
    assert all(address.startswith("#") for address in page.addresses)
    assert {address[1:] for address in page.addresses} <= set(page.ids)
    assert len(page.ids) == len(set(page.ids))
    assert {"link", "img", "iframe", "object"}.isdisjoint(page.tags)
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', page.source)[1]
    assert policy.startswith("default-src &#39;none&#39;")
    for tag in ("script", "style"):
        texts = re.findall(rf"<{tag}>(.*?)</{tag}>", page.source, flags=re.DOTALL)
        assert len(texts) == 1
        digest = base64.b64encode(hashlib.sha256(texts[0].encode()).digest()).decode()
        assert f"{tag}-src &#39;sha256-{digest}&#39;" in policy
    assert " style=" not in page.source
    assert "http" not in re.sub(r'xmlns="[^"]+"|http-equiv', "", page.source)


def test_each_figure_has_a_text_alternative_and_its_data(knowledge):
    page = Page(knowledge)
    assert page.source.count("<figure>") == len(page.labels) == page.source.count("<svg ")
    assert page.source.count("Data of this figure</summary>") == len(page.labels) >= 6
    assert all(len(label.split()) > 8 for label in page.labels)
    assert "the probe has 0.740 [0.714, 0.765]" in page.labels[0]


def test_what_a_committed_folder_lacks_is_said_in_its_place(knowledge):
    words = Page(knowledge).words
    for what in ("ROC curves are", "Reliability is", "Scores of single samples are"):
        assert f"{what} not shown: the folder has no scores.csv with samples.jsonl" in words
    assert "Speed is not shown" in words
    assert "has no neuron_errors.csv" in words


def test_the_markdown_twin_has_the_same_sentences_and_tables(knowledge):
    twin = knowledge.with_suffix(".md").read_text(encoding="utf-8")
    assert "AUROC of **0.740 [0.714, 0.765]**" in twin
    assert "| nf4 | 0.712 [0.687, 0.735] | −0.029 [−0.045, −0.013] | 0.023 | changed |" in twin
    assert "*Not shown.* ROC curves are not shown" in twin
    assert not re.search("[\ue000-\ue002]", twin)
    tables = [line for line in twin.splitlines() if line.startswith("| ---")]
    assert len(tables) > 20


def test_a_report_is_the_same_each_time_and_small(knowledge, tmp_path):
    written = write_report([KNOWLEDGE], tmp_path / "again.html")
    assert (tmp_path / "again.html").read_bytes() == knowledge.read_bytes()
    assert written.size < 1_000_000


def test_a_report_does_not_import_torch(tmp_path):
    code = (
        "import sys; from pathlib import Path; from harness.report.build import write_report; "
        f"write_report([Path({str(RESULTS / 'smollm2-knowledge-sweep')!r})], Path('r.html')); "
        "import harness.report.compare, harness.report.picture; "
        "from harness.report.registry import REPORTS; [REPORTS[name] for name in REPORTS]; "
        "print(*sorted({'torch', 'transformers', 'matplotlib'} & sys.modules.keys()))"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        check=True,
        encoding="utf-8",
    )
    assert ran.stdout.split() == []
    assert "Scaling 16 H-Neurons by α" in (tmp_path / "r.md").read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("folder", sorted(p.parent.name for p in RESULTS.glob("*/results.json")))
def test_every_committed_folder_has_a_report(folder, tmp_path):
    written = write_report([RESULTS / folder], tmp_path / "r.html")
    page = Page(written.html)
    assert written.size < 2_000_000
    assert page.source.count("<figure>") >= 1
    assert "No report is registered" not in page.words


def test_curves_and_reliability_come_from_the_scores(with_scores):
    run = RunFolder(with_scores[0])
    for row in run.frame("detection").iter_rows(named=True):
        scores = run.scores.filter(precision=row["precision"])
        false, detected = roc(scores)
        assert (false[0], detected[0], false[-1], detected[-1]) == (0, 0, 1, 1)
        assert (np.diff(detected) >= 0).all()
        # The grid is coarse, and the curve of few answers has steps.
        assert np.trapezoid(detected, false) == pytest.approx(row["auroc"], abs=0.03)
        bins = reliability(scores)
        p = 1 / (1 + np.exp(-scores["score"].to_numpy()))
        y = scores["hallucinated"].to_numpy()
        for bin_ in bins.iter_rows(named=True):
            inside = (p // 0.1).astype(int) == int(bin_["predicted"] // 0.1)
            assert bin_["answers"] == inside.sum()
            assert bin_["observed"] == pytest.approx(y[inside].mean())
            assert bin_["low"] <= bin_["observed"] <= bin_["high"]
    cells = binned(run.scores, "fp16", ["nf4"])
    assert cells["answers"].sum() == len(run.samples)
    share = (cells["answers"] * cells["hallucinated"]).sum() / cells["answers"].sum()
    assert share == pytest.approx(0.5)


def test_a_fine_curve_has_the_auroc_of_scikit_learn():
    rng = np.random.default_rng(0)
    y = rng.random(4000) < 0.5
    values = rng.normal(size=4000) + y
    scores = pl.DataFrame({"fold": 0, "score": values, "hallucinated": y})
    false, detected = roc(scores)
    assert np.trapezoid(detected, false) == pytest.approx(roc_auc_score(y, values), abs=2e-3)


def test_the_errors_of_neurons_average_to_the_table_of_fidelity(finished):
    run = RunFolder(finished / "runs" / "tiny")
    errors = run.file("neuron_errors.csv")
    neurons = [(n.layer, n.index) for n in run.neurons]
    for precision in ("fp16", "nf4"):
        of_precision = errors.filter(precision=precision)
        assert of_precision.select("layer", "index").rows() == neurons
        expected = run.tables.cell("fidelity", "relative_error", precision=precision, group="probe")
        assert of_precision["relative_error"].mean() == pytest.approx(expected, rel=1e-4)


def browser_of(path):
    found = re.search(
        r'<script type="application/json">(.*?)</script>', path.read_text(encoding="utf-8")
    )
    return json.loads(found[1])


def test_a_browser_has_each_sample_with_its_scores_and_tokens(with_scores, tmp_path):
    run, tokens = with_scores
    write_report([tokens, run], tmp_path / "r.html")  # detect comes first in any order
    page = Page(tmp_path / "r.html")
    assert page.words.index("Experiment detect on") < page.words.index("Experiment tokens on")
    held = browser_of(tmp_path / "r.html")
    folder = RunFolder(run)
    assert held["head"] == {"precisions": ["fp16", "nf4"], "total": len(folder.samples)}
    assert len(held["samples"]) == len(folder.samples)
    scores = {(r["precision"], r["sample"]): r for r in folder.scores.iter_rows(named=True)}
    for sample, held_sample in zip(folder.samples, held["samples"], strict=True):
        question, answer, _, label, threshold, values, texts, of_tokens, flags = held_sample
        assert (question, answer) == (sample.question, sample.text.strip())
        assert label == sample.hallucinated
        for precision, value, of in zip(("fp16", "nf4"), values, of_tokens, strict=True):
            row = scores[precision, sample.id]
            assert value == pytest.approx(row["score"], abs=1e-3)
            assert threshold == pytest.approx(row["threshold"], abs=1e-3)
            assert of == pytest.approx([row["score"]] * len(sample.text), abs=0.01)
        assert "".join(texts) == sample.text
        rows_of = [scores[precision, sample.id] for precision in ("fp16", "nf4")]
        assert flags == "".join(str(int(r["score"] >= r["threshold"])) for r in rows_of)
    rows = page.source.count('class="kind" data-kind=')
    assert rows == min(50, len(folder.samples))
    first = scores["fp16", folder.samples[0].id]
    flagged = first["score"] >= first["threshold"]
    kind = (
        "correct"
        if flagged == folder.samples[0].hallucinated
        else ("false alarm" if flagged else "missed")
    )
    assert re.search(r'class="kind" data-kind="([^"]+)"', page.source)[1] == kind


def test_text_of_users_is_escaped(with_scores, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(with_scores[0], run)
    lines = read_lines(run / "samples.jsonl")
    lines[0] |= {"question": HOSTILE, "text": "</script><!--", "relation": HOSTILE}
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (run / "samples.jsonl").write_text(text, encoding="utf-8")
    for name in ("results.json", "provenance.json"):
        facts = json.loads((run / name).read_text(encoding="utf-8"))
        rewrite(run / name, facts | {"study": HOSTILE})
    write_report([run], tmp_path / "r.html")
    page = Page(tmp_path / "r.html")
    assert page.tags.count("script") == 2
    assert page.tags.count("b") == 0
    assert len(re.findall(r"<(?:script|b)\b", page.source)) == 2
    cleaned = HOSTILE.translate({0xE000: None, 0xE001: None, 0xE002: None})
    assert browser_of(tmp_path / "r.html")["samples"][0][0] == cleaned
    assert cleaned in page.words
    assert "<script" not in (tmp_path / "r.md").read_text(encoding="utf-8")


def test_a_kind_without_a_report_shows_its_tables_and_their_estimates(tmp_path):
    write_run(tmp_path / "run")
    for name in ("results.json", "provenance.json"):
        facts = json.loads((tmp_path / "run" / name).read_text(encoding="utf-8"))
        rewrite(tmp_path / "run" / name, facts | {"kind": "toy"})
    write_report([tmp_path / "run"], tmp_path / "r.html")
    page = Page(tmp_path / "r.html")
    assert "No report is registered for this kind of experiment" in page.words
    assert any(label.startswith("AUROC of the frozen FP16 probes") for label in page.labels)
    assert "TF-IDF of words" in page.words  # a legend


def test_a_run_of_fp16_alone_has_a_report(tmp_path):
    write_run(tmp_path / "run", precisions=("fp16",))
    write_report([tmp_path / "run"], tmp_path / "r.html")
    assert "nothing is said about quantization" in Page(tmp_path / "r.html").words


# Bad input: one sentence, and nothing is written.


def is_one_sentence(hq, *arguments, words, folder):
    outcome = hq("report", *arguments)
    assert outcome.code == 2, outcome
    assert words in outcome.err
    assert outcome.err.count("\n") == 1
    assert "Traceback" not in outcome.err
    left = [p.name for p in folder.iterdir() if p.suffix in (".html", ".md", ".draft")]
    assert left == []


def test_bad_input_is_one_sentence_and_writes_nothing(hq, tmp_path):
    write_run(tmp_path / "run")
    shutil.copytree(tmp_path / "run", tmp_path / "other")
    shutil.copytree(tmp_path / "run", tmp_path / "torn")
    (tmp_path / "torn" / "detection.csv").write_bytes(b'precision,"auroc\n\xff')
    shutil.copytree(tmp_path / "run", tmp_path / "older")
    detection = pl.read_csv(tmp_path / "older" / "detection.csv").drop("neurons")
    detection.write_csv(tmp_path / "older" / "detection.csv")
    shutil.copytree(tmp_path / "run", tmp_path / "unfinished")
    (tmp_path / "unfinished" / "provenance.json").unlink()
    for name in ("results.json", "provenance.json"):
        facts = json.loads((tmp_path / "other" / name).read_text(encoding="utf-8"))
        model = {"name": "another", "fingerprint": "1" * 16}
        rewrite(tmp_path / "other" / name, facts | {"fingerprint": "1" * 16, "model": model})
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("x", encoding="utf-8")
    for arguments, words in (
        (("nowhere",), "There is no folder nowhere"),
        (("empty",), "has no results.json"),
        (("unfinished",), "no readable provenance.json"),
        (("torn",), "detection.csv"),
        (("older",), "detection.csv lacks the column 'neurons'"),
        (("run", "--into", "r.docx"), "r.docx has no known format: end its name in .html"),
        (("run", "--into", "file/r.html"), "file is a file"),
        (("run", "run"), "run is given twice"),
        (("run", "other"), "other one of another (1111111111111111)"),
        (("--compare", "run"), "--compare needs two runs, and 1 were given"),
    ):
        is_one_sentence(hq, *arguments, words=words, folder=tmp_path)


def test_a_target_that_cannot_be_written_leaves_nothing(hq, tmp_path):
    write_run(tmp_path / "run", precisions=("fp16",))
    (tmp_path / "r.md").mkdir()
    outcome = hq("report", "run", "--into", "r.html")
    assert (outcome.code, "r.md is a folder" in outcome.err) == (2, True)
    assert not (tmp_path / "r.html").exists()


def test_token_scores_of_other_samples_are_rejected(with_scores, tmp_path):
    run, tokens = with_scores
    other = tmp_path / "tokens"
    shutil.copytree(tokens, other)
    neurons = json.loads((other / "neurons.json").read_text(encoding="utf-8"))
    neurons["provenance"]["samples"] = "f" * 16
    rewrite(other / "neurons.json", neurons)
    with pytest.raises(HQError, match="token scores of other samples than"):
        write_report([run, other], tmp_path / "r.html")
    assert list(tmp_path.iterdir()) == [other]


def test_the_command_says_what_it_wrote(hq, tmp_path):
    write_run(tmp_path / "run", precisions=("fp16", "nf4"))
    outcome = hq("report", "run", "--into", "out/r.html")
    assert outcome.code == 0
    assert re.fullmatch(r"Written: out/r.html \(0\.\d MB\) and out/r.md\n", outcome.err)
    assert (tmp_path / "out" / "r.md").is_file()
