"""A local server with the OpenAI completions API over a tiny model, which can be made to fail."""

import json
import threading
from collections.abc import Callable, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from hq.backends.base import Decoding
from hq.tracing.sampling import Sampling, StopCriteria, sample

NAME = "tiny-model"


class CompletionEndpoint:
    """Serves a decoding. Attributes change what the server accepts, returns and breaks.

    Args:
        decoding: Generates.
        tokenizer: Of the model.
        end: Tokens that end a response.
    """

    def __init__(self, decoding: Decoding, tokenizer: Any, end: frozenset[int]) -> None:
        self._decoding, self._tokenizer, self._end = decoding, tokenizer, end
        self.models = [NAME]
        self.reads_ids = True
        self.returns_ids = True  # in choices[].token_ids, if return_token_ids is true
        self.rejects: frozenset[str] = frozenset()  # fields that get status 400
        self.most = 64  # responses per request; a larger n gets status 400
        self.ignores: frozenset[str] = frozenset()  # "n", "seed", "temperature"
        self.tokenizes = True  # has /tokenize
        self.shift = 0  # added to the token ids of /tokenize
        self.usage = 0  # added to the number of prompt tokens; None: no usage
        self.prefix = ""  # before the text of each prompt, as a chat template
        self.change: Callable[[str], str] = str  # of the text of a response
        self.faults: dict[int, str] = {}  # by the number of the sampling request: what fails
        self.headers: dict[str, str] = {}
        self.requests: list[dict[str, Any]] = []  # with a seed and at the study's temperature
        self.keys: set[str | None] = set()
        self.temperature: float | None = None  # of the study: other requests are trials
        self._lock = threading.Lock()
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.endpoint = self
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def encode(self, text: str) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    def fault_of(self, body: dict[str, Any]) -> str | None:
        """Count a request for responses, and say what is to fail in it."""
        with self._lock:
            if "seed" not in body or body["temperature"] != self.temperature:
                return None
            self.requests.append(body)
            return self.faults.get(len(self.requests))

    def refused(self, body: dict[str, Any]) -> str:
        if isinstance(body["prompt"], list) and not self.reads_ids:
            return "prompt must be a string"
        if body.get("n", 1) > self.most:
            return f"n must be at most {self.most}"
        named = self.rejects & body.keys()
        return f"unknown field {sorted(named)[0]}" if named else ""

    def completion(self, body: dict[str, Any]) -> dict[str, Any]:
        body = {k: v for k, v in body.items() if k not in self.ignores}
        prompt = body["prompt"]
        if isinstance(prompt, str):
            prompt = self.encode(self.prefix + prompt)
        settings = Sampling(
            responses=body.get("n", 1),
            temperature=body.get("temperature", 0.0),
            top_k=body.get("top_k", 0),
            top_p=body.get("top_p", 1.0),
            max_new_tokens=body["max_tokens"],
            seed=body.get("seed", 0),
        )
        criteria = StopCriteria(self._end, tuple(body.get("stop") or ()), self.decode)
        with self._lock:
            (tree,) = sample(self._decoding, [("", tuple(prompt))], settings, criteria)
        choices: list[dict[str, Any]] = [{}] * settings.responses
        for response in tree.finished:
            choice = {
                "text": self.change(response.text),
                "finish_reason": "length" if response.truncated else "stop",
            }
            if self.returns_ids and body.get("return_token_ids"):
                choice["token_ids"] = list(response.ids)
            for member in response.members:
                choices[member] = choice
        content: dict[str, Any] = {"choices": choices, "model": NAME}
        if self.usage is not None:
            content["usage"] = {"prompt_tokens": len(prompt) + self.usage}
        return content

    def decode(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(ids)))


FAULTS: dict[str, tuple[int, dict[str, Any] | bytes]] = {
    "429": (429, {"error": {"message": "too many requests"}}),
    "500": (500, {"error": {"message": "out of memory"}}),
    "404": (404, {"message": "the model was unloaded"}),
    "not JSON": (200, b"<html>"),
}


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    endpoint: CompletionEndpoint


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_GET(self) -> None:
        endpoint = self.server.endpoint
        endpoint.keys.add(self.headers["Authorization"])
        if self.path != "/v1/models":
            self._send(404, {"error": "no such route"})
        else:
            data = [{"id": name, "object": "model"} for name in endpoint.models]
            self._send(200, {"object": "list", "data": data})

    def do_POST(self) -> None:
        endpoint = self.server.endpoint
        endpoint.keys.add(self.headers["Authorization"])
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/tokenize" and endpoint.tokenizes:
            ids = endpoint.encode(body["prompt"])
            self._send(200, {"tokens": [id + endpoint.shift for id in ids]})
        elif self.path == "/v1/completions":
            self._complete(body)
        else:
            self._send(404, {"detail": "Not Found"})

    def _complete(self, body: dict[str, Any]) -> None:
        endpoint = self.server.endpoint
        fault = endpoint.fault_of(body)
        if fault in FAULTS:
            self._send(*FAULTS[fault])
        elif fault == "truncated":
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(b'{"choices": [{"te')
        elif fault == "lost":
            self.close_connection = True
        elif fault == "fewer":
            self._send(200, endpoint.completion({**body, "n": 1}))
        elif refused := endpoint.refused(body):
            self._send(400, {"error": {"message": refused}})
        else:
            self._send(200, endpoint.completion(body))

    def _send(self, status: int, content: dict[str, Any] | bytes) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in self.server.endpoint.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass
