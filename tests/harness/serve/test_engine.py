"""What waits, what takes too long, who hangs up, and how a server ends."""

import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from harness.serve.generation.model import ServedModel
from hq.errors import HQError
from tests.harness.serve.conftest import ask

CHAT = "/v1/chat/completions"


@pytest.fixture
def slow(monkeypatch):
    """Writes 20 tokens a second at most."""
    real_generate = ServedModel.generate

    def generate(self, request, draft):
        for token in real_generate(self, request, draft):
            time.sleep(0.05)
            yield token

    monkeypatch.setattr(ServedModel, "generate", generate)


def post(found, **options):
    with found.client() as http:
        return http.post(CHAT, json=ask(**options))


def begun(found):
    """Waits until an answer is being written."""
    until = time.monotonic() + 30
    while not found.service.engine.busy:
        assert time.monotonic() < until
        time.sleep(0.01)


def test_more_than_may_wait_are_sent_away(start, slow):
    found = start(policy={"limits": {"queue": 2}})
    with ThreadPoolExecutor(8) as pool:
        responses = list(pool.map(lambda _: post(found), range(8)))
    refused = [r for r in responses if r.status_code == 429]
    answered = [r for r in responses if r.status_code == 200]
    assert len(refused) + len(answered) == 8
    assert len(answered) >= 2
    assert refused
    assert all(int(r.headers["retry-after"]) >= 1 for r in refused)
    assert refused[0].json()["error"]["code"] == "queue_full"
    # A refused request is no response: only the others are in the log.
    ids = [r.json()["hq"]["audit_id"] for r in answered]
    assert sorted(ids) == sorted(line["id"] for line in found.lines())


def test_an_answer_that_takes_too_long(start, slow):
    found = start(policy={"limits": {"seconds": 0.3}})
    whole = post(found, max_tokens=200)
    assert whole.status_code == 504
    assert whole.json()["error"]["code"] == "timed_out"
    streamed = post(found, max_tokens=200, stream=True)
    assert streamed.status_code == 200
    assert '"error":{"message":"The answer took too long."' in streamed.text
    assert "[DONE]" not in streamed.text
    for line in found.wait_for(2):
        assert line["outcome"] == "timed out"
        assert line["verdict"] is None
        assert 0 < line["tokens"] < 10
        assert line["score"] is not None


@pytest.mark.parametrize("stream", [False, True])
def test_who_hangs_up_stops_the_answer(start, slow, stream):
    found = start()
    with pytest.raises(httpx.ReadTimeout):
        with httpx.Client(base_url=found.url, timeout=0.4) as http:
            if stream:
                with http.stream("POST", CHAT, json=ask(max_tokens=400, stream=True)) as response:
                    for number, _ in enumerate(response.iter_lines()):
                        if number == 6:
                            raise httpx.ReadTimeout("enough")
            else:
                http.post(CHAT, json=ask(max_tokens=400))
    (line,) = found.wait_for(1)
    assert line["outcome"] == "disconnected"
    assert 0 < line["tokens"] < 60
    assert post(found).status_code == 200


def test_who_hangs_up_while_waiting_is_in_the_log_too(start, slow):
    found = start()
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(post, found, max_tokens=40)
        begun(found)
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(found.url + CHAT, json=ask(), timeout=0.3)
        assert first.result().status_code == 200
    gone, answered = found.wait_for(2)  # who waited is not kept until its turn would have come
    assert (gone["outcome"], answered["outcome"]) == ("disconnected", "completed")
    assert gone["tokens"] == gone["tokens_written"] == 0
    assert gone["score"] is None


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("n", [1, 3])
def test_who_hangs_up_while_waiting_gives_up_the_place(start, slow, stream, n):
    found = start(policy={"limits": {"queue": 1}})
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(post, found, max_tokens=60)
        begun(found)
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(found.url + CHAT, json=ask(stream=stream, n=n), timeout=0.3)
        # The line of each answer that nobody waits for is written while the first one goes on.
        assert [line["outcome"] for line in found.wait_for(n)] == ["disconnected"] * n
        assert found.service.engine.busy
        next_one = pool.submit(post, found)
        assert first.result().status_code == next_one.result().status_code == 200


def test_a_stream_shows_that_it_lives_while_nothing_may_be_shown(start, slow, monkeypatch):
    monkeypatch.setattr("harness.serve.web.completion_routes.KEEP_ALIVE_SECONDS", 0.05)
    found = start()
    text = post(found, stream=True, hq={"domain": "doubted"}).text
    assert text.count(": still at it\n\n") >= 3
    assert text.endswith("data: [DONE]\n\n")


def test_a_server_that_is_ended_finishes_what_it_has_begun(start, slow):
    found = start()
    with ThreadPoolExecutor(2) as pool:
        running = [pool.submit(post, found, max_tokens=20) for _ in range(2)]
        begun(found)
        time.sleep(0.2)
        found.server.should_exit = True
        assert [future.result().status_code for future in running] == [200, 200]
    found.wait_for(2)
    assert {line["outcome"] for line in found.lines()} == {"completed"}
    with pytest.raises(httpx.ConnectError):
        post(found)


def test_what_does_not_end_in_time_is_cut_off_and_in_the_log(start, slow):
    found = start(policy={"limits": {"grace": 1}})
    with ThreadPoolExecutor(3) as pool:
        running = [
            pool.submit(post, found, max_tokens=400, stream=stream)
            for stream in (False, True, False)
        ]
        begun(found)
        time.sleep(0.3)
        found.server.should_exit = True
        responses = [future.result() for future in running]
    assert [response.status_code for response in responses] == [503, 200, 503]
    assert all("The server is shutting down." in response.text for response in responses)
    lines = found.wait_for(3)
    assert {line["outcome"] for line in lines} == {"shut down"}
    until = time.monotonic() + 30
    while not found.lines("stop"):
        assert time.monotonic() < until
        time.sleep(0.05)


def test_an_ending_server_is_not_ready(start):
    found = start()
    found.service.engine.shut_down()
    with found.client() as http:
        assert http.get("/readyz").status_code == 503
        assert http.get("/healthz").status_code == 200
        refused = http.post(CHAT, json=ask())
        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "unavailable"


def test_a_fault_of_one_answer_is_not_the_next_ones(start, monkeypatch):
    found = start()
    real_generate = ServedModel.generate
    faults = [HQError("llama.cpp could not decode."), ZeroDivisionError()]

    def generate(self, request, draft):
        for number, token in enumerate(real_generate(self, request, draft)):
            yield token
            if faults and number == 2:
                raise faults.pop(0)

    monkeypatch.setattr(ServedModel, "generate", generate)
    for stream in (False, True):
        failed = post(found, stream=stream)
        assert failed.status_code == (200 if stream else 500)
        assert "The answer failed" in failed.text
        assert "ZeroDivision" not in failed.text
    assert post(found).status_code == 200
    one, two, three = found.lines()
    assert (one["outcome"], one["error"]) == ("error", "llama.cpp could not decode.")
    assert (two["outcome"], two["error"]) == ("error", "ZeroDivisionError()")
    assert one["tokens"] == 3
    assert three["outcome"] == "completed"


def test_no_answer_without_a_line(start, monkeypatch):
    found = start()
    whole = post(found)
    assert whole.status_code == 200

    def append(_):
        raise HQError("The audit log cannot be written: No space left on device.")

    monkeypatch.setattr(found.audit, "append", append)
    refused = post(found)
    assert refused.status_code == 503
    assert whole.json()["choices"][0]["message"]["content"] not in refused.text
    with found.client() as http:
        assert http.get("/readyz").status_code == 503
    assert post(found).status_code == 503
    assert len(found.lines()) == 1


def test_connections_that_say_nothing_hold_nobody_up(start):
    found = start()
    host, port = found.url.removeprefix("http://").split(":")
    idle = [socket.create_connection((host, int(port))) for _ in range(50)]
    idle[0].sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: local")
    assert post(found).status_code == 200
    for connection in idle:
        connection.close()


def test_a_reader_who_does_not_read_holds_nobody_up(start):
    found = start()
    host, port = found.url.removeprefix("http://").split(":")
    import json

    body = json.dumps(ask(stream=True, max_tokens=400)).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    with socket.socket() as deaf:
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
        deaf.connect((host, int(port)))
        deaf.sendall(head.encode() + f"Content-Length: {len(body)}\r\n\r\n".encode() + body)
        found.wait_for(1)
        assert post(found).status_code == 200


def test_many_threads_ask_at_once_and_each_has_its_own_answer(start):
    found = start(policy={"limits": {"queue": 64}})
    texts = [f"the model {n}" for n in range(12)]
    alone = {text: post(found, messages=ask(text)["messages"]).json() for text in texts}
    barrier = threading.Barrier(len(texts))

    def at_once(text):
        barrier.wait()
        return post(found, messages=ask(text)["messages"]).json()

    with ThreadPoolExecutor(len(texts)) as pool:
        together = dict(zip(texts, pool.map(at_once, texts), strict=True))
    for text in texts:
        one, two = alone[text], together[text]
        assert one["choices"] == two["choices"]
        assert one["hq"]["score"] == two["hq"]["score"]
