"""Unknown paths, other methods, and other content types."""

import json

import pytest

from tests.harness.serve.conftest import ask

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"


@pytest.fixture(scope="module")
def http(served):
    with served.client() as client:
        yield client


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nowhere", 404),
        ("GET", "/v1/nothing", 404),
        ("POST", "/nowhere", 404),
        ("POST", "/v1/embeddings", 404),
        ("GET", CHAT, 405),
        ("OPTIONS", CHAT, 405),
        ("DELETE", TEXT, 405),
        ("TRACE", TEXT, 405),
        ("PUT", "/hq", 405),
        ("POST", "/v1/models", 405),
        ("DELETE", "/v1/models/tiny", 405),
        ("POST", "/healthz", 405),
        ("PATCH", "/metrics", 405),
        ("POST", "/", 405),
        ("DELETE", "/page.js", 405),
        ("PUT", "/openapi.json", 405),
    ],
)
def test_unknown_paths_and_methods(http, method, path, status):
    response = http.request(method, path)
    assert response.status_code == status
    message = response.json()["error"]["message"]
    assert path in message
    if status == 405:
        allowed = response.headers["allow"]
        assert allowed == ("POST" if path in (CHAT, TEXT) else allowed)
        assert method not in allowed
        assert "GET" in allowed or "POST" in allowed
        assert allowed in message


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/v1/models", CHAT])
def test_head_is_not_supported(http, path):
    response = http.head(path)
    assert (response.status_code, response.headers["allow"]) == (
        405,
        "POST" if path == CHAT else "GET",
    )


@pytest.mark.parametrize(
    ("headers", "words"),
    [
        ({}, "names no type"),
        ({"content-type": "text/plain"}, "not 'text/plain'"),
        ({"content-type": "application"}, "not 'application'"),
        ({"content-type": "application/json; charset=latin-1"}, "UTF-8, not 'latin-1'"),
        (
            {"content-type": "application/json", "content-encoding": "gzip"},
            "Content-Encoding: gzip",
        ),
    ],
)
@pytest.mark.parametrize("path", [CHAT, TEXT])
@pytest.mark.parametrize("body", [json.dumps(ask()).encode(), b"{", b""])
def test_a_body_of_another_content_type_returns_415(http, headers, words, path, body):
    response = http.post(path, content=body, headers=headers)
    assert response.status_code == 415, response.text
    error = response.json()["error"]
    assert error["code"] == "unsupported_media_type"
    assert words in error["message"]


@pytest.mark.parametrize(
    "kind",
    [
        "application/json",
        "Application/JSON",
        "application/json; charset=utf-8",
        'application/json;charset="UTF-8"',
    ],
)
def test_accepted_content_types(http, kind):
    headers = {"content-type": kind, "content-encoding": "identity"}
    response = http.post(CHAT, content=json.dumps(ask()), headers=headers)
    assert response.status_code == 200, response.text
