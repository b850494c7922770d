"""The command line, `hq …`: thin layers over stages and library calls.

Commands import what they need when they run: torch takes seconds, `hq --help` should not.
"""

from harness.cli import (
    audit,
    bake,
    bench,
    bundle,
    check,
    demo,
    doctor,
    drift,
    families,
    files,
    init,
    judge,
    listing,
    lora,
    monitor,
    neurons,
    picture,
    push,
    report,
    serve,
    study,
    survival,
    sweep,
)
from harness.cli.app import app, main

__all__ = [
    "app",
    "audit",
    "bake",
    "bench",
    "bundle",
    "check",
    "demo",
    "doctor",
    "drift",
    "families",
    "files",
    "init",
    "judge",
    "listing",
    "lora",
    "main",
    "monitor",
    "neurons",
    "picture",
    "push",
    "report",
    "serve",
    "study",
    "survival",
    "sweep",
]
