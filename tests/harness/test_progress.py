"""Progress: a line at start and end where there is no terminal, nothing when quiet."""

import subprocess
import sys
import time

from harness.store.progress import EVERY_S, Progress, Task


def test_plain_lines_without_a_terminal(capsys):
    with Progress() as progress, progress.task("trace fp16", 10, "texts") as task:
        task.advance(4)
        task.advance(6)
        task.note("all of them")
    first, last = capsys.readouterr().err.splitlines()
    assert first == "trace fp16: 10 texts …"
    assert last.startswith("trace fp16: 10 texts in ")
    assert last.endswith(", all of them")


def test_quiet_says_nothing(capsys):
    with Progress(quiet=True) as progress, progress.task("trace", 1, "texts") as task:
        task.advance(1)
    assert capsys.readouterr() == ("", "")
    assert task.done == 1


def test_a_log_gets_a_line_between_start_and_end_although_nothing_advances(capsys):
    with Progress(every=0.05) as progress, progress.task("sample", 100, "questions") as task:
        task.advance(25)
        task.note("3 of 60 pairs")
        time.sleep(0.3)
    _, *between, last = capsys.readouterr().err.splitlines()
    assert len(between) >= 2
    assert between[0].startswith("sample: 25 of 100 questions, about ")
    assert between[0].endswith(" left, 3 of 60 pairs")
    assert between[1] == "sample: 25 of 100 questions, 3 of 60 pairs"  # no rate, so no forecast
    assert last.startswith("sample: 25 questions in ")


def test_a_line_a_minute():
    assert EVERY_S == 60


def test_no_more_lines_once_a_task_has_ended(capsys):
    with Progress(every=0.02) as progress:
        with progress.task("a", 1, "texts"):
            pass
        capsys.readouterr()
        time.sleep(0.1)
    assert capsys.readouterr().err == ""


def test_the_forecast_is_of_the_last_interval(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    task = Task(None, "sample", 1000, "questions")
    task.advance(500)  # found in the log of an earlier run
    now[0] = 60.0
    task.status()
    task.advance(50)
    now[0] = 120.0
    assert task.status() == "550 of 1000 questions, about 9 min left"


def test_transformers_shows_no_bar_of_its_own_when_it_reads_a_gguf_file():
    code = (
        "from harness.store.progress import Progress\n"
        "from transformers import modeling_gguf_pytorch_utils as reader\n"
        "with Progress(quiet=True): list(reader.tqdm([1, 2], desc='de-quantizing'))"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, encoding="utf-8", check=True
    )
    assert "de-quantizing" not in ran.stderr
