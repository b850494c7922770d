"""`hq serve` in a subprocess."""

import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

COMMAND = [sys.executable, "-c", "from harness.cli import main; main()"]


@contextmanager
def server(
    gguf: Path | str, folder: Path, log: Path, *options: object
) -> Iterator[tuple[subprocess.Popen, str, str]]:
    """Yield (process, its output up to the curl line, its address); kill it with the context."""
    arguments = ["serve", "--gguf", gguf, "--bundle", folder, "--port", 0]
    arguments += ["--threads", 1, "--audit", log, *options]
    process = subprocess.Popen(
        [*COMMAND, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
    )
    try:
        printed = []
        while not printed or not printed[-1].startswith("curl"):
            line = process.stdout.readline()
            assert line, process.stderr.read()
            printed.append(line)
        address = re.search(r"http://\S+", printed[0])[0]
        _wait(address)
        yield process, "".join(printed), address
    finally:
        process.kill()
        process.communicate()


def _wait(address: str) -> None:
    until = time.monotonic() + 60
    while True:
        try:
            httpx.get(f"{address}/readyz").raise_for_status()
            return
        except httpx.HTTPError:
            assert time.monotonic() < until
            time.sleep(0.05)
