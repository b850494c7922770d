"""Bench `serving`: tokens per second and time to the first token, relative to llama-server."""

import asyncio
import json
import re
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np

from harness.bench.base import BenchRow, alternate, median_ratio
from harness.bench.llama_server import llama_server
from harness.models.packaged import EMBEDDED_NAME
from harness.models.sources import gguf_of
from hq.errors import HQError

BUNDLE = Path("results/smollm2-knowledge/bundle")
CLIENTS = 8
CONTEXT = 512  # tokens of each sequence, in both servers
_THREADS = 2
_START_SECONDS = 300
_SYSTEM = (
    "The following is a collection of short articles for a general audience. Each one explains "
    "its subject in plain words, gives an example, and ends with a question to the reader.\n\n"
)
_SUBJECTS = (
    *("the tides", "volcanoes", "the printing press", "photosynthesis", "glaciers", "the compass"),
    *("bridges", "the steam engine", "migration of birds", "vaccines", "deserts", "coral reefs"),
    *("the telescope", "soil", "the violin", "railways", "bees", "lightning", "paper", "rivers"),
    *("the Moon", "salt", "windmills", "maps", "earthquakes", "silk", "clocks", "whales"),
    *("the alphabet", "rubber", "forests", "glass"),
)


@dataclass(frozen=True, slots=True)
class _Load:
    """What the clients of one round received."""

    tokens: int
    seconds: float
    first: tuple[float, ...]  # seconds from each request to its first event

    @property
    def rate(self) -> float:
        """Tokens per second, over all clients."""
        return self.tokens / self.seconds


def bench_serving(
    rounds: int = 6,
    model: str = EMBEDDED_NAME,
    bundle: Path = BUNDLE,
    new_tokens: int = 64,
    requests: int = 2,
) -> list[BenchRow]:
    """Compare `hq serve` with llama-server at 8 clients. Takes 6 minutes, and 6 to build the peer.

    Both serve the same file on 2 threads, with 8 sequences of the same length, and keys and values
    in float32 without flash attention. The clients send the same prompts, which share their first
    40 tokens, at temperature 0, and read streams. Rounds of both servers alternate.

    Args:
        rounds: Timed pairs of rounds, after one to warm up.
        model: A GGUF file, or the embedded model.
        bundle: Its monitor bundle.
        new_tokens: The most tokens of an answer.
        requests: Requests of each client in a round, one after the other.
    """
    try:
        program = llama_server()
    except HQError as error:
        name = f"served_tokens_ratio_{CLIENTS}_clients"
        return [BenchRow(name=name, value=None, unit="x", goal=">= 0.95", note=str(error))]
    loads: dict[str, list[_Load]] = {"llama-server": [], "hq": []}
    with ExitStack() as stack:
        urls = {
            "llama-server": stack.enter_context(_peer(program, gguf_of(model))),
            "hq": stack.enter_context(_hq(model, bundle, new_tokens)),
        }

        def rate(name: str) -> float:
            number = len(loads[name])
            loads[name].append(_load(urls[name], number, new_tokens, requests))
            return loads[name][-1].rate

        pairs = alternate(partial(rate, "llama-server"), partial(rate, "hq"), rounds)
    return _rows(pairs, {name: of_rounds[1:] for name, of_rounds in loads.items()}, new_tokens)


def _rows(
    pairs: Sequence[tuple[float, float]], loads: dict[str, list[_Load]], new_tokens: int
) -> list[BenchRow]:
    """The rows of timed rounds."""
    peer, own = (np.array([load.rate for load in of_rounds]) for of_rounds in loads.values())
    ratios = sorted(second / first for first, second in pairs)
    first = {
        name: [seconds for load in of_rounds for seconds in load.first]
        for name, of_rounds in loads.items()
    }
    rows = [
        BenchRow(
            name=f"served_tokens_ratio_{CLIENTS}_clients",
            value=median_ratio(pairs),
            unit="x",
            goal=">= 0.95",
            note=f"median of {len(pairs)} pairs of rounds ({ratios[0]:.3f} to {ratios[-1]:.3f}); "
            f"{np.median(own):.0f} tokens a second, llama-server {np.median(peer):.0f}; "
            f"{CLIENTS} sequences of {CONTEXT} tokens, answers of up to {new_tokens}",
        )
    ]
    for percent in (50, 95):
        milliseconds = {n: 1e3 * float(np.percentile(s, percent)) for n, s in first.items()}
        rows.append(
            BenchRow(
                name=f"first_token_ms_p{percent}_{CLIENTS}_clients",
                value=milliseconds["hq"],
                unit="ms",
                note=f"from the request to its first token with a score, {len(first['hq'])} "
                f"requests; llama-server {milliseconds['llama-server']:.0f} ms without a score",
            )
        )
    return rows


# --- clients


def _load(url: str, number: int, new_tokens: int, requests: int) -> _Load:
    """Run all clients; each round has prompts of its own."""

    async def client(index: int) -> list[tuple[int, float]]:
        return [
            await _stream(url, _prompt(number, index * requests + k), new_tokens)
            for k in range(requests)
        ]

    async def clients() -> list[list[tuple[int, float]]]:
        return await asyncio.gather(*map(client, range(CLIENTS)))

    started = time.perf_counter()
    answers = [answer for each in asyncio.run(clients()) for answer in each]
    seconds = time.perf_counter() - started
    return _Load(sum(n for n, _ in answers), seconds, tuple(first for _, first in answers))


def _prompt(number: int, index: int) -> str:
    subject = _SUBJECTS[index % len(_SUBJECTS)]
    return f"{_SYSTEM}Article {number * 100 + index + 1}, about {subject}. In a few words,"


async def _stream(url: str, prompt: str, new_tokens: int) -> tuple[int, float]:
    """Request one stream; return its number of tokens and the seconds to its first event.

    The bytes are not parsed while they come, so that the clients take little of the machine.
    """
    address = urlsplit(url)
    body = json.dumps(
        {
            "prompt": prompt,
            "max_tokens": new_tokens,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
    ).encode()
    head = (
        f"POST /v1/completions HTTP/1.1\r\nHost: {address.netloc}\r\nConnection: close\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    started = time.perf_counter()
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    writer.write(head.encode() + body)
    received, first = bytearray(), None
    while part := await reader.read(1 << 16):
        received += part
        if first is None and b"data: " in received:
            first = time.perf_counter() - started
    writer.close()
    counts = re.findall(rb'"completion_tokens":\s*(\d+)', received)
    if first is None or not counts:
        raise HQError(f"{url} did not complete a stream: {received[-200:].decode()}")
    return int(counts[-1]), first


# --- servers


@contextmanager
def _peer(program: Path, gguf: Path) -> Iterator[str]:
    """Run llama-server; yield its address."""
    port = _free_port()
    arguments = ["--model", gguf, "--port", port, "--parallel", CLIENTS]
    arguments += ["--ctx-size", CLIENTS * CONTEXT, "--threads", _THREADS, "--no-kv-unified"]
    arguments += ["--flash-attn", "off", "--cache-type-k", "f32", "--cache-type-v", "f32"]
    arguments += ["--cache-ram", 0]  # otherwise it copies the state of each slot
    with _process([str(program), *map(str, arguments)]):
        url = f"http://127.0.0.1:{port}"
        _wait(f"{url}/health")
        yield url


@contextmanager
def _hq(model: str, bundle: Path, new_tokens: int) -> Iterator[str]:
    """Run `hq serve`; yield its address."""
    port = _free_port()
    with tempfile.TemporaryDirectory() as name:
        policy, folder = Path(name) / "policy.toml", Path(name)
        limits = f"[limits]\ncontext = {CONTEXT}\nnew_tokens = {new_tokens}\n"
        policy.write_text(limits, encoding="utf-8")
        arguments = ["serve", "--gguf", model, "--bundle", bundle, "--policy", policy]
        arguments += ["--audit", folder / "audit.jsonl", "--port", port]
        arguments += ["--parallel", CLIENTS, "--threads", _THREADS]
        command = [sys.executable, "-c", "from harness.cli import main; main()"]
        with _process([*command, *map(str, arguments)]):
            url = f"http://127.0.0.1:{port}"
            _wait(f"{url}/readyz")
            yield url


@contextmanager
def _process(command: Sequence[str]) -> Iterator[None]:
    """Run a command without its output until the context ends."""
    process = subprocess.Popen(  # noqa: S603 (programs of this bench)
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        yield
    finally:
        process.terminate()
        process.wait()


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def _wait(url: str) -> None:
    """Wait until a server is ready. Raises HQError if it is not within 5 minutes."""
    until = time.monotonic() + _START_SECONDS
    while time.monotonic() < until:
        try:
            with urllib.request.urlopen(url, timeout=5):  # noqa: S310 (a server of this bench)
                return
        except OSError:
            time.sleep(0.1)
    raise HQError(f"The server of {url} did not start within {_START_SECONDS} seconds.")
