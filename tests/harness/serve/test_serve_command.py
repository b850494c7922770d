"""`hq serve` as people run it: a process of its own, ended and killed."""

import json
import shlex
import signal
import subprocess
import sys

import httpx
import pytest

from harness.serve.audit import AuditLog
from harness.serve.trail import trail
from tests.harness.serve.conftest import ask
from tests.harness.serve.process import server


def contents(log):
    return [line.content for line in trail(log)]


def test_it_says_what_it_serves_and_ends_when_told(gguf_file, bundle_folder, tmp_path):
    log = tmp_path / "audit.jsonl"
    with server(gguf_file, bundle_folder, log) as (process, printed, _):
        for words in ("tiny, 2 H-Neurons, prompt form chat", "bundle   tiny", str(log)):
            assert words in printed
        assert "policy   all annotate" in printed
        line = printed.strip().splitlines()[-1]
        made = subprocess.run([*shlex.split(line), "-sS"], capture_output=True, check=True)
        assert json.loads(made.stdout)["hq"]["decision"] == "pass"
        process.send_signal(signal.SIGTERM)
        process.wait(60)
        assert process.returncode == 0, process.stderr.read()
        assert "Ended." in process.stderr.read()
    assert [line["kind"] for line in contents(log)] == ["start", "response", "stop"]


@pytest.mark.slow
def test_ctrl_c_is_no_error(gguf_file, bundle_folder, tmp_path):
    with server(gguf_file, bundle_folder, tmp_path / "a") as (process, _, _):
        process.send_signal(signal.SIGINT)
        process.wait(60)
        said = process.stderr.read()
        assert process.returncode == 0, said
        assert "Traceback" not in said


@pytest.mark.slow
def test_a_kill_costs_no_line_that_a_client_was_given(gguf_file, bundle_folder, tmp_path):
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
    found = contents(log)
    assert [line["id"] for line in found if line["kind"] == "response"][:5] == ids
    with open(log, "ab") as file:
        file.write(b'{"seq":6,"previous":"')  # what a power cut leaves
    with AuditLog(log) as again:
        again.append({"kind": "after"})
    assert [line["kind"] for line in contents(log)][len(found) :] == ["recovery", "after"]


def refused(hq, gguf_file, bundle_folder, *options, **changed):
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
    assert words in refused(hq, gguf_file, bundle_folder, *options, **changed)


def test_files_that_say_what_cannot_be(hq, gguf_file, bundle_folder, tmp_path):
    policy, keys = tmp_path / "policy.toml", tmp_path / "keys"
    keys.write_text("\n \n", encoding="utf-8")
    assert "holds no API key" in refused(
        hq, gguf_file, bundle_folder, "--api-key-file", keys, "--port", 0
    )
    policy.write_text('[domains.medicine]\naction = "block"\n', encoding="utf-8")
    assert "'medicine'" in refused(hq, gguf_file, bundle_folder, policy=policy)
    policy.write_text('form = "chart"\n', encoding="utf-8")
    said = refused(hq, gguf_file, bundle_folder, "--port", 0, policy=policy)
    assert "did you mean 'chat'" in said


def test_a_bundle_of_another_file_is_refused(hq, gguf, bundle_folder):
    said = refused(hq, gguf("llama"), bundle_folder, "--port", 0)
    assert "The bundle tiny" in said


def test_a_port_that_is_taken(hq, gguf_file, bundle_folder, served):
    port = served.url.rsplit(":", 1)[1]
    said = refused(hq, gguf_file, bundle_folder, "--port", port)
    assert f"Port {port} of 127.0.0.1 cannot be had" in said


def test_a_log_that_is_in_use(hq, gguf_file, bundle_folder, served):
    said = refused(hq, gguf_file, bundle_folder, "--port", 0, "--audit", served.log)
    assert "Another server writes the audit log" in said


def test_a_missing_extra_is_a_sentence(hq, gguf_file, bundle_folder, monkeypatch):
    monkeypatch.setattr("harness.cli.serve.find_spec", lambda name: None)
    assert "pip install 'hq[serve]'" in refused(hq, gguf_file, bundle_folder)


def test_nothing_of_the_server_is_imported_without_it():
    code = "import sys, harness.cli; print([m for m in ('fastapi', 'uvicorn') if m in sys.modules])"
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, encoding="utf-8"
    )
    assert found.stdout.strip() == "[]"
