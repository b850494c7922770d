"""Responses, errors, keys, metrics, records and page files of the server."""

import json

import pytest
from prometheus_client.parser import text_string_to_metric_families

from harness.models.gguf_tokenizer import GGUFTokenizer
from harness.serve.api.errors import APIError
from harness.serve.web import app
from harness.serve.web.access import APIKeys, is_local
from hq.monitor.bundle import Bundle
from tests.harness.serve.conftest import ALWAYS, NEVER, ask, close_to

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"


@pytest.fixture(scope="module")
def http(served):
    with served.client() as client:
        yield client


def events(response):
    """Return the objects of a stream, without its end and comments."""
    lines = [line for line in response.text.split("\n") if line.startswith("data: {")]
    return [json.loads(line.removeprefix("data: ")) for line in lines]


def test_server_information(http, bundle_folder):
    about = http.get("/hq").json()
    bundle = Bundle.load(bundle_folder)
    assert about["model"] == "tiny"
    assert about["bundle"] == {"name": "tiny", "digest": bundle.digest, "precision": "gguf-source"}
    assert about["domains"]["all"] == {
        "threshold": NEVER,
        "false_alarms": 0.1,
        "n": 40,
        "action": "annotate",
        "alpha": None,
        "message": None,
    }
    assert about["domains"]["doubted"]["message"] == "No."
    assert about["domains"]["again"]["alpha"] == 0.0
    assert about["alpha"] == {"least": 0.0, "most": 2.0}
    assert about["neurons"] == {"read": 3, "scaled": 2}


def test_health_and_models(http):
    assert http.get("/healthz").json() == http.get("/readyz").json() == {"status": "ok"}
    assert [model["id"] for model in http.get("/v1/models").json()["data"]] == ["tiny"]


def test_a_blocked_answer_never_leaves_the_server(http, served):
    unblocked = http.post(CHAT, json=ask()).json()["choices"][0]["message"]["content"]
    extension = {"hq": {"domain": "doubted"}}
    complete = http.post(CHAT, json=ask(**extension))
    choice = complete.json()["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("No.", "content_filter")
    assert complete.json()["hq"]["tokens"] == []
    assert complete.json()["hq"]["score"] >= ALWAYS
    assert unblocked not in complete.text
    streamed = http.post(CHAT, json=ask(stream=True, **extension))
    _, message, last = events(streamed)
    assert message["choices"][0]["delta"] == {"content": "No."}
    assert "hq" not in message
    assert (last["hq"]["decision"], last["hq"]["verdict"]) == ("block", "hallucination")
    assert last["choices"][0]["finish_reason"] == "content_filter"


def test_regenerate_keeps_the_answer_with_the_lower_score(http, served):
    # The two scores equal those of separate requests with each alpha.
    scores = {
        alpha: http.post(CHAT, json=ask(hq={"alpha": alpha, "domain": "noted"})).json()["hq"]
        for alpha in (0.0, 1.0)
    }
    completion = http.post(CHAT, json=ask(hq={"domain": "again"})).json()["hq"]
    better = min((1.0, 0.0), key=lambda alpha: scores[alpha]["score"])
    assert completion["alpha"] == better
    assert completion["score"] == close_to(scores[better]["score"])
    assert (completion["decision"], completion["regenerated"]) == ("regenerate", better == 0.0)
    line = served.line(completion["audit_id"])
    assert line["alphas"] == [1.0, 0.0]
    assert line["tokens_written"] == 16
    streamed = events(http.post(CHAT, json=ask(stream=True, hq={"domain": "again"})))
    assert streamed[-1]["hq"]["score"] == close_to(completion["score"])


def test_scores_come_from_the_unscaled_model(http, gguf_file, bundle_folder):
    """Scores equal those of a monitor without scaling that reads the same tokens."""
    from hq.backends.llamacpp.backend import LlamaBackend
    from hq.monitor import LlamaMonitor

    body = {"prompt": "the model is", "max_tokens": 32, "stream": True}
    readings = {
        alpha: [e["hq"] for e in events(http.post(TEXT, json=body | {"hq": {"alpha": alpha}}))[:-1]]
        for alpha in (0.0, 1.0, 2.0)
    }
    ids = {alpha: [r["token"] for r in values] for alpha, values in readings.items()}
    assert ids[0.0] != ids[2.0]
    neurons = Bundle.load(bundle_folder).neurons
    with LlamaBackend(gguf_file) as backend, LlamaMonitor(backend, neurons) as monitor:
        prompt = backend.model.tokenize(body["prompt"])
        for alpha, values in readings.items():
            steps = list(monitor.follow(prompt, ids[alpha]))
            assert [r["score"] for r in values] == pytest.approx([s.score for s in steps], rel=1e-4)
            contributions = sum(part for *_, part in values[0]["neurons"]) + neurons.intercept
            assert contributions == pytest.approx(values[0]["token_score"])


def test_equal_seeds_repeat_an_answer(http):
    def sampled(**options):
        completion = http.post(TEXT, json={"prompt": "the", "max_tokens": 16, **options}).json()
        return completion["choices"][0]["text"], completion["hq"]["audit_id"]

    hot = {"temperature": 1.5}
    texts = {seed: sampled(seed=seed, **hot)[0] for seed in range(4)}
    assert len(set(texts.values())) > 1
    assert sampled(seed=2, **hot)[0] == texts[2]
    assert sampled()[0] == sampled(temperature=0)[0] == sampled(seed=5, top_p=1e-6, **hot)[0]


def test_a_random_seed_is_recorded_and_repeats_the_answer(http, served):
    asked = {"prompt": "the", "max_tokens": 16, "temperature": 1.5}
    completion = http.post(TEXT, json=asked).json()
    seed = served.line(completion["hq"]["audit_id"])["seed"]
    again = http.post(TEXT, json=asked | {"seed": seed}).json()
    assert again["choices"][0]["text"] == completion["choices"][0]["text"]


def test_a_stop_string_ends_an_answer_and_is_not_in_it(http):
    text = http.post(TEXT, json={"prompt": "the", "max_tokens": 16}).json()["choices"][0]["text"]
    stop = text[4:7]
    for asked in (stop, [stop, "never there"]):
        body = {"prompt": "the", "max_tokens": 16, "stop": asked}
        completion = http.post(TEXT, json=body).json()
        assert completion["choices"][0]["text"] == text[: text.index(stop)]
        assert completion["choices"][0]["finish_reason"] == "stop"
        streamed = events(http.post(TEXT, json=body | {"stream": True}))
        assert "".join(e["choices"][0]["text"] for e in streamed) == text[: text.index(stop)]


def test_metrics(http, served):
    http.post(CHAT, json=ask(hq={"domain": "doubted"}))
    http.get("/nowhere/at/all")
    values = {
        sample.name + json.dumps(sample.labels, sort_keys=True): sample.value
        for family in text_string_to_metric_families(http.get("/metrics").text)
        for sample in family.samples
    }
    labels = {"decision": "block", "domain": "doubted", "outcome": "completed"}
    assert values["hq_responses_total" + json.dumps(labels)] >= 1
    counted = sum(value for name, value in values.items() if name.startswith("hq_responses_total"))
    assert counted == len(served.lines())
    assert values["hq_queue_length{}"] == values["hq_busy{}"] == 0
    assert not any("nowhere" in name for name in values)


@pytest.mark.parametrize(
    ("body", "param", "code"),
    [
        (ask(temperature=-1), "temperature", "invalid_value"),
        (ask(temperature="hot"), "temperature", "invalid_value"),
        (ask(stop=[""]), "stop", "invalid_value"),
        (ask(max_tokens=0), "max_tokens", "invalid_value"),
        (ask(max_tokens=10**6), "max_tokens", "max_tokens_not_allowed"),
        (ask(max_tokens=True), "max_tokens", "invalid_value"),
        (ask(messages=[]), "messages", "invalid_value"),
        (ask(messages=[{"role": "judge", "content": "x"}]), "messages.0.role", "invalid_value"),
        (
            ask(messages=[{"role": "user", "content": [{"type": "image_url"}]}]),
            "messages.0.content.0",
            "unsupported_parameter",
        ),
        (ask(hq={"alpha": 2.5}), "hq.alpha", "alpha_not_allowed"),
        (ask(hq={"alpha": -1}), "hq.alpha", "invalid_value"),
        (ask(hq={"beta": 1}), "hq.beta", "unsupported_parameter"),
        (ask(**{"a b": 1}), "a b", "unsupported_parameter"),
        (ask(hq={"domain": "none"}), "hq.domain", "unknown_domain"),
        (ask("x" * 100_000), None, "context_length_exceeded"),
        (ask("x y" * 2000), None, "context_length_exceeded"),
        ([], None, "invalid_value"),
    ],
)
def test_an_invalid_request_names_the_field(http, body, param, code):
    response = http.post(CHAT, json=body)
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert (error["code"], error["param"]) == (code, param), error
    assert error["message"].endswith(".")


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"null",
        b"\xff\xfe",
        b'{"messages": [{"role": "user", "content": "\\ud800"}]}',
        b'{"messages": [{"role": "user", "content": "x"}], "\\ud800": 1}',
        b'{"messages": [{"role": "user", "content": "x"}], "model": "\\udfff"}',
        b'{"messages": [{"role": "user", "content": "x"}], "temperature": NaN}',
        b'{"messages": [{"role": "user", "content": "x"}], "hq": {"alpha": Infinity}}',
        b'{"messages": [{"role": "user", "content": "x"}], "seed": 1' + b"0" * 5000 + b"}",
        b'{"messages": ' + b"[" * 50_000 + b"]" * 50_000 + b"}",
        b'{"messages": [{"role": "user", "content": "x"}], "temperature": 1e999}',
    ],
)
def test_an_invalid_body_returns_400(http, raw):
    response = http.post(CHAT, content=raw, headers={"content-type": "application/json"})
    assert response.status_code == 400, response.text
    assert response.json()["error"]["message"]


def test_an_empty_prompt_returns_400(http):
    assert http.post(TEXT, json={"prompt": ""}).json()["error"]["param"] == "prompt"


def test_a_body_past_the_limit_returns_413(http):
    def drip():
        for _ in range(100):
            yield b" " * 10_000

    for content in (b" " * 1_000_000, drip()):
        response = http.post(CHAT, content=content, headers={"content-type": "application/json"})
        assert response.status_code == 413, response.text
        assert response.json()["error"]["message"]


def test_unknown_host_names_are_rejected(http):
    for name in ("evil.example", "evil.example:8000", "", "127.0.0.1.evil.example", "[::1"):
        assert http.get("/hq", headers={"host": name}).status_code in (400, 403), name
    for name in ("localhost", "localhost:1", "127.0.0.1", "[::1]:8000"):
        assert http.get("/hq", headers={"host": name}).status_code == 200, name


def test_keys_are_required_where_they_should_be(start):
    server = start(keys=("one", "two"))
    with server.client() as http:
        for path in ("/v1/models", "/hq", "/metrics"):
            assert http.get(path).status_code == 401, path
        assert http.get("/healthz").status_code == 200
        rejected = http.post(CHAT, json=ask())
        assert rejected.status_code == 401
        assert rejected.json()["error"]["code"] == "invalid_api_key"
        for wrong in ("Bearer three", "Bearer", "Basic one", "one", "Bearer onetwo"):
            assert http.get("/hq", headers={"authorization": wrong}).status_code == 401, wrong
        ids = [
            http.post(CHAT, json=ask(), headers={"authorization": f"Bearer {key}"}).json()["hq"]
            for key in ("one", "two")
        ]
    clients = [server.line(hq["audit_id"])["client"] for hq in ids]
    assert len(set(clients)) == 2
    assert all(len(client) == 8 for client in clients)
    assert "one" not in server.log.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{{ raise_exception('odd roles') }}", "odd roles"),
        ("{{ 1 + messages[0].content }}", "unsupported operand"),
        ("{{ messages.__class__.__mro__ }}", "unsafe"),
        ("{% for", "rendered"),
    ],
)
def test_an_error_in_the_chat_template_returns_400(start, monkeypatch, template, words):
    server = start()
    monkeypatch.setattr(GGUFTokenizer, "chat_template", template)
    with server.client() as http:
        rejected = http.post(CHAT, json=ask())
        assert rejected.status_code == 400
        message = rejected.json()["error"]["message"]
        assert words in message
        assert "/" not in message  # no path of the server


def test_an_unexpected_error_has_openais_format(start, monkeypatch):
    server = start()

    def plain(*_):
        raise ZeroDivisionError

    monkeypatch.setattr(GGUFTokenizer, "__call__", plain)
    with server.client() as http:
        for _ in range(2):
            failed = http.post(CHAT, json=ask())
            assert failed.status_code == 500
            assert failed.json()["error"]["code"] == "failed"


def test_keys_are_loaded_from_a_file_or_the_environment(tmp_path, monkeypatch):
    path = tmp_path / "keys"
    path.write_text("one\n\n two \n", encoding="utf-8")
    keys = APIKeys.load(path)
    assert keys.client_id("Bearer one") != keys.client_id("bearer two")
    monkeypatch.setenv("HQ_API_KEY", "three")
    keys = APIKeys.load(None)
    assert keys.client_id("Bearer three")
    with pytest.raises(APIError):
        keys.client_id("Bearer one")
    monkeypatch.delenv("HQ_API_KEY")
    assert not APIKeys.load(None)
    assert APIKeys.load(None).client_id(None) == ""


@pytest.mark.parametrize(
    ("host", "local"),
    [
        ("127.0.0.1", True),
        ("127.1.2.3", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("10.0.0.1", False),
        ("localhost.example", False),
    ],
)
def test_local_hosts(host, local):
    assert is_local(host) == local


@pytest.mark.parametrize("record", ["hash", "text", "none"])
def test_the_policy_chooses_how_texts_are_recorded(start, record):
    server = start(policy={"record": record})
    with server.client() as http:
        completion = http.post(CHAT, json=ask("the secret", user="somebody")).json()
    line = server.line(completion["hq"]["audit_id"])
    answer = completion["choices"][0]["message"]["content"]
    texts = {key for key in line if key.startswith(("prompt", "answer")) and key != "prompt_tokens"}
    if record == "text":
        assert line["prompt"] == [{"role": "user", "content": "the secret"}]
        assert line["answer"] == answer
    else:
        assert "the secret" not in server.log.read_text(encoding="utf-8")
        assert texts == ({"prompt_sha256", "answer_sha256"} if record == "hash" else set())
    assert line["user"] == "somebody"
    assert line["neurons"]
    start_line = server.lines("start")[0]
    assert {k: line[k] for k in ("model", "bundle", "policy", "hq")} == {
        k: start_line[k] for k in ("model", "bundle", "policy", "hq")
    }


def test_the_page_is_served_with_a_content_security_policy(start, tmp_path, monkeypatch):
    folder = tmp_path / "page"
    folder.mkdir()
    (folder / "index.html").write_text("<!doctype html><title>hq</title>", encoding="utf-8")
    (folder / "app.js").write_text("1", encoding="utf-8")
    (tmp_path / "secret").write_text("no", encoding="utf-8")
    monkeypatch.setattr(app, "PAGE_FOLDER", folder)
    with start().client() as http:
        page = http.get("/")
        assert "<title>hq" in page.text
        policy = page.headers["content-security-policy"]
        assert policy.startswith("default-src 'self'")
        assert "unsafe" not in policy
        assert http.get("/app.js").headers["content-type"].startswith("text/javascript")
        for path in ("/../secret", "/%2e%2e/secret", "/..%2fsecret", "//etc/passwd", "/none.html"):
            response = http.get(path)
            assert response.status_code == 404, path
            assert response.json()["error"]
        assert http.get("/hq").status_code == 200
