"""A model hub in this process: the five requests of an upload, and what it then holds."""

import base64
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread


class Hub(ThreadingHTTPServer):
    """Repositories by id: whether they are private, and their files."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.private: dict[str, bool] = {}
        self.files: dict[str, dict[str, bytes]] = {}
        self.tokens: set[str | None] = set()
        self.rejects: str = ""  # the end of a path that is answered with 403

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: Hub

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        hub, path = self.server, self.path
        hub.tokens.add(self.headers.get("Authorization"))
        if hub.rejects and path.endswith(hub.rejects):
            self._answer(403, {"error": "no permission"})
        elif path == "/api/repos/create":
            asked = json.loads(body)
            id = f"{asked['organization']}/{asked['name']}"
            taken = id in hub.private
            hub.private.setdefault(
                id, asked.get("visibility") == "private" or asked.get("private", False)
            )
            self._answer(409 if taken else 200, {"url": f"{hub.address}/{id}"})
        elif path == "/api/validate-yaml":
            self._answer(200, {"warnings": [], "errors": []})
        elif path.endswith("/preupload/main"):
            files = [file["path"] for file in json.loads(body)["files"]]
            modes = [{"path": f, "uploadMode": "regular", "shouldIgnore": False} for f in files]
            self._answer(200, {"files": modes})
        elif path.endswith("/commit/main"):
            id = path.removeprefix("/api/models/").removesuffix("/commit/main")
            for line in body.decode().splitlines():
                entry = json.loads(line)
                if entry["key"] == "file":
                    content = base64.b64decode(entry["value"]["content"])
                    hub.files.setdefault(id, {})[entry["value"]["path"]] = content
            self._answer(200, {"commitUrl": f"{hub.address}/{id}/commit/1", "commitOid": "1"})
        else:
            self._answer(404, {"error": path})

    def do_GET(self) -> None:
        id = self.path.removeprefix("/api/models/")
        private = self.server.private.get(id)
        found = private is not None
        self._answer(200 if found else 404, {"id": id, "private": private, "siblings": []})

    def _answer(self, code: int, value: object) -> None:
        content = json.dumps(value).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Print nothing."""


@contextmanager
def serve() -> Iterator[Hub]:
    """A running hub."""
    hub = Hub()
    thread = Thread(target=hub.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        thread.join()
        hub.server_close()
