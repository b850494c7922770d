"""What every request passes: the name that the server is called by, the key, and the count."""

from typing import Any

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from harness.serve.access import require_name
from harness.serve.refusal import Refusal
from harness.serve.service import Service

_GUARDED = ("/v1/", "/hq", "/metrics")  # what needs a key; the page itself says nothing of anyone


class Gate:
    """A middleware around the whole application."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app, self._service = app, service
        self._too_large = f"A body may have {service.policy.limits.body_bytes} bytes."

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Lets a request through, or answers it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                route = _route(scope)
                self._service.metrics.requests.labels(route, str(message["status"])).inc()
            await send(message)

        left = self._service.policy.limits.body_bytes

        async def limited() -> Message:
            nonlocal left
            message = await receive()
            left -= len(message.get("body", b""))
            if left < 0:
                raise HTTPException(413, self._too_large)
            return message

        try:
            self._check(scope)
        except Refusal as refusal:
            await answer(refusal)(scope, receive, counted)
            return
        await self._app(scope, limited, counted)

    def _check(self, scope: Scope) -> None:
        headers = Headers(scope=scope)
        if int(headers.get("content-length", 0)) > self._service.policy.limits.body_bytes:
            raise Refusal(413, self._too_large)
        if self._service.names:
            require_name(headers.get("host"), self._service.names)
        client = ""
        if scope["path"].startswith(_GUARDED):
            client = self._service.keys.client(headers.get("authorization"))
        scope.setdefault("state", {})["client"] = client


def answer(refusal: Refusal) -> JSONResponse:
    """The response that a refusal is."""
    body: dict[str, Any] = refusal.body.model_dump()
    return JSONResponse(body, status_code=refusal.status, headers=refusal.headers)


def _route(scope: Scope) -> str:
    """The route as it was declared: paths that clients make up would be endless labels."""
    return str(getattr(scope.get("route"), "path", "other"))
