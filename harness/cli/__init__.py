"""The command line, `hq …`: thin layers over stages and library calls."""

from harness.cli import bench, check, doctor, files, neurons, study
from harness.cli.app import app, main

__all__ = ["app", "bench", "check", "doctor", "files", "main", "neurons", "study"]
