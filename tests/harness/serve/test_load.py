"""32 clients at once: only 200 and 429, constant memory, every answer exactly once in the log."""

from pathlib import Path

import pytest

from harness.models.packaged import packaged_gguf
from hq.errors import HQError
from tests.harness.serve.load import run

BUNDLE = Path(__file__).parents[3] / "results" / "smollm2-knowledge" / "bundle"
MAX_GROWTH = 1.05  # of memory between the first and the last third; detects large leaks only


@pytest.fixture
def embedded():
    """The name of the embedded model; skips if it is not installed."""
    try:
        packaged_gguf()
    except HQError as error:
        pytest.skip(str(error))
    return "smollm2"


def test_a_tiny_model_under_load(gguf_file, bundle_folder, tmp_path):
    measurements = run(gguf_file, bundle_folder, tmp_path / "audit.jsonl", 3, kill=False)
    assert measurements["answers"] > 5


def test_a_tiny_model_killed_under_load(gguf_file, bundle_folder, tmp_path):
    measurements = run(gguf_file, bundle_folder, tmp_path / "audit.jsonl", 3, kill=True)
    assert measurements["answers"] < measurements["lines"] + 1
    assert measurements["faults"]


@pytest.mark.slow
@pytest.mark.parametrize("kill", [False, True])
def test_the_embedded_model_under_load(embedded, tmp_path, kill):
    measurements = run(embedded, BUNDLE, tmp_path / "audit.jsonl", 12, kill)
    assert measurements["answers"] > 0
    assert kill or measurements["rss_growth"] < MAX_GROWTH, measurements
