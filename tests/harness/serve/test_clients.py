"""Bodies and headers as popular clients send them: each is answered, or its field is named."""

import json

import pytest

from tests.harness.serve.bodies import CHAT, TEXT, USER
from tests.harness.serve.bodies_applications import APPLICATIONS
from tests.harness.serve.bodies_libraries import LIBRARIES
from tests.harness.serve.conftest import running


@pytest.fixture(scope="module")
def http(gguf_file, bundle_folder, tmp_path_factory):
    """A client of a server with the default policy."""
    log = tmp_path_factory.mktemp("clients") / "audit.jsonl"
    with running(gguf_file, bundle_folder, log) as server, server.client() as client:
        yield client


@pytest.mark.parametrize("sent", LIBRARIES + APPLICATIONS, ids=lambda sent: sent.client)
def test_a_client_is_answered_or_gets_the_unsupported_field(http, sent):
    limit = {} if {"max_tokens", "max_completion_tokens"} & set(sent.body) else {"max_tokens": 8}
    content = json.dumps(sent.body | limit)
    headers = {"Content-Type": "application/json"} | sent.headers
    response = http.post(sent.path, content=content, headers=headers)
    if sent.unsupported:
        assert response.status_code == 400, response.text
        error = response.json()["error"]
        assert error["param"] == sent.unsupported
        assert error["message"].endswith(".")
        return
    assert response.status_code == 200, response.text
    if sent.body.get("stream"):
        *events, end = [line for line in response.text.split("\n") if line.startswith("data: ")]
        assert end == "data: [DONE]"
        chunks = [json.loads(event.removeprefix("data: ")) for event in events]
        last = next(chunk for chunk in reversed(chunks) if "hq" in chunk)
    else:
        last = response.json()
    assert last["hq"]["ignored"] == list(sent.ignored)
    assert last["hq"]["decision"] == "pass"


def test_a_continued_message_is_not_repeated(http):
    body = {"messages": [USER, {"role": "assistant", "content": "It is"}], "max_tokens": 6}
    continued, new = (
        http.post(CHAT, json=body | o).json() for o in ({}, {"continue_final_message": False})
    )
    prompt = "<s>user: What is the capital of France?</s><s>assistant: It is"
    same = http.post(TEXT, json={"prompt": prompt, "max_tokens": 6}).json()
    assert continued["choices"][0]["message"]["content"] == same["choices"][0]["text"]
    assert continued["usage"] == same["usage"]
    assert new["usage"]["prompt_tokens"] > continued["usage"]["prompt_tokens"]
