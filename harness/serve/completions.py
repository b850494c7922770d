"""`/v1/chat/completions` and `/v1/completions`."""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from fastapi import APIRouter, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response, StreamingResponse

from harness.serve.api.bodies import JSONRoute
from harness.serve.draft import Order, Token
from harness.serve.governor import Verdict
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
        415: "The body is not JSON, or is compressed.",
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
    router = APIRouter(responses=REFUSED, route_class=JSONRoute)

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
    deadline = time.monotonic() + service.policy.limits.seconds
    ids = [uuid.uuid4().hex for _ in range(asked.answers)]
    jobs = [
        Job(
            id=id,
            endpoint=request.url.path,
            order=_nth(order, number),
            asked=said,
            deadline=deadline,
            deliver=partial(inbox.put, number),
            request=ids[0],
            choice=number,
            client=request.state.client,
            user=asked.user,
        )
        for number, id in enumerate(ids)
    ]
    service.engine.submit(jobs)
    chat, ignored = isinstance(asked, ChatRequest), list(dict.fromkeys(asked.ignored()))
    wire = Wire(jobs, service.model.name, chat, ignored)
    headers = {"x-request-id": ids[0]}
    if asked.stream:
        events = _events(service, inbox, wire, asked.reports_usage)
        headers["Cache-Control"] = "no-store"
        return StreamingResponse(events, media_type="text/event-stream", headers=headers)
    verdicts = await _verdicts(service, inbox, jobs, request)
    if isinstance(verdicts, Refusal):
        raise verdicts
    content = wire.whole(verdicts).model_dump_json()
    return Response(content, media_type="application/json", headers=headers)


def _nth(order: Order, number: int) -> Order:
    """Of several answers each has a seed of its own, so that it can be had again by itself."""
    seed = (order.drawing.seed + number) % 2**63
    return replace(order, drawing=replace(order.drawing, seed=seed))


async def _events(service: Service, inbox: Inbox, wire: Wire, usage: bool) -> AsyncIterator[bytes]:
    """A stream. Where the client goes, or the server ends, the generator is closed."""
    try:
        for chunk in wire.opening():
            yield chunk
        verdicts: list[Verdict] = []
        while len(verdicts) < len(wire.jobs):
            got = await inbox.get(_QUIET)
            if got is None:
                yield KEEP_ALIVE
                continue
            choice, event = got
            if isinstance(event, Refusal):
                yield wire.failure(event)
                return
            if isinstance(event, Token):
                yield wire.token(choice, event)
            else:
                verdicts.append(event)
                for chunk in wire.closing(choice, event):
                    yield chunk
        for chunk in wire.end(verdicts, usage):
            yield chunk
    finally:
        _stop(service, wire.jobs)


def _stop(service: Service, jobs: Sequence[Job]) -> None:
    """Nobody waits for them; those that are written already do not mind."""
    for job in jobs:
        job.stop(service.engine.why_gone)


async def _verdicts(
    service: Service, inbox: Inbox, jobs: Sequence[Job], request: Request
) -> list[Verdict] | Refusal:
    """How answers end that nobody sees before; they are given up where the client goes."""
    answers = asyncio.ensure_future(inbox.verdicts(len(jobs)))
    gone = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({answers, gone}, return_when=asyncio.FIRST_COMPLETED)
        return answers.result() if answers.done() else Refusal(499, "The client has gone.")
    finally:
        _stop(service, jobs)
        answers.cancel()
        gone.cancel()


async def _gone(request: Request) -> None:
    """Returns when the client hangs up."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
