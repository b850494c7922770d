"""A tiny served model: its file, its bundle, and servers that run in a thread of the test.

The tests of this folder are not collected if llama.cpp or the extra `serve` is missing.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import httpx
import numpy as np
import pytest

from hq.gguf.file import GGUFFile
from hq.models.checkpoint import checkpoint_identity
from hq.neurons.neuron_set import Neuron, NeuronSet
from hq.stats.intervals import Estimate
from tests import tiny, tiny_tokenizers
from tests.no_skips import FORBIDDEN
from tests.sharing import shared

MISSING = [name for name in ("llama_cpp", "fastapi") if find_spec(name) is None]
collect_ignore_glob = ["test_*.py"] if MISSING and not FORBIDDEN else []

if not MISSING:
    from harness.serve.audit.files import read_audit_log
    from harness.serve.audit.log import AuditLog
    from harness.serve.generation.model import ServedModel
    from harness.serve.policy.file import Policy
    from harness.serve.web.access import LOCAL_NAMES, APIKeys
    from harness.serve.web.server import Server, open_socket
    from harness.serve.web.service import Service
    from hq.gguf.write import write_gguf
    from hq.monitor import bundle
    from hq.monitor.bundle import Bundle

VOCABULARY = 320  # contains every byte, so that any JSON can be generated
NEVER, ALWAYS = 1e6, -1e6  # thresholds that no score reaches, or every score
TEMPLATE = (
    "{% for m in messages %}<s>{{ m.role }}: {{ m.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant:{% endif %}"
)


@pytest.fixture(scope="session")
def gguf_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny llama with a context for conversations and a chat template; read only."""

    def make(folder: Path) -> None:
        source = folder / "checkpoint"
        model = tiny.model("llama", max_position_embeddings=2048, vocab_size=VOCABULARY)
        model.half().save_pretrained(source)
        tokenizer = tiny_tokenizers.byte_level(VOCABULARY)
        tokenizer.chat_template = TEMPLATE
        tokenizer.save_pretrained(source)
        write_gguf(source, folder / "tiny.gguf", "f32", checkpoint_identity(source))

    return shared(tmp_path_factory, "served", make) / "tiny.gguf"


@pytest.fixture(scope="session")
def bundle_folder(gguf_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its bundle, with a threshold that no score reaches and domains with others; read only."""
    file = GGUFFile(gguf_file)
    neurons = NeuronSet(
        model=file.identity,
        cett="sum",
        tokens="answer",
        labels="1-vs-1",
        intercept=0.1,
        neurons=(
            Neuron(layer=0, index=3, weight=1.0, mean=0.01, scale=0.02),
            Neuron(layer=1, index=5, weight=0.5, mean=0.01, scale=0.02),
            Neuron(layer=2, index=7, weight=-2.0, mean=0.01, scale=0.02),
        ),
        provenance={"prompt": "chat"},
    )
    thresholds = {"all": NEVER, "doubted": ALWAYS, "again": ALWAYS, "noted": ALWAYS}

    def make(folder: Path) -> None:
        seal(folder / "bundle", "tiny", file, neurons, thresholds)

    return shared(tmp_path_factory, "bundle", make) / "bundle"


def seal(
    folder: Path, name: str, file: GGUFFile, neurons: NeuronSet, thresholds: dict[str, float]
) -> Path:
    """Write a bundle with these thresholds, as if they had been validated."""
    estimate = Estimate(value=0.8, low=0.7, high=0.9, n=50)
    facts = bundle.BundleFacts(
        name=name,
        hq="0",
        precision="gguf-source",
        compute="float32",
        prompt=str(neurons.provenance["prompt"]),
        model=bundle.model_file(file, "f32"),
    )
    bundle.write_bundle(
        folder,
        facts,
        neurons,
        {domain: bundle.Domain(value, 0.1, 40) for domain, value in thresholds.items()},
        bundle.Validation(estimate, 50, 50, 25, 0, name, "none"),
        {
            "norms": bundle.neuron_norms(neurons, file),
            "scores": np.linspace(-1, 1, 40),
            "right": np.linspace(-1, 0.5, 20),
        },
        "A model card.\n",
    )
    return folder


RULES = {
    "doubted": {"action": "block", "message": "No."},
    "again": {"action": "regenerate", "alpha": 0.0},
}


@dataclass(frozen=True)
class Running:
    """A running server."""

    url: str
    service: Service
    log: Path
    audit: AuditLog
    uvicorn: Server

    def client(self, **headers: str) -> httpx.Client:
        """Return an HTTP client of the server."""
        return httpx.Client(base_url=self.url, headers=headers, timeout=60)

    def lines(self, kind: str = "response") -> list[dict]:
        """Return the lines of one kind in the audit log."""
        return [line.content for line in read_audit_log(self.log) if line.content["kind"] == kind]

    def line(self, id: str) -> dict:
        """Return the only line of a response."""
        (line,) = [line for line in self.lines() if line["id"] == id]
        return line

    def wait_for(self, count: int) -> list[dict]:
        """Wait until the log has this many responses, and return them."""
        for _ in range(600):
            if len(lines := self.lines()) >= count:
                return lines
            time.sleep(0.05)
        raise AssertionError(f"{len(lines)} lines instead of {count}")


@contextmanager
def running(
    gguf: Path,
    folder: Path,
    log: Path,
    policy: dict | None = None,
    keys: tuple[str, ...] = (),
    parallel: int = 4,
) -> Iterator[Running]:
    """Run a server on a free port until the context ends."""
    policy_model = Policy.model_validate({"domains": RULES} | (policy or {}))
    with ExitStack() as stack:
        listener = stack.enter_context(open_socket("127.0.0.1", 0))
        audit = stack.enter_context(AuditLog(log))
        model = stack.enter_context(
            ServedModel(
                gguf,
                Bundle.load(folder),
                policy_model.limits.context,
                policy_model.form,
                parallel=parallel,
            )
        )
        service = Service.create(model, policy_model, audit, APIKeys(keys), LOCAL_NAMES)
        server = Server(service)
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            while not server.started:
                assert thread.is_alive()
                time.sleep(0.01)
            yield Running(
                f"http://127.0.0.1:{listener.getsockname()[1]}", service, log, audit, server
            )
        finally:
            server.should_exit = True
            thread.join(60)
            assert not thread.is_alive()


@pytest.fixture
def start(gguf_file: Path, bundle_folder: Path, tmp_path: Path) -> Iterator[Callable[..., Running]]:
    """Return a function that starts a server with a policy; it ends with the test."""
    with ExitStack() as stack:
        yield lambda **options: stack.enter_context(
            running(gguf_file, bundle_folder, tmp_path / "audit.jsonl", **options)
        )


@pytest.fixture(scope="session")
def served(
    gguf_file: Path, bundle_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Running]:
    """One server for many tests."""
    log = tmp_path_factory.mktemp("audit") / "audit.jsonl"
    with running(gguf_file, bundle_folder, log) as server:
        yield server


def close_to(value: object) -> object:
    """Return a value that equals others up to rounding, which the tokens of a decode change."""
    if isinstance(value, float):
        return pytest.approx(value, rel=1e-4, abs=1e-5)
    if isinstance(value, dict):
        return {key: close_to(each) for key, each in value.items()}
    return [close_to(each) for each in value] if isinstance(value, list) else value


def ask(text: str = "the model", **options: object) -> dict:
    """Return the body of a chat request."""
    return {"messages": [{"role": "user", "content": text}], "max_tokens": 8} | options
