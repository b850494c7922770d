"""The command line, `hq …`: thin layers over stages and library calls.

Commands import what they need when they run: torch takes seconds, `hq --help` should not.
"""

from harness.cli import (
    audit,
    bench,
    bundle,
    check,
    doctor,
    files,
    monitor,
    neurons,
    picture,
    serve,
    study,
    sweep,
)
from harness.cli.app import app, main

__all__ = [
    "app",
    "audit",
    "bench",
    "bundle",
    "check",
    "doctor",
    "files",
    "main",
    "monitor",
    "neurons",
    "picture",
    "serve",
    "study",
    "sweep",
]
