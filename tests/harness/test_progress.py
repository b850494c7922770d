"""Progress: a line at start and end where there is no terminal, nothing when quiet."""

from harness.progress import Progress


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
