"""`/v1/chat/completions` and `/v1/completions`."""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response, StreamingResponse

from harness.serve.draft import Order, Token
from harness.serve.inbox import Inbox
from harness.serve.job import Job
from harness.serve.refusal import ErrorBody, Refusal
from harness.serve.requests import Asked, ChatRequest, TextRequest
from harness.serve.responses import ChatCompletion, TextCompletion
from harness.serve.service import Service
from harness.serve.wire import KEEP_ALIVE, Wire

_QUIET = 10.0  # seconds after which a stream shows that it lives

REFUSED: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorBody, "description": description}
    for status, description in {
        400: "The request cannot be had.",
        401: "An API key is needed.",
        403: "The server is not called so.",
        404: "There is no such model or path.",
        413: "The body is too large.",
        429: "Too many requests wait already.",
        499: "The client has gone.",
        500: "The answer failed.",
        503: "The server is ending, or cannot write its audit log.",
        504: "The answer took too long.",
    }.items()
}
_STREAM: dict[str, Any] = {"content": {"text/event-stream": {}}}


def routes(service: Service) -> APIRouter:
    """The two ways to ask."""
    router = APIRouter(responses=REFUSED)

    @router.post("/v1/chat/completions", response_model=ChatCompletion, responses={200: _STREAM})
    async def chat(asked: ChatRequest, request: Request) -> Response:
        """Go on with a conversation."""
        order = await run_in_threadpool(service.desk.chat, asked)
        said = [{"role": message.role, "content": message.text} for message in asked.messages]
        return await _answered(service, request, asked, order, said)

    @router.post("/v1/completions", response_model=TextCompletion, responses={200: _STREAM})
    async def text(asked: TextRequest, request: Request) -> Response:
        """Go on with a text."""
        order = await run_in_threadpool(service.desk.text, asked)
        return await _answered(service, request, asked, order, asked.prompt)

    return router


async def _answered(
    service: Service, request: Request, asked: Asked, order: Order, said: str | list[Any]
) -> Response:
    inbox = Inbox()
    job = Job(
        id=uuid.uuid4().hex,
        endpoint=request.url.path,
        order=order,
        asked=said,
        deadline=time.monotonic() + service.policy.limits.seconds,
        deliver=inbox.put,
        client=request.state.client,
        user=asked.user,
    )
    service.engine.submit(job)
    wire = Wire(job, service.model.name, chat=isinstance(asked, ChatRequest))
    headers = {"x-request-id": job.id}
    if asked.stream:
        events = _events(service, inbox, wire, asked.reports_usage)
        headers["Cache-Control"] = "no-store"
        return StreamingResponse(events, media_type="text/event-stream", headers=headers)
    last = await _last(service, inbox, job, request)
    if isinstance(last, Refusal):
        raise last
    content = wire.whole(last).model_dump_json()
    return Response(content, media_type="application/json", headers=headers)


async def _events(service: Service, inbox: Inbox, wire: Wire, usage: bool) -> AsyncIterator[bytes]:
    """A stream. Where the client goes, or the server ends, the generator is closed."""
    try:
        for chunk in wire.opening():
            yield chunk
        while not isinstance(event := await inbox.get(_QUIET), Refusal):
            if event is None:
                yield KEEP_ALIVE
            elif isinstance(event, Token):
                yield wire.token(event)
            else:
                for chunk in wire.closing(event, usage):
                    yield chunk
                return
        yield wire.failure(event)
    finally:
        wire.job.stop(service.engine.why_gone)


async def _last(service: Service, inbox: Inbox, job: Job, request: Request) -> Any:
    """How an answer ends that nobody sees before; it is given up where the client goes."""
    answer = asyncio.ensure_future(inbox.last())
    gone = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({answer, gone}, return_when=asyncio.FIRST_COMPLETED)
        return answer.result() if answer.done() else Refusal(499, "The client has gone.")
    finally:
        job.stop(service.engine.why_gone)
        answer.cancel()
        gone.cancel()


async def _gone(request: Request) -> None:
    """Returns when the client hangs up."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
