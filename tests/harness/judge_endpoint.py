"""A local HTTP server with the OpenAI chat API, for tests of the LLM judge."""

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Endpoint:
    """A server that replies from a script of (status, reply), whose last entry repeats.

    With `answer`, replies are computed from the message instead.
    """

    def __init__(self) -> None:
        self.script: list[tuple[int, str]] = [(200, "RIGHT")]
        self.answer: Callable[[str], str] | None = None  # computes the reply from the last message
        self.headers: dict[str, str] = {}
        self.requests: list[dict[str, Any]] = []
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                seen = {"path": self.path, "key": self.headers["Authorization"], "body": body}
                endpoint.requests.append(seen)
                status, reply = endpoint.script[
                    min(len(endpoint.requests), len(endpoint.script)) - 1
                ]
                if endpoint.answer is not None:
                    status, reply = 200, endpoint.answer(body["messages"][-1]["content"])
                self._send(status, reply)

            def _send(self, status: int, reply: str) -> None:
                self.send_response(status)
                for name, value in endpoint.headers.items():
                    self.send_header(name, value)
                content = {"choices": [{"message": {"role": "assistant", "content": reply}}]}
                body = reply if reply.startswith("{") else json.dumps(content)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body.encode())

            def log_message(self, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
