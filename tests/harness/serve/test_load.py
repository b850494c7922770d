"""32 clients at once: no error but 429, memory that does not grow, every answer once in the log."""

from pathlib import Path

import pytest

from harness.models.sources import packaged_gguf
from hq.errors import HQError
from tests.harness.serve.load import run

BUNDLE = Path(__file__).parents[3] / "results" / "smollm2-facts" / "bundle"
FLAT = 1.05  # of memory, first third of a warm server to the last; some seconds show no leak


@pytest.fixture
def embedded():
    """The name of the embedded model, where it is installed."""
    try:
        packaged_gguf()
    except HQError as missing:
        pytest.skip(str(missing))
    return "smollm2"


def test_a_tiny_model_for_some_seconds(gguf_file, bundle_folder, tmp_path):
    figures = run(gguf_file, bundle_folder, tmp_path / "audit.jsonl", 3, kill=False)
    assert figures["answers"] > 5


def test_a_tiny_model_that_is_killed(gguf_file, bundle_folder, tmp_path):
    figures = run(gguf_file, bundle_folder, tmp_path / "audit.jsonl", 3, kill=True)
    assert figures["answers"] < figures["lines"] + 1
    assert figures["faults"]


@pytest.mark.slow
@pytest.mark.parametrize("kill", [False, True])
def test_the_embedded_model(embedded, tmp_path, kill):
    figures = run(embedded, BUNDLE, tmp_path / "audit.jsonl", 12, kill)
    assert figures["answers"] > 0
    assert kill or figures["rss_growth"] < FLAT, figures
