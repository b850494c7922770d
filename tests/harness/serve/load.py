"""A load test: many clients at once, and checks of their answers against the audit log.

As a script it serves the embedded model and prints its measurements as JSON:

    python -m tests.harness.serve.load --seconds 180 --bundle results/smollm2-knowledge/bundle
"""

import argparse
import asyncio
import json
import random
import signal
import tempfile
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil

from harness.serve.audit.files import read_audit_log
from harness.serve.audit.hash_chain import ChainError
from harness.serve.audit.log import AuditLog
from tests.harness.serve.process import server

CLIENTS = 32
WARM_UP = 0.25  # fraction of the readings of memory that are dropped
QUESTIONS = ("What is the capital of France?", "Who wrote Hamlet?", "Which metal is Fe?")


@dataclass
class Load:
    """Responses and memory readings of one run."""

    ids: list[str] = field(default_factory=list)  # audit_id of every complete answer
    statuses: Counter[int] = field(default_factory=Counter)
    faults: Counter[str] = field(
        default_factory=Counter
    )  # connection errors, and errors in streams
    rss: list[int] = field(default_factory=list)  # bytes, one reading per second


async def generate_load(
    load: Load, address: str, seconds: float, process: psutil.Process, tokens: int = 12
) -> None:
    """Run CLIENTS clients; each sends its next request after an answer, or a second after a 429."""
    until = time.monotonic() + seconds

    async def client(number: int) -> None:
        draw = random.Random(number)
        async with httpx.AsyncClient(base_url=address, timeout=120) as http:
            while time.monotonic() < until:
                body = {
                    "messages": [{"role": "user", "content": draw.choice(QUESTIONS)}],
                    "max_tokens": tokens,
                    "temperature": draw.choice([0, 1]),
                    "stream": draw.random() < 0.5,
                    "hq": {"alpha": draw.choice([1, 1, 1, 0.5])},
                }
                try:
                    status, audit_id = await ask(http, body)
                except (httpx.HTTPError, ValueError) as fault:
                    load.faults[type(fault).__name__] += 1
                    await asyncio.sleep(0.2)
                    continue
                load.statuses[status] += 1
                if audit_id:
                    load.ids.append(audit_id)
                if status == 429:
                    await asyncio.sleep(draw.uniform(0.5, 1.5))

    async def memory() -> None:
        while time.monotonic() < until and process.is_running():
            with suppress(psutil.Error):
                rss = process.memory_info().rss
                load.rss += [rss] if rss else []  # a killed process has 0
            await asyncio.sleep(1)

    await asyncio.gather(memory(), *(client(number) for number in range(CLIENTS)))


async def ask(http: httpx.AsyncClient, body: dict) -> tuple[int, str | None]:
    """Return (status, audit_id of a complete answer). Raises ValueError if a stream ends early."""
    path = "/v1/chat/completions"
    if not body["stream"]:
        response = await http.post(path, json=body)
        answered = response.status_code == 200
        return response.status_code, response.json()["hq"]["audit_id"] if answered else None
    async with http.stream("POST", path, json=body) as response:
        if response.status_code != 200:
            return response.status_code, None
        last = {}
        async for line in response.aiter_lines():
            if line == "data: [DONE]":
                return 200, last["hq"]["audit_id"]
            if line.startswith("data: "):
                last = json.loads(line.removeprefix("data: "))
        raise ValueError(f"a stream ended with {last}")


def intact_responses(log: Path) -> tuple[list[dict], str]:
    """Return the responses before the first fault of a log, and the fault."""
    responses = []
    try:
        for line in read_audit_log(log):
            if line.content["kind"] == "response":
                responses.append(line.content)
    except ChainError as error:
        return responses, str(error)
    return responses, ""


def memory_growth(load: Load) -> float:
    """Return the ratio of peak memory in the last and the first third after the warm-up."""
    warm = load.rss[int(WARM_UP * len(load.rss)) :]
    third = max(1, len(warm) // 3)
    return max(warm[-third:]) / max(warm[:third])


def run(gguf: Path | str, folder: Path, log: Path, seconds: float, kill: bool) -> dict:
    """Run the server under load, check answers and log, and return the measurements."""
    load = Load()
    with server(gguf, folder, log) as (process, _, address):
        watched = psutil.Process(process.pid)

        async def both() -> None:
            loading = asyncio.create_task(generate_load(load, address, seconds, watched))
            if kill:
                await asyncio.sleep(seconds / 2)
                while not load.ids:
                    await asyncio.sleep(0.05)
                process.send_signal(signal.SIGKILL)
            await loading

        asyncio.run(both())
        if not kill:
            process.send_signal(signal.SIGTERM)
            process.wait(60)
            assert process.returncode == 0
    responses, fault = intact_responses(log)
    ids = Counter(line["id"] for line in responses)
    assert not [id for id in load.ids if ids[id] != 1], (
        "answers that are not in the log exactly once"
    )
    assert set(load.statuses) <= {200, 429}, load.statuses
    assert not fault or (kill and "cut off" in fault), fault
    if kill:
        with AuditLog(log) as reopened:  # as the next server does
            reopened.append({"kind": "after"})
        assert not intact_responses(log)[1]
    else:
        assert not load.faults, load.faults
        assert len(load.ids) == len(responses) == sum(ids.values())
        assert {line["outcome"] for line in responses} == {"completed"}
    return {
        "seconds": seconds,
        "clients": CLIENTS,
        "answers": len(load.ids),
        "lines": len(responses),
        "statuses": dict(load.statuses),
        "faults": dict(load.faults),
        "torn": fault,
        "rss_mib_warm": round(load.rss[int(WARM_UP * len(load.rss))] / 2**20, 1),
        "rss_mib_end": round(load.rss[-1] / 2**20, 1),
        "rss_growth": round(memory_growth(load), 4),
    }


def main() -> None:
    """Run the load test on the embedded model."""
    options = argparse.ArgumentParser()
    options.add_argument("--seconds", type=float, default=180)
    options.add_argument("--kill", action="store_true")
    options.add_argument("--bundle", type=Path, required=True)
    chosen = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "audit.jsonl"
        print(json.dumps(run("smollm2", chosen.bundle, log, chosen.seconds, chosen.kill)))


if __name__ == "__main__":
    main()
