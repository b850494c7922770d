"""The command line, `hq …`: thin layers over stages and library calls.

Commands import what they need when they run: torch takes seconds, `hq --help` should not.
"""

from harness.cli import (
    bake,
    bench,
    bundle,
    check,
    doctor,
    files,
    lora,
    monitor,
    neurons,
    picture,
    study,
    survival,
    sweep,
)
from harness.cli.app import app, main

__all__ = [
    "app",
    "bake",
    "bench",
    "bundle",
    "check",
    "doctor",
    "files",
    "lora",
    "main",
    "monitor",
    "neurons",
    "picture",
    "study",
    "survival",
    "sweep",
]
