"""`--sampler openai` with `hq serve` and llama-server: their responses are the local sampler's."""

import json
import os
import shutil
import socket
import subprocess
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import pytest

from harness.stages.sample import QuestionRecord
from harness.store.jsonl import parse
from hq.gguf.file import GGUFFile
from hq.gguf.write import write_gguf
from hq.models.checkpoint import checkpoint_identity
from hq.neurons.neuron_set import Neuron, NeuronSet
from tests.harness.serve.conftest import NEVER, running, seal

LLAMA_SERVER = os.environ.get("HQ_LLAMA_SERVER") or shutil.which("llama-server") or ""


@contextmanager
def serving(gguf: Path, folder: Path):
    """`hq serve` of a file of the tiny study's model."""
    file = GGUFFile(gguf)
    neurons = NeuronSet(
        model=file.identity,
        cett="sum",
        tokens="answer",
        labels="1-vs-1",
        intercept=0.1,
        neurons=(Neuron(layer=0, index=3, weight=1.0, mean=0.01, scale=0.02),),
        provenance={"prompt": "few-shot"},
    )
    thresholds = dict.fromkeys(("all", "doubted", "again"), NEVER)
    seal(folder / "bundle", "tiny", file, neurons, thresholds)
    with running(gguf, folder / "bundle", folder / "audit.jsonl") as server:
        yield server


def records(stage: str) -> dict[str, QuestionRecord]:
    (file,) = Path("cache/store").glob(f"{stage}-[0-9a-f]*/responses.jsonl")
    return {r.id: r for r in parse(file.read_text(encoding="utf-8"), QuestionRecord)}


@pytest.fixture
def export(hq, tiny_study):
    """Samples greedy responses, and returns what the command printed."""

    def call(*options):
        return hq(
            *("responses", "export", tiny_study, "--into", "responses.jsonl.gz", "--quiet"),
            *("--set", "sampling.quota=5", *options),
        )

    return call


def test_greedy_responses_are_those_of_the_local_sampler(export, tmp_path, monkeypatch):
    monkeypatch.setattr("harness.stages.sample.CHUNK", 60)
    greedy = ("--set", "sampling.temperature=0")
    assert export("--sampler", "llamacpp", *greedy).code == 0
    # The other file is in F16, from which this one is quantized.
    gguf = min(Path("cache/store").glob("gguf-*/model.gguf"), key=lambda path: path.stat().st_size)
    with serving(gguf, tmp_path) as server:
        outcome = export("--sampler", "openai", "--endpoint", server.url, *greedy)
    assert outcome.code == 0, outcome.err
    local, remote = records("sample"), records("served")
    assert local.keys() == remote.keys()
    assert len(local) >= 60
    # Batches of other sizes sum in another order, so a tie can be decided otherwise.
    equal = sum(local[id].responses == remote[id].responses for id in local)
    assert equal / len(local) >= 0.95, f"{equal} of {len(local)}"


def test_samples_come_several_a_request_and_seeds_repeat_them(
    export, tiny_study, tmp_path, monkeypatch
):
    monkeypatch.setattr("harness.stages.sample.CHUNK", 30)
    gguf = tmp_path / "tiny.gguf"
    source = tiny_study.parent / "model"
    write_gguf(source, gguf, "f32", checkpoint_identity(source))
    with serving(gguf, tmp_path) as server:
        options = ("--sampler", "openai", "--endpoint", server.url)
        first = export(*options, "--concurrency", 2)
        assert first.code == 0, first.err
        sampled = records("served")
        (file,) = Path("cache/store").glob("served-[0-9a-f]*/servers.json")
        facts = json.loads(file.read_text(encoding="utf-8"))
        monkeypatch.setenv("HQ_CACHE", "other")
        assert export(*options).code == 0
    (again,) = Path("other/store").glob("served-[0-9a-f]*/responses.jsonl")
    repeated = parse(again.read_text(encoding="utf-8"), QuestionRecord)
    assert repeated == list(sampled.values())
    (about,) = facts["servers"]
    assert (about["choices"], about["seeds"]) == (3, "repeat responses")
    assert about["prompt"] == "token ids"
    assert facts["unreadable"] == 0


@pytest.mark.slow
@pytest.mark.skipif(
    not LLAMA_SERVER, reason="this machine: no llama-server; HQ_LLAMA_SERVER names its file"
)
def test_llama_server_samples_what_the_local_sampler_does(export, monkeypatch):
    monkeypatch.setattr("harness.stages.sample.CHUNK", 60)
    greedy = ("--set", "sampling.temperature=0")
    assert export("--sampler", "llamacpp", *greedy).code == 0
    gguf = min(Path("cache/store").glob("gguf-*/model.gguf"), key=lambda path: path.stat().st_size)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    exact = ("-fa", "off", "-ctk", "f32", "-ctv", "f32")
    process = subprocess.Popen(
        [LLAMA_SERVER, "-m", str(gguf), "--port", str(port), "--alias", "tiny", "-t", "1", *exact],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        url = f"http://127.0.0.1:{port}"
        for _ in range(100):
            with suppress(httpx.TransportError):
                if httpx.get(f"{url}/health").is_success:
                    break
            time.sleep(0.1)
        outcome = export("--sampler", "openai", "--endpoint", url, *greedy)
    finally:
        process.terminate()
        process.wait(30)
    assert outcome.code == 0, outcome.err
    (file,) = Path("cache/store").glob("served-[0-9a-f]*/servers.json")
    (about,) = json.loads(file.read_text(encoding="utf-8"))["servers"]
    assert (about["prompt"], about["ids"]) == ("token ids", "logprobs")
    assert about["tokenizer"] == "token ids of /tokenize"
    local, remote = records("sample"), records("served")
    equal = sum(local[id].responses == remote[id].responses for id in local)
    assert equal / len(local) >= 0.95, f"{equal} of {len(local)}"
