"""The commands of two pages run in their order, on a tiny study in place of the page's own."""

import re
import shlex
import shutil
from pathlib import Path

from tests.documents import shell_lines

COMMITTED = "smollm2-knowledge"  # the study of the pages


def commands(page):
    """The commands of hq on a page, as lists of words."""
    lines = [line.replace(COMMITTED, "mine") for line in shell_lines(page)]
    return [shlex.split(line)[1:] for line in lines if line.startswith("hq ")]


def write_study(tiny_study):
    """The tiny study as mine.toml, in the current folder."""
    text = tiny_study.read_text(encoding="utf-8").replace('name = "tiny"', 'name = "mine"')
    Path("mine.toml").write_text(text, encoding="utf-8")


def test_the_gate_in_ci_as_the_tutorial_types_it(tiny_study, finished, hq, tmp_path):
    write_study(tiny_study)
    shutil.copytree(finished / "cache", tmp_path / "cache")  # its nodes are those of mine.toml
    typed = commands("docs/tutorials/ci-gate.md")
    assert ["check", "runs/mine", "--against", "results/mine", "--accept"] in typed
    for words in typed:
        outcome = hq(*words)
        is_verdict = words[0] == "check" and "--accept" not in words
        # So few samples can be too few to rule the margin out.
        assert outcome.code in ((0, 5) if is_verdict else (0,)), (words, outcome)
    assert Path("results/mine/tolerances.toml").is_file()
    table = Path("runs/mine/detection.csv")
    changed = re.sub(r",0\.\d+", ",0.001", table.read_text(encoding="utf-8"))
    table.write_text(changed, encoding="utf-8")
    assert hq(*typed[3]).code not in (0, 5)


def test_one_stage_at_a_time_as_the_page_types_it(tiny_study, finished, hq):
    shutil.copytree(finished / "runs" / "tiny", "runs/mine")
    model = ("--model", tiny_study.parent / "model")
    done = []
    for words in commands("docs/how-to/stages.md"):
        if "PACKED" in words:
            continue  # GPTQ takes minutes
        more = {"trace": model, "identify": ("--max-fraction", 0.05)}.get(words[0], ())
        outcome = hq(*words, *more)
        assert outcome.code == 0, (words, outcome)
        done.append(words[0])
    assert done == ["trace", "trace", "identify", "compare", "neurons", "picture"]
    assert Path("found/probes.json").is_file()
    assert Path("auroc.svg").stat().st_size > 0
