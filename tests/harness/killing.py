"""`hq` in processes that are killed at a chosen call of a function, as by kill -9."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

needs_sigkill = pytest.mark.skipif(os.name == "nt", reason="this machine: Windows has no SIGKILL")

# Imports torch once, then forks a process for each line of stdin. No thread has started yet.
PROGRAM = """
import json, os, pkgutil, signal, sys
import harness.experiments.run
from harness.cli import main

def kill_at(owner, name, call):
    original, calls = getattr(owner, name), 0

    def counted(*arguments, **options):
        nonlocal calls
        calls += 1
        if calls == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*arguments, **options)

    setattr(owner, name, counted)

for line in sys.stdin:
    owner, name, call, *arguments = json.loads(line)
    child = os.fork()
    if child == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        kill_at(pkgutil.resolve_name(owner), name, call)
        sys.argv = ["hq", *arguments]
        try:
            main()
        except SystemExit as stop:
            os._exit(stop.code or 0)
        finally:
            os._exit(70)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Killer:
    """Runs `hq` in `folder`, with the cache that is in the environment."""

    def __init__(self, folder: Path) -> None:
        path = os.pathsep.join(map(os.path.abspath, sys.path))
        self._process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=folder,
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path},
            encoding="utf-8",
        )

    def __enter__(self) -> "Killer":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()

    def run(self, function: str, call: int, *arguments: object) -> int:
        """The exit code of `hq ARGUMENTS`, killed at that call of `function`: "OWNER NAME"."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        line = json.dumps([*function.split(), call, *map(str, arguments)])
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())
