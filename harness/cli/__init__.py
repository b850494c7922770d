"""The command line, `hq …`: thin layers over stages and library calls."""

from harness.cli.app import app, main
from harness.cli import bench, check, doctor, files, neurons, study  # noqa: I001  (in help's order)

__all__ = ["app", "bench", "check", "doctor", "files", "main", "neurons", "study"]
