"""The queue, time limits, disconnecting clients, and shutdown."""

import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from harness.serve.generation.model import ServedModel
from hq.errors import HQError
from tests.harness.serve.conftest import ask, close_to

CHAT = "/v1/chat/completions"


@pytest.fixture
def slow(monkeypatch):
    """Limit generation to 20 tokens per second."""
    real_generate = ServedModel.generate

    def generate(self, request, draft):
        for token in real_generate(self, request, draft):
            if token is not None:
                time.sleep(0.05)
            yield token

    monkeypatch.setattr(ServedModel, "generate", generate)


def post(server, **options):
    with server.client() as http:
        return http.post(CHAT, json=ask(**options))


def wait_until_busy(server):
    """Wait until an answer is being generated."""
    until = time.monotonic() + 30
    while not server.service.engine.busy:
        assert time.monotonic() < until
        time.sleep(0.01)


@pytest.mark.parametrize("parallel", [1, 4])
def test_a_full_queue_returns_429(start, slow, parallel):
    server = start(policy={"limits": {"queue": 2}}, parallel=parallel)
    with ThreadPoolExecutor(8) as pool:
        responses = list(pool.map(lambda _: post(server), range(8)))
    rejected = [r for r in responses if r.status_code == 429]
    answered = [r for r in responses if r.status_code == 200]
    assert len(rejected) + len(answered) == 8
    assert len(answered) >= 2
    assert rejected
    assert all(int(r.headers["retry-after"]) >= 1 for r in rejected)
    assert rejected[0].json()["error"]["code"] == "queue_full"
    # Rejected requests are not in the log.
    ids = [r.json()["hq"]["audit_id"] for r in answered]
    assert sorted(ids) == sorted(line["id"] for line in server.lines())


def test_an_answer_past_its_deadline_returns_504(start, slow):
    server = start(policy={"limits": {"seconds": 0.3}})
    complete = post(server, max_tokens=200)
    assert complete.status_code == 504
    assert complete.json()["error"]["code"] == "timed_out"
    streamed = post(server, max_tokens=200, stream=True)
    assert streamed.status_code == 200
    assert '"error":{"message":"The answer took too long."' in streamed.text
    assert "[DONE]" not in streamed.text
    for line in server.wait_for(2):
        assert line["outcome"] == "timed out"
        assert line["verdict"] is None
        assert 0 < line["tokens"] < 10
        assert line["score"] is not None


@pytest.mark.parametrize("stream", [False, True])
def test_a_disconnect_stops_the_answer(start, slow, stream):
    server = start()
    with pytest.raises(httpx.ReadTimeout):
        with httpx.Client(base_url=server.url, timeout=0.4) as http:
            if stream:
                with http.stream("POST", CHAT, json=ask(max_tokens=400, stream=True)) as response:
                    for number, _ in enumerate(response.iter_lines()):
                        if number == 6:
                            raise httpx.ReadTimeout("enough")
            else:
                http.post(CHAT, json=ask(max_tokens=400))
    (line,) = server.wait_for(1)
    assert line["outcome"] == "disconnected"
    assert 0 < line["tokens"] < 60
    assert post(server).status_code == 200


def test_a_disconnect_while_waiting_is_recorded(start, slow):
    server = start(parallel=1)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(post, server, max_tokens=40)
        wait_until_busy(server)
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(server.url + CHAT, json=ask(), timeout=0.3)
        assert first.result().status_code == 200
    # The waiting request is recorded before its turn.
    gone, answered = server.wait_for(2)
    assert (gone["outcome"], answered["outcome"]) == ("disconnected", "completed")
    assert gone["tokens"] == gone["tokens_written"] == 0
    assert gone["score"] is None


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("n", [1, 3])
def test_a_disconnect_while_waiting_frees_the_place(start, slow, stream, n):
    server = start(policy={"limits": {"queue": 1}}, parallel=1)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(post, server, max_tokens=60)
        wait_until_busy(server)
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(server.url + CHAT, json=ask(stream=stream, n=n), timeout=0.3)
        # The abandoned answers are recorded while the first one is generated.
        assert [line["outcome"] for line in server.wait_for(n)] == ["disconnected"] * n
        assert server.service.engine.busy
        second = pool.submit(post, server)
        assert first.result().status_code == second.result().status_code == 200


def test_a_stream_sends_comments_while_tokens_are_withheld(start, slow, monkeypatch):
    monkeypatch.setattr("harness.serve.web.completion_routes.KEEP_ALIVE_SECONDS", 0.05)
    server = start()
    text = post(server, stream=True, hq={"domain": "doubted"}).text
    assert text.count(": still at it\n\n") >= 3
    assert text.endswith("data: [DONE]\n\n")


def test_shutdown_finishes_running_answers(start, slow):
    server = start()
    with ThreadPoolExecutor(2) as pool:
        running = [pool.submit(post, server, max_tokens=20) for _ in range(2)]
        wait_until_busy(server)
        time.sleep(0.2)
        server.uvicorn.should_exit = True
        assert [future.result().status_code for future in running] == [200, 200]
    server.wait_for(2)
    assert {line["outcome"] for line in server.lines()} == {"completed"}
    with pytest.raises(httpx.ConnectError):
        post(server)


def test_shutdown_aborts_and_records_answers_past_the_grace(start, slow):
    server = start(policy={"limits": {"grace": 1}})
    with ThreadPoolExecutor(3) as pool:
        running = [
            pool.submit(post, server, max_tokens=400, stream=stream)
            for stream in (False, True, False)
        ]
        wait_until_busy(server)
        time.sleep(0.3)
        server.uvicorn.should_exit = True
        responses = [future.result() for future in running]
    assert [response.status_code for response in responses] == [503, 200, 503]
    assert all("The server is shutting down." in response.text for response in responses)
    lines = server.wait_for(3)
    assert {line["outcome"] for line in lines} == {"shut down"}
    until = time.monotonic() + 30
    while not server.lines("stop"):
        assert time.monotonic() < until
        time.sleep(0.05)


def test_a_server_that_shuts_down_is_not_ready(start):
    server = start()
    server.service.engine.shut_down()
    with server.client() as http:
        assert http.get("/readyz").status_code == 503
        assert http.get("/healthz").status_code == 200
        rejected = http.post(CHAT, json=ask())
        assert rejected.status_code == 503
        assert rejected.json()["error"]["code"] == "unavailable"


def test_an_error_in_one_answer_does_not_affect_the_next(start, monkeypatch):
    server = start()
    real_generate = ServedModel.generate
    faults = [HQError("llama.cpp could not decode."), ZeroDivisionError()]

    def generate(self, request, draft):
        for token in real_generate(self, request, draft):
            yield token
            if faults and len(draft.tokens) == 3:
                raise faults.pop(0)

    monkeypatch.setattr(ServedModel, "generate", generate)
    for stream in (False, True):
        failed = post(server, stream=stream)
        assert failed.status_code == (200 if stream else 500)
        assert "The answer failed" in failed.text
        assert "ZeroDivision" not in failed.text
    assert post(server).status_code == 200
    one, two, three = server.lines()
    assert (one["outcome"], one["error"]) == ("error", "llama.cpp could not decode.")
    assert (two["outcome"], two["error"]) == ("error", "ZeroDivisionError()")
    assert one["tokens"] == 3
    assert three["outcome"] == "completed"


def test_no_answer_is_sent_if_the_log_cannot_be_written(start, monkeypatch):
    server = start()
    recorded = post(server)
    assert recorded.status_code == 200

    def append(_):
        raise HQError("The audit log cannot be written: No space left on device.")

    monkeypatch.setattr(server.audit, "append", append)
    rejected = post(server)
    assert rejected.status_code == 503
    assert recorded.json()["choices"][0]["message"]["content"] not in rejected.text
    with server.client() as http:
        assert http.get("/readyz").status_code == 503
    assert post(server).status_code == 503
    assert len(server.lines()) == 1


def test_idle_connections_do_not_block_others(start):
    server = start()
    host, port = server.url.removeprefix("http://").split(":")
    idle = [socket.create_connection((host, int(port))) for _ in range(50)]
    idle[0].sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: local")
    assert post(server).status_code == 200
    for connection in idle:
        connection.close()


def test_a_client_that_does_not_read_does_not_block_others(start):
    server = start()
    host, port = server.url.removeprefix("http://").split(":")
    body = json.dumps(ask(stream=True, max_tokens=400)).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
        connection.connect((host, int(port)))
        connection.sendall(head.encode() + f"Content-Length: {len(body)}\r\n\r\n".encode() + body)
        server.wait_for(1)
        assert post(server).status_code == 200


def test_concurrent_requests_get_their_own_answers(start):
    server = start(policy={"limits": {"queue": 64}})
    texts = [f"the model {n}" for n in range(12)]
    sequential = {text: post(server, messages=ask(text)["messages"]).json() for text in texts}
    barrier = threading.Barrier(len(texts))

    def at_once(text):
        barrier.wait()
        return post(server, messages=ask(text)["messages"]).json()

    with ThreadPoolExecutor(len(texts)) as pool:
        concurrent = dict(zip(texts, pool.map(at_once, texts), strict=True))
    for text in texts:
        one, two = sequential[text], concurrent[text]
        assert one["choices"] == two["choices"]
        assert two["hq"]["score"] == close_to(one["hq"]["score"])


SCHEMA = {"type": "object", "properties": {"a": {"enum": ["cat", "dog"]}}, "required": ["a"]}
BODIES = [
    {},
    {"temperature": 1.2, "seed": 7},
    {"hq": {"alpha": 0.0}},
    {"response_format": {"type": "json_schema", "schema": SCHEMA}, "max_tokens": 40},
    {"stop": ["e"], "max_tokens": 30},
    {"hq": {"domain": "again"}},
    {"logprobs": True, "top_logprobs": 3, "hq": {"alpha": 2.0}},
    {"n": 2, "temperature": 0.8, "seed": 3, "repeat_penalty": 1.3},
]


def test_a_batch_of_different_requests_equals_each_alone(start):
    server = start(policy={"limits": {"queue": 64}}, parallel=8)
    texts = ["the model", "a", "what is the capital of the largest country of all?", "b c d"]

    def at(number):
        return post(server, **(ask(texts[number % 4]) | BODIES[number])).json()

    alone = [at(number) for number in range(8)]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(at, range(8)))
    for one, two in zip(alone, together, strict=True):
        for first, second in zip(one["choices"], two["choices"], strict=True):
            assert second["message"] == first["message"]
            assert second["finish_reason"] == first["finish_reason"]
            assert second["logprobs"] == close_to(first["logprobs"])
        assert two["hq"]["score"] == close_to(one["hq"]["score"])
        assert two["hq"]["tokens"] == close_to(one["hq"]["tokens"])
    # Every answer has one line, and the chain of the lines is intact: reading the log checks it.
    ids = [
        choice.get("hq", body["hq"])["audit_id"]
        for body in alone + together
        for choice in body["choices"]
    ]
    assert sorted(ids) == sorted(line["id"] for line in server.lines())


def test_an_answer_that_is_cancelled_does_not_change_its_neighbours(start, slow):
    server = start()
    expected = post(server, max_tokens=30).json()
    with ThreadPoolExecutor(1) as pool:
        kept = pool.submit(post, server, max_tokens=30)
        wait_until_busy(server)
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(server.url + CHAT, json=ask("another", max_tokens=400), timeout=0.5)
        actual = kept.result().json()
    assert actual["choices"] == expected["choices"]
    assert actual["hq"]["score"] == close_to(expected["hq"]["score"])
    outcomes = [line["outcome"] for line in server.wait_for(3)]
    assert sorted(outcomes) == ["completed", "completed", "disconnected"]
