"""Checks before a request is read: host name, API key, body size and content type."""

from collections.abc import Callable, Coroutine
from email.message import Message as HeaderParser
from typing import Any

from fastapi import Request
from fastapi.routing import APIRoute
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from harness.serve.api.errors import APIError
from harness.serve.web.access import require_host
from harness.serve.web.service import Service

_KEY_PATHS = ("/v1/", "/hq", "/metrics")  # the page itself contains nothing confidential
_CHARSETS = ("utf-8", "utf8", "us-ascii")


class AccessMiddleware:
    """ASGI middleware that checks every request and counts its response."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app, self._service = app, service
        self._max_bytes = service.policy.limits.body_bytes
        self._too_large = f"The body is larger than the limit of {self._max_bytes} bytes."

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it with an error."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def counting_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._service.metrics.count_request(_route_template(scope), message["status"])
            await send(message)

        bytes_left = self._max_bytes

        async def limited_receive() -> Message:
            nonlocal bytes_left
            message = await receive()
            bytes_left -= len(message.get("body", b""))
            if bytes_left < 0:
                raise HTTPException(413, self._too_large)
            return message

        try:
            self._check(scope)
        except APIError as error:
            await error_response(error)(scope, receive, counting_send)
            return
        await self._app(scope, limited_receive, counting_send)

    def _check(self, scope: Scope) -> None:
        headers = Headers(scope=scope)
        if int(headers.get("content-length", 0)) > self._max_bytes:
            raise APIError(413, self._too_large)
        if self._service.names:
            require_host(headers.get("host"), self._service.names)
        client_id = ""
        if scope["path"].startswith(_KEY_PATHS):
            client_id = self._service.keys.client_id(headers.get("authorization"))
        scope.setdefault("state", {})["client"] = client_id


class JSONRoute(APIRoute):
    """A route that rejects bodies of other content types before they are read."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return the handler with a check of the headers before it."""
        handle = super().get_route_handler()

        async def checked_handle(request: Request) -> Response:
            require_json(request.headers)
            return await handle(request)

        return checked_handle


def require_json(headers: Headers) -> None:
    """Raise APIError if the body is not uncompressed JSON in UTF-8."""
    content_type = headers.get("content-type", "")
    parser = HeaderParser()
    parser["content-type"] = content_type
    if parser.get_content_type() != "application/json" or not content_type:
        fault = f"not {content_type!r}" if content_type else "but the request names no type"
        raise _media_type_error(
            f"The body must be sent as Content-Type: application/json, {fault}."
        )
    charset = (parser.get_content_charset() or "utf-8").lower()
    if charset not in _CHARSETS:
        raise _media_type_error(f"The body must be JSON in UTF-8, not {charset!r}.")
    encoding = headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("identity", ""):
        raise _media_type_error(
            f"The body must be sent uncompressed, not with Content-Encoding: {encoding}.",
            {"Accept-Encoding": "identity"},
        )


def error_response(error: APIError) -> JSONResponse:
    """Return the HTTP response of an error."""
    body: dict[str, Any] = error.body.model_dump()
    return JSONResponse(body, status_code=error.status, headers=error.headers)


def _media_type_error(message: str, headers: dict[str, str] | None = None) -> APIError:
    accepted = headers or {"Accept": "application/json"}
    return APIError(415, message, code="unsupported_media_type", headers=accepted)


def _route_template(scope: Scope) -> str:
    """The route as declared, because arbitrary paths would create unlimited metric labels."""
    return str(getattr(scope.get("route"), "path", "other"))
