"""`hq serve` in a subprocess: output, shutdown, kill, and invalid input."""

import json
import shlex
import signal
import subprocess
import sys
from dataclasses import replace

import httpx
import pytest

from harness.serve.audit.files import read_audit_log
from harness.serve.audit.log import AuditLog
from harness.serve.generation.model import ServedModel
from hq.monitor.bundle import Bundle
from tests.harness.serve.conftest import ask
from tests.harness.serve.process import server


def contents(log):
    return [line.content for line in read_audit_log(log)]


def test_a_bundle_is_served_with_its_attention(gguf_file, bundle_folder):
    bundle = Bundle.load(bundle_folder)
    flash = replace(bundle, facts=replace(bundle.facts, precision="gguf-f32+fa"))
    with ServedModel(gguf_file, flash, context_tokens=256) as model:
        assert model.compute == "float32, flash attention, K f16, V f16"


def test_output_and_shutdown(gguf_file, bundle_folder, tmp_path):
    log = tmp_path / "audit.jsonl"
    with server(gguf_file, bundle_folder, log) as (process, printed, _):
        for words in ("tiny, 2 H-Neurons, prompt form chat, float32", "bundle   tiny", str(log)):
            assert words in printed
        assert "policy   all annotate" in printed
        line = printed.strip().splitlines()[-1]
        completed = subprocess.run([*shlex.split(line), "-sS"], capture_output=True, check=True)
        assert json.loads(completed.stdout)["hq"]["decision"] == "pass"
        process.send_signal(signal.SIGTERM)
        process.wait(60)
        assert process.returncode == 0, process.stderr.read()
        assert "Ended." in process.stderr.read()
    assert [line["kind"] for line in contents(log)] == ["start", "response", "stop"]


@pytest.mark.slow
def test_ctrl_c_exits_0(gguf_file, bundle_folder, tmp_path):
    with server(gguf_file, bundle_folder, tmp_path / "a") as (process, _, _):
        process.send_signal(signal.SIGINT)
        process.wait(60)
        errors = process.stderr.read()
        assert process.returncode == 0, errors
        assert "Traceback" not in errors


@pytest.mark.slow
def test_a_kill_loses_no_line_of_a_completed_answer(gguf_file, bundle_folder, tmp_path):
    log = tmp_path / "audit.jsonl"
    with server(gguf_file, bundle_folder, log) as (process, _, address):
        ids = [
            httpx.post(f"{address}/v1/chat/completions", json=ask()).json()["hq"]["audit_id"]
            for _ in range(5)
        ]
        with httpx.stream(
            "POST", f"{address}/v1/chat/completions", json=ask(stream=True, max_tokens=400)
        ) as response:
            for number, _ in enumerate(response.iter_lines()):
                if number == 20:
                    process.send_signal(signal.SIGKILL)
                    break
        process.wait(60)
    lines = contents(log)
    assert [line["id"] for line in lines if line["kind"] == "response"][:5] == ids
    with open(log, "ab") as file:
        file.write(b'{"seq":6,"previous":"')  # as after a power failure
    with AuditLog(log) as reopened:
        reopened.append({"kind": "after"})
    assert [line["kind"] for line in contents(log)][len(lines) :] == ["recovery", "after"]


def error_of(hq, gguf_file, bundle_folder, *options, **changed):
    named = {"gguf": gguf_file, "bundle": bundle_folder} | changed
    arguments = [part for name, value in named.items() for part in (f"--{name}", value)]
    outcome = hq("serve", *arguments, *options)
    assert outcome.code == 2, outcome
    assert outcome.out.strip() == ""
    assert len(outcome.err.strip().splitlines()) == 1, outcome.err
    return outcome.err


@pytest.mark.parametrize(
    ("options", "changed", "words"),
    [
        ((), {"gguf": "none.gguf"}, "none.gguf"),
        ((), {"gguf": "other"}, "is not a GGUF file"),
        ((), {"bundle": "none"}, "The bundle none cannot be read"),
        ((), {"policy": "none.toml"}, "The policy none.toml cannot be read"),
        ((), {"host": "0.0.0.0"}, "can be reached from other machines"),
        ((), {"host": "no.such.host.invalid"}, "can be reached from other machines"),
        ((), {"host": "127.0.0.999"}, "127.0.0.999"),
        (("--api-key-file", "none"), {}, "The API keys in none cannot be read"),
    ],
)
def test_bad_input_is_one_sentence(hq, gguf_file, bundle_folder, options, changed, words):
    assert words in error_of(hq, gguf_file, bundle_folder, *options, **changed)


def test_invalid_files(hq, gguf_file, bundle_folder, tmp_path):
    policy, keys = tmp_path / "policy.toml", tmp_path / "keys"
    keys.write_text("\n \n", encoding="utf-8")
    assert "contains no API key" in error_of(
        hq, gguf_file, bundle_folder, "--api-key-file", keys, "--port", 0
    )
    policy.write_text('[domains.medicine]\naction = "block"\n', encoding="utf-8")
    assert "'medicine'" in error_of(hq, gguf_file, bundle_folder, policy=policy)
    policy.write_text('form = "chart"\n', encoding="utf-8")
    error = error_of(hq, gguf_file, bundle_folder, "--port", 0, policy=policy)
    assert "did you mean 'chat'" in error


def test_a_bundle_of_another_file(hq, gguf, bundle_folder):
    error = error_of(hq, gguf("llama"), bundle_folder, "--port", 0)
    assert "The bundle tiny" in error


def test_a_port_in_use(hq, gguf_file, bundle_folder, served):
    port = served.url.rsplit(":", 1)[1]
    error = error_of(hq, gguf_file, bundle_folder, "--port", port)
    assert f"Port {port} of 127.0.0.1 is not available" in error


def test_a_log_in_use(hq, gguf_file, bundle_folder, served):
    error = error_of(hq, gguf_file, bundle_folder, "--port", 0, "--audit", served.log)
    assert "Another server writes the audit log" in error


def test_a_missing_extra(hq, gguf_file, bundle_folder, monkeypatch):
    monkeypatch.setattr("harness.cli.serve.find_spec", lambda name: None)
    assert "pip install 'hq[serve]'" in error_of(hq, gguf_file, bundle_folder)


def test_the_server_is_imported_lazily():
    code = "import sys, harness.cli; print([m for m in ('fastapi', 'uvicorn') if m in sys.modules])"
    completed = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, encoding="utf-8"
    )
    assert completed.stdout.strip() == "[]"
