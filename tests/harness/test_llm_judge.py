"""The LLM judge against a real local HTTP server: verdicts, retries, cache, errors."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.endpoints.client import ATTEMPTS
from harness.judges.base import Question, Verdict
from harness.judges.llm import LLMJudge
from harness.judges.registry import make_judge
from hq.errors import HQError
from tests.harness.judge_endpoint import Endpoint

QUESTION = Question("q", "What is the capital of France?", ("Paris",), "capital", ())


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    server = Endpoint()
    yield server
    server.close()


def _judge(endpoint: Endpoint, waits: list[float] | None = None, **options: Any) -> LLMJudge:
    slept: list[float] = [] if waits is None else waits
    return LLMJudge(endpoint.url, "m", sleep=slept.append, **options)


@pytest.mark.parametrize(
    ("reply", "verdict"),
    [
        ("RIGHT", Verdict.RIGHT),
        ("Wrong.", Verdict.WRONG),
        ("**UNCERTAIN**", Verdict.UNCERTAIN),
    ],
)
def test_the_models_word_is_the_verdict(endpoint: Endpoint, reply: str, verdict: Verdict) -> None:
    endpoint.script = [(200, reply)]
    with _judge(endpoint, key="secret") as llm:
        assert llm.judge("It is Paris", QUESTION, truncated=False) is verdict
    (request,) = endpoint.requests
    assert request["path"] == "/v1/chat/completions"
    assert request["key"] == "Bearer secret"
    assert request["body"]["model"] == "m"
    assert request["body"]["temperature"] == 0
    prompt = request["body"]["messages"][0]["content"]
    assert QUESTION.question in prompt
    assert "Accepted answers: Paris" in prompt
    assert '"It is Paris"' in prompt


def test_a_truncated_response_that_is_not_right_is_cut(endpoint: Endpoint) -> None:
    endpoint.script = [(200, "WRONG"), (200, "RIGHT")]
    with _judge(endpoint) as llm:
        assert llm.judge("The capital is", QUESTION, truncated=True) is Verdict.CUT
        assert llm.judge("The capital is Paris, and", QUESTION, truncated=True) is Verdict.RIGHT


def test_an_empty_response_is_not_sent(endpoint: Endpoint) -> None:
    with _judge(endpoint) as llm:
        assert llm.judge(" \n", QUESTION, truncated=False) is Verdict.UNCERTAIN
    assert endpoint.requests == []


def test_overload_is_retried_after_a_growing_wait(endpoint: Endpoint) -> None:
    endpoint.script = [(429, ""), (503, ""), (200, "RIGHT")]
    waits: list[float] = []
    with _judge(endpoint, waits) as llm:
        assert llm.judge("Paris", QUESTION, truncated=False) is Verdict.RIGHT
    assert len(endpoint.requests) == 3
    assert waits == [1.0, 2.0]


def test_retry_after_is_respected(endpoint: Endpoint) -> None:
    endpoint.script, endpoint.headers = [(429, ""), (200, "RIGHT")], {"Retry-After": "7"}
    waits: list[float] = []
    with _judge(endpoint, waits) as llm:
        llm.judge("Paris", QUESTION, truncated=False)
    assert waits == [7.0]


def test_a_server_that_never_recovers_is_an_error(endpoint: Endpoint) -> None:
    endpoint.script = [(500, "")]
    with (
        _judge(endpoint) as llm,
        pytest.raises(HQError, match=r"gave no answer \(HTTP 500\).*judge 'rules'"),
    ):
        llm.judge("Paris", QUESTION, truncated=False)
    assert len(endpoint.requests) == ATTEMPTS


def test_a_rejected_request_is_not_retried(endpoint: Endpoint) -> None:
    endpoint.script = [(401, "")]
    with _judge(endpoint) as llm, pytest.raises(HQError, match=r"HTTP 401.*HQ_JUDGE_KEY"):
        llm.judge("Paris", QUESTION, truncated=False)
    assert len(endpoint.requests) == 1


def test_no_server_is_an_error() -> None:
    waits: list[float] = []
    with (
        LLMJudge("http://127.0.0.1:9/v1", "m", sleep=waits.append) as llm,
        pytest.raises(HQError, match="ConnectError"),
    ):
        llm.judge("Paris", QUESTION, truncated=False)
    assert len(waits) == ATTEMPTS - 1


@pytest.mark.parametrize(
    "reply",
    ["perhaps", "The response is not right.", "INCORRECT", "right or wrong", "", "WRONG?!?no"],
)
def test_an_unclear_reply_is_asked_for_again_and_then_set_aside(
    endpoint: Endpoint, tmp_path: Path, reply: str
) -> None:
    endpoint.script = [(200, reply)]
    with _judge(endpoint, cache=tmp_path / "judge.jsonl") as llm:
        assert llm.judge("Paris", QUESTION, truncated=False) is Verdict.UNCERTAIN
        assert llm.judge("Paris", QUESTION, truncated=False) is Verdict.UNCERTAIN
        assert llm.unclear == 1
    first, second = (request["body"]["messages"] for request in endpoint.requests)
    assert second[:2] == [*first, {"role": "assistant", "content": reply}]
    assert "one word" in second[2]["content"]


def test_a_second_reply_that_is_clear_counts(endpoint: Endpoint) -> None:
    endpoint.script = [(200, "It is not right."), (200, "'Wrong'")]
    with _judge(endpoint) as llm:
        assert llm.judge("Lyon", QUESTION, truncated=False) is Verdict.WRONG
        assert llm.unclear == 0


def test_a_reply_without_content_is_unclear(endpoint: Endpoint) -> None:
    endpoint.script = [(200, '{"choices": [{"message": {"content": null}}]}')]
    with _judge(endpoint) as llm:
        assert llm.judge("Paris", QUESTION, truncated=False) is Verdict.UNCERTAIN


@pytest.mark.parametrize(
    "url", ["http://host:port/v1", "host/v1", "ftp://host/v1", "http://", "http://a\x00b"]
)
def test_an_invalid_url_is_an_error(url: str) -> None:
    with pytest.raises(HQError, match="HQ_JUDGE_URL"):
        LLMJudge(url, "m")


def test_another_model_host_or_wording_is_another_judge(monkeypatch: pytest.MonkeyPatch) -> None:
    judges = [
        LLMJudge("http://a/v1", "m"),
        LLMJudge("http://a/v1", "n"),
        LLMJudge("http://b/v1", "m"),
    ]
    seen = {one.identity for one in judges}
    assert LLMJudge("http://user:secret@a/v1/", "m", key="k").identity in seen
    assert len(seen) == 3
    monkeypatch.setattr("harness.judges.llm._INSTRUCTION", "Grade this. {question}")
    assert judges[0].identity not in seen


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        ('{"choices": []}', "OpenAI chat format"),
        ('{"error": "x"}', "OpenAI chat format"),
    ],
)
def test_a_reply_without_a_verdict_is_an_error(
    endpoint: Endpoint, reply: str, message: str
) -> None:
    endpoint.script = [(200, reply)]
    with _judge(endpoint) as llm, pytest.raises(HQError, match=message):
        llm.judge("Paris", QUESTION, truncated=False)


def test_a_cached_verdict_makes_no_call(endpoint: Endpoint, tmp_path: Path) -> None:
    cache = tmp_path / "deep" / "judge.jsonl"
    with _judge(endpoint, cache=cache) as llm:
        llm.judge("Paris", QUESTION, truncated=False)
        llm.judge("Paris", QUESTION, truncated=False)
    with _judge(endpoint, cache=cache) as llm:
        assert llm.judge("Paris", QUESTION, truncated=False) is Verdict.RIGHT
        assert len(endpoint.requests) == 1
        llm.judge("Lyon", QUESTION, truncated=False)
    assert len(endpoint.requests) == 2
    assert len(cache.read_text(encoding="utf-8").splitlines()) == 2


def test_a_cache_line_cut_short_by_a_kill_is_asked_again(
    endpoint: Endpoint, tmp_path: Path
) -> None:
    cache = tmp_path / "judge.jsonl"
    with _judge(endpoint, cache=cache) as llm:
        llm.judge("Paris", QUESTION, truncated=False)
    cache.write_text(cache.read_text(encoding="utf-8")[:-9], encoding="utf-8")
    with _judge(endpoint, cache=cache) as llm:
        assert llm.judge("Paris", QUESTION, truncated=False) is Verdict.RIGHT
    assert len(endpoint.requests) == 2
    with _judge(endpoint, cache=cache) as llm:
        llm.judge("Paris", QUESTION, truncated=False)
    assert len(endpoint.requests) == 2


def test_the_environment_names_the_endpoint(
    endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HQ_JUDGE_URL", endpoint.url)
    monkeypatch.setenv("HQ_JUDGE_MODEL", "m")
    monkeypatch.delenv("HQ_JUDGE_KEY", raising=False)
    monkeypatch.setenv("HQ_JUDGE_CACHE", str(tmp_path / "judge.jsonl"))
    llm = make_judge("llm")
    assert llm.judge("Paris", QUESTION, truncated=False) is Verdict.RIGHT
    assert endpoint.requests[0]["key"] is None


def test_a_missing_environment_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HQ_JUDGE_URL", "http://host/v1")
    monkeypatch.delenv("HQ_JUDGE_MODEL", raising=False)
    with pytest.raises(HQError, match="set HQ_JUDGE_MODEL in the environment"):
        make_judge("llm")
