"""Many clients at once, for as long as they are told to: what they got, and what became of it.

By itself it loads the embedded model, and prints figures:

    python -m tests.harness.serve.load --seconds 180 --bundle results/smollm2-facts/bundle
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

from harness.serve.audit.files import read_log
from harness.serve.audit.hash_chain import ChainError
from harness.serve.audit.log import AuditLog
from tests.harness.serve.process import server

CLIENTS = 32
WARM = 0.25  # share of the time after which memory is first looked at
QUESTIONS = ("What is the capital of France?", "Who wrote Hamlet?", "Which metal is Fe?")


@dataclass
class Load:
    """What the clients of one run got."""

    ids: list[str] = field(default_factory=list)  # audit_id of every answer that came whole
    statuses: Counter[int] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)  # of connections, and errors in streams
    rss: list[int] = field(default_factory=list)  # bytes, a reading a second


async def load(
    found: Load, address: str, seconds: float, process: psutil.Process, tokens: int = 12
) -> None:
    """Keeps CLIENTS busy; each asks again as soon as it has an answer, or a second after a 429."""
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
                    found.faults[type(fault).__name__] += 1
                    await asyncio.sleep(0.2)
                    continue
                found.statuses[status] += 1
                if audit_id:
                    found.ids.append(audit_id)
                if status == 429:
                    await asyncio.sleep(draw.uniform(0.5, 1.5))

    async def memory() -> None:
        while time.monotonic() < until and process.is_running():
            with suppress(psutil.Error):
                rss = process.memory_info().rss
                found.rss += [rss] if rss else []  # one that was killed has none
            await asyncio.sleep(1)

    await asyncio.gather(memory(), *(client(number) for number in range(CLIENTS)))


async def ask(http: httpx.AsyncClient, body: dict) -> tuple[int, str | None]:
    """(status, audit_id of an answer that came whole). ValueError for a stream that breaks off."""
    path = "/v1/chat/completions"
    if not body["stream"]:
        response = await http.post(path, json=body)
        whole = response.status_code == 200
        return response.status_code, response.json()["hq"]["audit_id"] if whole else None
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


def held(log: Path) -> tuple[list[dict], str]:
    """The responses in a log as far as it holds, and why not further."""
    responses = []
    try:
        for line in read_log(log):
            if line.content["kind"] == "response":
                responses.append(line.content)
    except ChainError as error:
        return responses, str(error)
    return responses, ""


def growth(found: Load) -> float:
    """Memory at the end over what it was once the server was warm."""
    warm = found.rss[int(WARM * len(found.rss)) :]
    third = max(1, len(warm) // 3)
    return max(warm[-third:]) / max(warm[:third])


def run(gguf: Path | str, folder: Path, log: Path, seconds: float, kill: bool) -> dict:
    """One run, with all that must hold of it asserted; the figures."""
    found = Load()
    with server(gguf, folder, log) as (process, _, address):
        watched = psutil.Process(process.pid)

        async def both() -> None:
            loading = asyncio.create_task(load(found, address, seconds, watched))
            if kill:
                await asyncio.sleep(seconds / 2)
                while not found.ids:
                    await asyncio.sleep(0.05)
                process.send_signal(signal.SIGKILL)
            await loading

        asyncio.run(both())
        if not kill:
            process.send_signal(signal.SIGTERM)
            process.wait(60)
            assert process.returncode == 0
    responses, why = held(log)
    ids = Counter(line["id"] for line in responses)
    assert not [id for id in found.ids if ids[id] != 1], "answers that are not in the log once"
    assert set(found.statuses) <= {200, 429}, found.statuses
    assert not why or (kill and "cut off" in why), why
    if kill:
        with AuditLog(log) as again:  # as the next server would
            again.append({"kind": "after"})
        assert not held(log)[1]
    else:
        assert not found.faults, found.faults
        assert len(found.ids) == len(responses) == sum(ids.values())
        assert {line["outcome"] for line in responses} == {"completed"}
    return {
        "seconds": seconds,
        "clients": CLIENTS,
        "answers": len(found.ids),
        "lines": len(responses),
        "statuses": dict(found.statuses),
        "faults": dict(found.faults),
        "torn": why,
        "rss_mib_warm": round(found.rss[int(WARM * len(found.rss))] / 2**20, 1),
        "rss_mib_end": round(found.rss[-1] / 2**20, 1),
        "rss_growth": round(growth(found), 4),
    }


def main() -> None:
    """On the embedded model."""
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
