"""The commands of docs/how-to/gate.md end with the exit codes that it states."""

import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "how-to" / "gate.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^ {4}hq (check .*?) +# (\d)$", PAGE, flags=re.MULTILINE)


def test_the_page_has_commands():
    assert {code for _, code in COMMANDS} == set("0256")


@pytest.mark.parametrize(("command", "code"), COMMANDS)
def test_a_command_of_the_page(command, code, hq):
    words = [str(ROOT / w) if w.startswith("results") else w for w in shlex.split(command)]
    assert hq(*words).code == int(code)
