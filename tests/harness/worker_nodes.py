"""Nodes that workers compute in tests: they append to files in a folder what they did."""

import os
import signal
import time
from functools import partial
from pathlib import Path

from harness.store.node import Node, Sharding, Stage


def noted(folder, what):
    with open(Path(folder) / "did.txt", "a", encoding="utf-8") as file:
        file.write(f"{what}\n")


def did(folder):
    path = Path(folder) / "did.txt"
    return path.read_text(encoding="utf-8").split() if path.exists() else []


def pieces(work):
    return range(work.parameters["pieces"])


def piece(folder, number):
    (folder / f"piece-{number}").write_text(str(number**2), encoding="utf-8")


def make(work):
    for number in pieces(work):
        piece(work.folder, number)
    merge(work, [work.folder])


def make_shard(work, shard, _):
    """Writes its pieces; the process is killed before piece `kill`, at the first attempt."""
    notes = work.parameters["notes"]
    for number in filter(shard.has, pieces(work)):
        if (work.folder / f"piece-{number}").exists():
            continue
        marker = Path(notes) / "killed"
        if number == work.parameters["kill"] and not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(work.parameters["seconds"])
        noted(notes, number)
        piece(work.folder, number)


def merge(work, shards):
    texts = [
        next(f for s in shards if (f := s / f"piece-{n}").exists()).read_text(encoding="utf-8")
        for n in pieces(work)
    ]
    for path in work.folder.glob("piece-*"):
        path.unlink()
    (work.folder / "out").write_text(" ".join(texts), encoding="utf-8")


def total(work):
    noted(work.parameters["notes"], "total")
    time.sleep(work.parameters["seconds"])
    out = (work.inputs["squares"] / "out").read_text(encoding="utf-8")
    (work.folder / "out").write_text(str(sum(map(int, out.split()))), encoding="utf-8")


SQUARES = Stage("squares", make, sharding=Sharding(make_shard, merge))
TOTAL = Stage("total", total)


def declare(notes, kill=None, seconds=0.0, memory=0):
    """A divided node of 8 pieces, and one that reads it."""
    about = {"notes": str(notes), "seconds": seconds}
    squares = Node(SQUARES, about | {"pieces": 8, "kill": kill}, memory=memory)
    return None, [Node(TOTAL, about, {"squares": squares.output("out")})]


def declaring(notes, **options):
    """A picklable function that declares the nodes."""
    return partial(declare, notes, **options)
