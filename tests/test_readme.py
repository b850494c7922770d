"""The results in README.md, results/README.md and docs/ are those of the committed tables."""

import re
import shutil
from pathlib import Path

import polars as pl
import pytest

from harness.experiments.sweep.tables import TABLES as SWEEP_TABLES
from harness.tables import readme
from harness.tables.evidence_findings import beaten_by, beats, detectors_table, p_value
from harness.tables.files import frame_of
from harness.tables.readme_cells import CsvTables, at_precisions, listed, text_of
from harness.tables.readme_findings import (
    adds,
    alarms_above,
    by_verdict,
    changes,
    controls_table,
    detection_table,
    fidelity,
    leads,
    suppression_finding,
    suppression_table,
    trails,
)
from harness.tables.readme_summary import best_detector, other_detectors, summary_table
from hq.errors import HQError
from tests.detect_runs import CONTROLS, PRECISIONS, around, default, write_run


@pytest.fixture
def checkout(tmp_path):
    """A checkout with small detection runs, and everything else as committed."""
    for folder in (readme.CHECKOUT / "results").glob("smollm2-*-*"):
        if folder.name != "smollm2-knowledge-cuda":
            shutil.copytree(folder, tmp_path / "results" / folder.name)
    judges = tmp_path / "harness" / "judges"
    judges.mkdir(parents=True)
    shutil.copy(readme.CHECKOUT / "harness" / "judges" / "agreement.csv", judges)
    for name in (
        *("smollm2-knowledge", "smollm2-knowledge-cuda"),
        *("smollm2-facts", "gemma3-270m-knowledge"),
    ):
        write_run(tmp_path / "results" / name)
    write_run(tmp_path / "results" / "smollm2-triviaqa", warning="text-both 0.66 [0.60, 0.72]")
    for name in readme.DOCUMENTS:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_text(f"before\n{readme.BEGIN}\nold\n{readme.END}\nafter\n", encoding="utf-8")
    return tmp_path


def test_the_documents_are_those_of_the_committed_tables():
    assert readme.outdated(readme.CHECKOUT) == []


def test_a_document_is_rendered_between_its_markers(checkout):
    assert readme.outdated(checkout) == list(readme.DOCUMENTS)
    for name in readme.DOCUMENTS:
        text = readme.rendered(checkout, name)
        assert text.startswith(f"before\n{readme.BEGIN}\n")
        assert text.endswith(f"{readme.END}\nafter\n")
        assert "old" not in text.split()
        (checkout / name).write_text(text, encoding="utf-8")
    assert readme.outdated(checkout) == []


def test_a_changed_cell_makes_the_document_outdated(checkout):
    for name in readme.DOCUMENTS:
        path = checkout / name
        path.write_text(readme.rendered(checkout, name), encoding="utf-8")
    table = checkout / "results" / "smollm2-knowledge" / "detection.csv"
    table.write_text(
        table.read_text(encoding="utf-8").replace("-0.075", "-0.065"), encoding="utf-8"
    )
    assert readme.outdated(checkout) == ["README.md", "docs/results.md", "docs/gpu.md"]


def test_sentences_follow_the_tables(checkout):
    text = " ".join(readme.rendered(checkout, "docs/results.md").split())
    assert "Changed: `nf4` (−0.075 [−0.085, −0.065]). Preserved within ±0.02: `int8`." in text
    assert "Not decided: `gguf-q8_0` (smallest detectable: 0.019)." in text
    assert "entropy has the higher AUROC at every precision. The probe adds to entropy (95%" in text
    assert "above the promised 10% (95% interval) at `nf4`, that of the transferred" in text
    assert "can be predicted from text alone (text-both 0.66 [0.60, 0.72])" in text
    assert text.count("No text-only control differs from 0.5 by more than 0.05.") == 3


@pytest.mark.parametrize("precisions", [("fp16",), ("fp16", "nf4"), ("fp16", "gguf-q8_0")])
def test_any_precisions_can_be_there(checkout, precisions):
    shutil.rmtree(checkout / "results" / "smollm2-knowledge")
    write_run(checkout / "results" / "smollm2-knowledge", precisions)
    for name in readme.DOCUMENTS:
        text = readme.rendered(checkout, name)
        assert "None" not in text
        for line in text.splitlines():
            assert line.startswith("|") or "](" in line or len(line) <= readme.DOCUMENTS[name].width
    assert ("At NF4" in readme.rendered(checkout, "docs/results.md")) == ("nf4" in precisions)
    assert ("`nf4` −0.075" in readme.rendered(checkout, "README.md")) == ("nf4" in precisions)


def test_lists_of_precisions_by_result(tmp_path):
    run = write_run(tmp_path / "run")
    assert by_verdict(run, "changed") == ["nf4"]
    assert by_verdict(run, "preserved") == ["int8"]  # and not the reference
    assert leads(run, "matched") == list(PRECISIONS)
    assert leads(run, "entropy") == []
    assert trails(run, "entropy") == list(PRECISIONS)
    assert adds(run, "entropy") == ["nf4"]
    assert alarms_above(run, "false_alarms") == ["nf4"]
    assert fidelity(run, "more") == ["nf4"]
    assert fidelity(run, "same") == ["int8", "gguf-q8_0"]
    assert changes(run, ["nf4"], 2) == "`nf4` (−0.07 [−0.09, −0.07])"
    several = write_run(tmp_path / "several", makings=[("nf4", i, 0.8) for i in range(5)])
    assert changes(several, ["nf4"], 2) == "`nf4` (+0.60 [+0.59, +0.61], over 5 checkpoints)"
    assert "+0.600 [+0.590, +0.610], over 5 checkpoints" in detection_table(several)


@pytest.fixture
def sweep(tmp_path):
    """Tables of a sweep: a null at FP16, an effect at NF4, and a curve that no line describes."""
    slopes = {
        "fp16": {"slope": around(0.004), "excess": around(0.002), "p_matched": 0.6},
        "nf4": {"slope": around(0.03), "excess": around(0.02), "p_matched": 1 / 21},
        "int8": {"shape": "not monotone: see the curve"},
    }
    usual = {"scenario": "knowledge", "n": 400, "draws": 20, "shape": "linear", "detectable": 0.014}
    rows = {
        "slopes": [
            default(SWEEP_TABLES["slopes"][0], precision=name, **usual | columns)
            for name, columns in slopes.items()
        ],
        "rates": [
            default(
                SWEEP_TABLES["rates"][0],
                precision=name,
                scenario="knowledge",
                neurons="h",
                alpha=1.0,
            )
            for name in slopes
        ],
    }
    for name, of_table in rows.items():
        frame_of(SWEEP_TABLES[name][0], of_table).write_csv(tmp_path / f"{name}.csv")
    return CsvTables(tmp_path)


def test_a_sweep_is_shown_by_lines_where_lines_describe_it(sweep):
    *_, fp16, nf4, int8 = suppression_table(sweep).splitlines()
    assert fp16.startswith("| knowledge | fp16 | 400 | 0.60 | +0.004 [−0.006, +0.014] | 0.014 |")
    assert "| 0.05 | +0.600 [+0.590, +0.610] | text |" in nf4
    assert (
        int8 == "| knowledge | int8 | 400 | 0.60 | not monotone: see the curve" + " | —" * 6 + " |"
    )


def test_the_finding_of_a_sweep_says_what_was_not_shown(sweep):
    text = suppression_finding(sweep)
    assert "(95% interval of the slope excludes 0): `nf4` on knowledge." in text
    assert "with the slope that would have been: `fp16` on knowledge (0.014)." in text
    assert "(95% interval of the excess): `nf4` on knowledge." in text
    assert "against the draws is 0.05, where 20 draws can show 0.05." in text
    assert "No line describes `int8` on knowledge" in text


def test_tables_have_a_row_per_precision_and_control(tmp_path):
    run = write_run(tmp_path / "run")
    header, rule, *rows = detection_table(run).splitlines()
    assert len({line.count("|") for line in (header, rule, *rows)}) == 1
    assert [row.split(" | ")[0].strip("| ") for row in rows] == list(PRECISIONS)
    assert "| changed |" in rows[2]
    assert len(controls_table(run, "fp16").splitlines()) == 2 + len(CONTROLS)


def test_an_unknown_cell_is_named(tmp_path):
    run = write_run(tmp_path / "run")
    with pytest.raises(HQError, match=r"detection\.csv has no column aurok"):
        run.number("detection", "aurok", precision="nf4")
    with pytest.raises(HQError, match=r"detection\.csv has no column precison"):
        run.number("detection", "auroc", precison="nf4")
    with pytest.raises(HQError, match=r"has 0 rows with precision = nf5"):
        run.number("detection", "auroc", precision="nf5")
    with pytest.raises(HQError, match=r"has 4 rows with no condition"):
        run.number("detection", "auroc")
    with pytest.raises(HQError, match=r"empty cell detectable in the row with precision = fp16"):
        run.number("detection", "detectable", precision="fp16")
    with pytest.raises(HQError, match=r"no nothing\.csv"):
        run.number("nothing", "auroc")
    with pytest.raises(HQError, match=r"does not record definition\.sampling\.top"):
        run.recorded("definition", "sampling", "top")
    assert run.recorded("definition", "sampling", "responses") == "10"


def test_the_summary_follows_the_tables(checkout):
    text = " ".join(readme.rendered(checkout, "README.md").split())
    run = CsvTables(checkout / "results" / "smollm2-knowledge")
    assert "`nf4` −0.075 [−0.085, −0.065] (changed) and `int8` +0.001 [" in text
    header, _, *rows = summary_table(run).splitlines()
    assert header.count("|") == 6  # five columns
    assert [row.split(" | ")[0].strip("| ") for row in rows] == list(PRECISIONS)
    assert rows[0].count("—") == 2
    assert "| not decided |" in rows[3]
    assert all(row in readme.rendered(checkout, "README.md") for row in rows)


def test_the_best_detector_is_another_one(checkout):
    run = CsvTables(checkout / "results" / "smollm2-knowledge-detectors")
    others = other_detectors(run, "fp16")
    rows = run.rows("detectors", precision="fp16")
    assert "h-neurons" not in others
    assert len(others) == len(rows) - 1
    best = max((row for row in rows if row["detector"] in others), key=lambda row: row["auroc"])
    assert best_detector(run, "fp16").startswith(f"`{best['detector']}`, {best['auroc']:.3f} [")


def test_the_index_has_every_committed_run():
    results = readme.CHECKOUT / "results"
    text = (results / "README.md").read_text(encoding="utf-8")
    linked = set(re.findall(r"^- \[[\w-]+\]\(([\w-]+)/tables\.md\)", text, flags=re.MULTILINE))
    assert linked == {path.parent.name for path in results.glob("*/tables.md")}


def test_a_document_without_markers_is_an_error(checkout):
    (checkout / "README.md").write_text("no markers\n", encoding="utf-8")
    with pytest.raises(HQError, match=r"README\.md needs the lines"):
        readme.rendered(checkout, "README.md")


def test_no_result_is_typed():
    """Templates have no decimal number but those of settings and of the first version."""
    typed = {"0.02", "0.05", "0.1", "0.5"}  # margins, promises and chance
    first_version = {"0.37", "0.40", "0.743"}
    for template in readme.DOCUMENTS.values():
        path = Path(readme.__file__).with_name("templates") / template.template
        prose = re.sub(r"\{[{%].*?[%}]\}", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
        assert set(re.findall(r"\d+\.\d+", prose)) <= typed | first_version


def test_numbers_as_text():
    assert text_of(-0.0724) == "−0.072"
    assert text_of(-0.0004) == "0.000"
    assert text_of(-0.0004, signed=True) == "+0.000"
    assert text_of(0.0724, 2, signed=True) == "+0.07"
    assert text_of(46080) == "46,080"
    assert text_of(-3, signed=True) == "−3"
    assert text_of(1234.5, 1) == "1,234.5"
    assert text_of("changed") == "changed"
    with pytest.raises(HQError, match="finite"):
        text_of(float("nan"))


def test_lists_as_text():
    assert listed([]) == "none"
    assert listed(["a"]) == "a"
    assert listed(["a", "b", "c"]) == "a, b and c"
    every = ["fp16", "int8", "nf4"]
    assert at_precisions(every, every) == "at every precision"
    assert at_precisions([], every) == "at no precision"
    assert at_precisions(["fp16", "nf4"], every) == "at every precision except `int8`"
    assert at_precisions(["nf4"], every) == "at `nf4`"
    assert at_precisions(["fp16"], ["fp16"]) == "at `fp16`"


def test_prose_is_wrapped_and_tables_are_not():
    text = "\n\nlong words\nin lines\n\n\n- an item that is long\n- b\n\n| a cell | b cell |\n"
    assert readme.reflow(text, 12) == (
        "long words\nin lines\n\n- an item\n  that is\n  long\n- b\n\n| a cell | b cell |"
    )


def test_code_intervals_and_links_are_not_divided():
    text = "a `b = c d` of [0.1, 0.2] in [all tables](a/b.md) here"
    assert readme.reflow(text, 10) == (
        "a\n`b = c d`\nof\n[0.1, 0.2]\nin\n[all tables](a/b.md)\nhere"
    )


def test_the_evidence_follows_its_tables(checkout):
    run = CsvTables(checkout / "results" / "smollm2-knowledge-detectors")
    rows = run.rows("detectors", precision="fp16")
    better, worse = beaten_by(run, "fp16"), beats(run, "fp16")
    for row in rows:
        decided = row["p"] < 0.05
        assert (row["detector"] in better) == (decided and row["probe_minus"] < 0)
        assert (row["detector"] in worse) == (decided and row["probe_minus"] > 0)
    assert "h-neurons" not in [*better, *worse]
    table = detectors_table(run).splitlines()[2:]
    assert len(table) == len(rows)
    areas = [float(line.split("|")[2].split()[0]) for line in table]
    assert areas == sorted(areas, reverse=True)


def test_small_p_values_are_bounds():
    assert [p_value(p) for p in (0.5, 0.0123, 0.0009)] == ["0.500", "0.012", "<0.001"]


def test_the_committed_report_has_the_numbers_of_the_tables():
    folder = readme.CHECKOUT / "results" / "smollm2-knowledge"
    text = (folder / "report.md").read_text(encoding="utf-8").replace("\u2212", "-")
    page = (folder / "report.html").read_text(encoding="utf-8").replace("\u2212", "-")
    for row in pl.read_csv(folder / "detection.csv").iter_rows(named=True):
        auroc = f"{row['auroc']:.3f} [{row['auroc_low']:.3f}, {row['auroc_high']:.3f}]"
        assert auroc in text
        assert auroc in page
