"""32 clients at once: no error but 429, memory that does not grow, every answer once in the log."""

from pathlib import Path

import pytest

from harness.embedded import packaged_gguf
from hq.errors import HQError
from hq.gguf.file import GGUFFile
from hq.neurons import NeuronSet
from tests.harness.serve.conftest import seal
from tests.harness.serve.load import run

ROOT = Path(__file__).parents[3]
FLAT = 1.05  # of memory, first third of a warm server to the last; some seconds show no leak


@pytest.fixture(scope="module")
def embedded_bundle(tmp_path_factory):
    """The committed neurons of the embedded model, with their threshold."""
    try:
        file = GGUFFile(packaged_gguf())
    except HQError as missing:
        pytest.skip(str(missing))
    neurons = NeuronSet.load(ROOT / "results" / "smollm2-facts" / "neurons.json", file.identity)
    folder = tmp_path_factory.mktemp("embedded") / "bundle"
    return seal(folder, "smollm2", file, neurons, {"all": neurons.thresholds["youden"]})


def test_a_tiny_model_for_some_seconds(gguf_file, bundle_folder, tmp_path):
    figures = run(gguf_file, bundle_folder, tmp_path / "audit.jsonl", 3, kill=False)
    assert figures["answers"] > 5


def test_a_tiny_model_that_is_killed(gguf_file, bundle_folder, tmp_path):
    figures = run(gguf_file, bundle_folder, tmp_path / "audit.jsonl", 3, kill=True)
    assert figures["answers"] < figures["lines"] + 1
    assert figures["faults"]


@pytest.mark.slow
@pytest.mark.parametrize("kill", [False, True])
def test_the_embedded_model(embedded_bundle, tmp_path, kill):
    figures = run("smollm2", embedded_bundle, tmp_path / "audit.jsonl", 12, kill)
    assert figures["answers"] > 0
    assert kill or figures["rss_growth"] < FLAT, figures
