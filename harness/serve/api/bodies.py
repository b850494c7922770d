"""Bodies of requests: JSON in UTF-8, not compressed."""

from collections.abc import Callable, Coroutine
from email.message import Message
from typing import Any

from fastapi import Request
from fastapi.routing import APIRoute
from starlette.datastructures import Headers
from starlette.responses import Response

from harness.serve.refusal import Refusal

_ENCODINGS = ("utf-8", "utf8", "us-ascii")


class JSONRoute(APIRoute):
    """A route whose requests are refused before they are read unless they bring JSON."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The handler, behind a look at the headers."""
        handle = super().get_route_handler()

        async def checked(request: Request) -> Response:
            require_json(request.headers)
            return await handle(request)

        return checked


def require_json(headers: Headers) -> None:
    """Raises Refusal for a body of another type, character set or compression."""
    given = headers.get("content-type", "")
    message = Message()
    message["content-type"] = given
    if message.get_content_type() != "application/json" or not given:
        said = f"not {given!r}" if given else "and the request names no type"
        raise _refusal(f"The body has to be sent as Content-Type: application/json, {said}.")
    charset = (message.get_content_charset() or "utf-8").lower()
    if charset not in _ENCODINGS:
        raise _refusal(f"The body has to be JSON in UTF-8, not {charset!r}.")
    encoding = headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("identity", ""):
        raise _refusal(
            f"The body has to be sent as it is, not with Content-Encoding: {encoding}.",
            {"Accept-Encoding": "identity"},
        )


def _refusal(message: str, headers: dict[str, str] | None = None) -> Refusal:
    said = headers or {"Accept": "application/json"}
    return Refusal(415, message, code="unsupported_media_type", headers=said)
